#!/bin/sh
# The package: the snippet's link is made where its name is free, never over somebody's file, and goes with the package.
. /usr/local/lib/lab.sh
export DEBIAN_FRONTEND=noninteractive
deb=$(echo /root/gpu-handoff_*_amd64.deb) link=/var/lib/vz/snippets/gpu-handoff
install() { dpkg --install "$deb" >/root/apt 2>&1 || { cat /root/apt; fail "install"; }; }
remove() { dpkg "--$1" gpu-handoff >/root/apt 2>&1 || { cat /root/apt; fail "$1"; }; }
[ ! -e /usr/sbin/gpu-handoff ] || remove purge # as in any guest of the lab
[ ! -L $link ] || fail "the link is still there"
apt-get -qq install "$deb" || fail "apt install"
is "$(readlink $link)" /usr/sbin/gpu-handoff "the link"
is "$(stat -c '%a %U' /run/gpu-handoff)" "700 root" "/run/gpu-handoff"
expect_rc 0 gpu-handoff --version
! grep -q GPU_HANDOFF_TEST /usr/sbin/gpu-handoff || fail "the package has a switch of the tests"
mkvm 111; expect_rc 0 qm set 111 --hookscript local:snippets/gpu-handoff
printf 'arch: amd64\nhookscript: local:snippets/gpu-handoff\n' >/etc/pve/lxc/104.conf
remove remove
is "$(cat /root/apt | grep -c 'VM 111 will not start until you run: qm set 111 --delete hookscript')" 1 "warnings"
is "$(grep -c 'container 104 will not start until you run: pct set 104 --delete hookscript' /root/apt)" 1 "warnings of containers"; rm /etc/pve/lxc/104.conf
[ ! -L $link ] || fail "the link is still there"
say "the administrator's own file of that name is left alone"
echo mine >$link; install; is "$(cat $link)" mine "the file"; grep -q "is not ours" /root/apt || fail "nothing said"
remove purge; is "$(cat $link)" mine "the file"; rm $link
say "no snippets folder yet, as on a fresh host; and none at all"
rmdir /var/lib/vz/snippets; install; is "$(readlink $link)" /usr/sbin/gpu-handoff "the link"
mv /var/lib/vz /var/lib/vz.away; expect_text "link /usr/sbin/gpu-handoff" dpkg-reconfigure gpu-handoff
mv /var/lib/vz.away /var/lib/vz; rm $link; expect_rc 0 dpkg-reconfigure gpu-handoff; is "$(readlink $link)" /usr/sbin/gpu-handoff "the link"
