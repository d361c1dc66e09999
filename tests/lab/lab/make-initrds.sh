#!/bin/sh
# In the toolbox, with a kernel's folder on /build: expand the modules, write
# their index, and make the initrds of the lab and of the VM inside it.
# Arguments: the kernel's version, the modules that the lab's initrd needs.
set -e
version=$1; shift
tree=/build/root/usr/lib/modules/$version
rm -f "$tree/build" "$tree/source"
# Expanded once here, not on every load by an emulated processor.
find "$tree" -name '*.ko.xz' -print0 | xargs -0 -r -P2 -n64 xz -d
depmod -b /build/root "$version"

base() { # FOLDER: busybox under all its names
    mkdir -p "$1/bin" "$1/dev" "$1/proc" "$1/sys" "$1/tmp"
    cp /bin/busybox "$1/bin/"
    for name in $(/bin/busybox --list); do
        [ -e "$1/bin/$name" ] || ln -s busybox "$1/bin/$name"
    done
    ln -s bin "$1/sbin"
}
program() { # FOLDER PATH: a program and the libraries it needs
    cp -L "$2" "$1/bin/"
    ldd "$2" | grep -o '/[^ )]*' | while read -r library; do
        mkdir -p "$1/${library%/*}"
        cp -L "$library" "$1/$library"
    done
}
archive() { # FOLDER NAME
    (cd "$1" && find . | cpio -o -H newc --quiet | zstd -q -3) > "/build/$2"
}

base /tmp/outer
rm /tmp/outer/bin/modprobe
program /tmp/outer /usr/bin/kmod
ln -s kmod /tmp/outer/bin/modprobe
for module; do
    modprobe -d /build/root -S "$version" --show-depends "$module" || true
done | sed -n 's/^insmod //p' | sort -u | while read -r file; do
    inside=/tmp/outer/lib/modules/${file#*/lib/modules/}
    mkdir -p "${inside%/*}"
    cp "${file%% *}" "${inside%% *}"
done
cp "$tree"/modules.builtin* "$tree/modules.order" \
    "/tmp/outer/lib/modules/$version/"
depmod -b /tmp/outer "$version"
install -m 755 /build/init /tmp/outer/init
archive /tmp/outer initrd

base /tmp/inner
program /tmp/inner /usr/bin/lspci
mkdir -p /tmp/inner/usr/share/misc
cp /usr/share/misc/pci.ids /tmp/inner/usr/share/misc/
cat > /tmp/inner/init <<'INIT'
#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
echo "INNER: booted"; lspci -nn | sed 's/^/INNER: /'; echo "INNER: done"
poweroff -f
INIT
chmod 755 /tmp/inner/init
archive /tmp/inner initrd.inner
