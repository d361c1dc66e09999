#!/bin/sh
# Two containers of Proxmox's use the GPU, one of them deaf to its shutdown: both go down beside each other and run again, by both ways, after a failed start, a start undone in the middle and a killed hook; one that does not start again is named, and strands nothing.
# lab: --timeout 1500
# tier: long
. /usr/local/lib/lab-home.sh
mkdir -p /etc/pve/lxc
printf 'arch: amd64\ndev0: /dev/nvidia0\ndev1: /dev/nvidiactl\nlxc.init.cmd: hold /dev/nvidia0 /dev/nvidiactl\n' >/etc/pve/lxc/104.conf
printf 'arch: amd64\nunprivileged: 1\ndev0: /dev/nvidia0\nlxc.init.cmd: sh -c "trap : PWR TERM; exec 3</dev/nvidia0; while :; do sleep 1; done"\n' >/etc/pve/lxc/105.conf
has() { for _p in $(find "/sys/fs/cgroup/lxc/$1" -name cgroup.procs -exec cat {} + 2>/dev/null); do
	[ -n "$(find "/proc/$_p/fd" -lname '*/nvidia0' 2>/dev/null)" ] && return 0; done; return 1; }
use() { has 104 && has 105; }
are_down() { for _ct in 104 105; do [ "$(pct status $_ct)" = "status: stopped" ] || return 1; done; }
within 60 0 pct start 104; within 60 0 pct start 105; wait_for 60 use; card_vm
say "refused, and both are named"
setting 'containers = "release"' 'deadlines.holder-wait = 2'
within 60 255 qm start 111; said "Hint: pct shutdown 104, or containers"; said "Hint: pct shutdown 105, or containers"; settled || fail "not as before"; use || fail "one was stopped"
for way in unload unbind; do
	setting 'containers = "shutdown"' 'deadlines.container = 15' "way = \"$way\""
	within 180 0 qm start 111; said "container 104"; said "container 105"; away "$way"; are_down || fail "$way: one runs"
	within 120 0 qm stop 111; comes_home 90 "$way"; wait_for 60 use
	qm set 111 --args --no-such-option >/dev/null; may_begin=8000; fails "$way, a start that fails" qm start 111; qm set 111 --delete args >/dev/null; wait_for 60 use
	undone "$way" are_down; wait_for 60 use; killed "$way" are_down; wait_for 60 use
done
say "one does not start again: it is named, and the GPU is home and the other one runs"
setting 'containers = "shutdown"' 'deadlines.container = 15'; within 120 0 qm start 111; away "before that"; echo "lock: backup" >>/etc/pve/lxc/105.conf
within 180 0 qm stop 111; comes_home 120 "without one of them"; wait_for 60 has 104; is "$(pct status 105)" "status: stopped" "the other one"
named() { journalctl -q -b -o cat -t gpu-handoff | grep -q "container 105 was stopped for the handoff and does not start again"; }
wait_for 20 named
within 60 0 pct stop 104; rm /etc/pve/lxc/104.conf /etc/pve/lxc/105.conf; setting; settled || fail "not as before"
