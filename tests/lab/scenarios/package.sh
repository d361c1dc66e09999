#!/bin/sh
# The package: its link only where it belongs, an administrator's file left alone, guests detached at removal, and no trace after purge.
. /usr/local/lib/lab.sh
export DEBIAN_FRONTEND=noninteractive
deb=$(echo /root/gpu-handoff_*_amd64.deb) link=/var/lib/vz/snippets/gpu-handoff
install() { dpkg --install "$deb" >/root/apt 2>&1 || { cat /root/apt; fail "install"; }; }
remove() { dpkg "--$1" gpu-handoff >/root/apt 2>&1 || { cat /root/apt; fail "$1"; }; }
said() { grep -qF -- "$1" /root/apt || { cat /root/apt; fail "it does not say: $1"; }; }
# Everything on disk and below /run/gpu-handoff, but for what dpkg and apt keep for themselves, journald's and the stand-ins'
files() { find / /run/gpu-handoff -xdev \( -path /var/log -o -path /var/cache -o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /root \
	-o -path /tmp -o -path /usr/local/lib/labpve \) -prune -o ! -path /etc/ld.so.cache -printf '%p %y %m %l\n' 2>/dev/null | sort; }
[ ! -e /usr/sbin/gpu-handoff ] || remove purge # as in any guest of the lab
[ ! -L $link ] || fail "the link is still there"
files >/root/before
apt-get -qq install "$deb" || fail "apt install"
is "$(readlink $link)" /usr/sbin/gpu-handoff "the link"
is "$(stat -c '%a %U' /run/gpu-handoff)" "700 root" "/run/gpu-handoff"
is "$(systemctl is-enabled gpu-handoff-recover)" enabled "the unit of the boot"
expect_rc 0 gpu-handoff --version
expect_rc 0 gpu-handoff plan >/dev/null
! grep -q GPU_HANDOFF_TEST /usr/sbin/gpu-handoff || fail "the package has a switch of the tests"
say "removed, the guests that had it start without it"
mkvm 111; expect_rc 0 qm set 111 --hookscript local:snippets/gpu-handoff
printf 'arch: amd64\n' >/etc/pve/lxc/104.conf; expect_rc 0 pct set 104 --hookscript local:snippets/gpu-handoff
remove remove
said "VM 111 has no hookscript any more; it was local:snippets/gpu-handoff"
said "container 104 has no hookscript any more"
[ ! -L $link ] || fail "the link is still there"
expect_rc 0 qm start 111; expect_rc 0 qm stop 111
say "locked, it keeps its line, and a hook that does nothing"
install; expect_rc 0 qm set 111 --hookscript local:snippets/gpu-handoff; expect_rc 0 qm set 111 --lock backup
remove remove; said "VM 111 still names local:snippets/gpu-handoff: VM is locked (backup)"; said "$link stays, and does nothing"
expect_rc 0 qm set 111 --delete lock; expect_rc 0 qm start 111; expect_rc 0 qm stop 111
remove purge; said "guests or snapshots still name it"; expect_rc 0 $link 111 pre-start
expect_rc 0 qm set 111 --delete hookscript; install; is "$(readlink $link)" /usr/sbin/gpu-handoff "the link is back"
say "purged, nothing is left of it"
remove purge; qm destroy 111; rm /etc/pve/lxc/104.conf
files >/root/after; diff /root/before /root/after || fail "files differ"
say "the administrator's own file of that name is left alone"
echo mine >$link; install; is "$(cat $link)" mine "the file"; said "is not ours"; install; is "$(cat $link)" mine "the file"
remove purge; is "$(cat $link)" mine "the file"; rm $link
say "no snippets folder yet, as on a fresh host; and none at all"
rmdir /var/lib/vz/snippets; install; is "$(readlink $link)" /usr/sbin/gpu-handoff "the link"
remove purge; [ ! -e /var/lib/vz/snippets ] || fail "the folder stays"; install
mv /var/lib/vz /var/lib/vz.away; expect_text "link /usr/sbin/gpu-handoff" dpkg-reconfigure gpu-handoff
mv /var/lib/vz.away /var/lib/vz; rm $link; expect_rc 0 dpkg-reconfigure gpu-handoff; is "$(readlink $link)" /usr/sbin/gpu-handoff "the link"
