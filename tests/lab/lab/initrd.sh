#!/bin/sh
# The guest's first program: bring its root together and hand over to systemd.
#   lowest    userland (layer0), a kernel's modules (layer1), a driver's (2)
#   on top    a tmpfs, or the disk "top" where changes are to survive a reboot
#   into it   tests/lab/guest and what this boot adds, from the 9p share
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
modprobe virtio_iommu 2>/dev/null # before anything looks at IOMMU groups
for module in virtio_pci virtio_blk erofs overlay 9pnet_virtio 9p; do
    modprobe "$module" || echo "initrd: no module $module"
done
disk() { # SERIAL: the disk of that name
    grep -lx "$1" /sys/block/vd*/serial 2>/dev/null |
        sed 's,/sys/block/\(.*\)/serial,/dev/\1,'
}
mkdir -p /top /root
lower=
for layer in layer0 layer1 layer2; do
    device=$(disk $layer)
    [ "$device" ] || continue
    mkdir -p /lower/$layer
    mount -t erofs -o ro "$device" /lower/$layer || echo "initrd: no $layer"
    lower=/lower/$layer${lower:+:$lower}
done
device=$(disk top)
if [ "$device" ]; then
    modprobe ext4
    mount -t ext4 "$device" /top
else
    mount -t tmpfs -o size=75% top /top
fi
mkdir -p /top/upper /top/work
mount -t overlay -o "lowerdir=$lower,upperdir=/top/upper,workdir=/top/work" \
    root /root || exec sh
mkdir -p /root/lab
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 lab /root/lab
# Only once: later boots of the same disk find what the first one left.
if [ ! -e /root/etc/lab-laid ]; then
    cp -a /root/lab/guest/. /root/
    touch /root/etc/lab-laid
fi
mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
exec switch_root /root /sbin/init
