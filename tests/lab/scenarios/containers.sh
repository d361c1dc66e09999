#!/bin/sh
# Containers with namespaces, a cgroup and device nodes of their own hold the GPU; pct stops and starts them.
# lab: --driver stub
. /usr/local/lib/lab.sh
printf 'arch: amd64\nhostname: cuda\ndev0: /dev/nvidia0\ndev1: /dev/nvidiactl\nlxc.init.cmd: hold --comm python3 /dev/nvidia0 /dev/nvidiactl\n' >/etc/pve/lxc/107.conf
printf 'arch: amd64\nlxc.cgroup2.devices.allow: c 195:* rwm\nlxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\n' >/etc/pve/lxc/108.conf
expect_rc 0 pct start 107; expect_rc 0 pct start 108
expect_text "already running" pct start 107
is "$(pct status 107)" "status: running" "CT 107"
holds() { ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q '/dev/nvidia0'; }
wait_for 10 holds
pid=$(for p in $(cat /sys/fs/cgroup/lxc/107/ns/cgroup.procs); do ls -l "/proc/$p/fd" | grep -q /dev/nvidia0 && echo "$p"; done)
is "$(cut -d: -f3 "/proc/$pid/cgroup")" /lxc/107/ns "cgroup of the holder"
[ "$(readlink "/proc/$pid/ns/mnt")" != "$(readlink /proc/1/ns/mnt)" ] || fail "the host's mount namespace"
is "$(fuser /dev/nvidia0 2>/dev/null | wc -w)" 0 "holders that fuser sees by path"
pct list
is "$(pct exec 108 -- stat -c %t:%T /dev/nvidia0)" c3:0 "the node inside CT 108"
expect_rc 0 pct shutdown 107 --timeout 20
[ ! -e "/proc/$pid" ] || fail "the holder lives"
expect_text "CT 107 not running" pct shutdown 107
expect_rc 0 pct stop 108
