#!/bin/sh
# Whoever calls us has left a file open that nobody can close, as on a dead network file system, or /etc/pve gives no answer: the run ends, nothing is changed, and the lock is free for the next one.
# tier: full
. /usr/local/lib/lab-home.sh
modprobe fuse; mkdir -p /run/dead; never-closes /run/dead >/run/dead.out & server=$!
wait_for 10 grep -q there /run/dead.out
free() { flock -n /run/gpu-handoff/lock true; }
card_vm
for where in '9>>' '2>>'; do
	say "$where: a run that asks workers"
	sh -c "exec $where/run/dead/file; exec gpu-handoff to_vfio --gpu $gpu" >/root/said & run=$!
	stays 20; wait_for 120 free; at_home "$where"
	within 60 0 gpu-handoff status
	within 90 0 qm start 111; away "$where, the next one"; within 90 0 qm stop 111; at_home "$where, the next one"
	kill -KILL $run 2>/dev/null
done
say "/etc/pve gives no answer"
mkdir -p /run/silent; never-closes /run/silent >/run/silent.out & silent=$!
wait_for 10 grep -q there /run/silent.out; mount --bind /run/silent /etc/pve; kill -STOP $silent
within 90 5 $hook 111 pre-start; said "see 'systemctl status pve-cluster'"; at_home "a start without /etc/pve"
within 60 0 gpu-handoff status
kill -KILL $silent; umount -l /etc/pve /run/silent
kill -KILL $server; umount -l /run/dead
gone() { ! pgrep -x gpu-handoff >/dev/null && ! pgrep -x gpu-handoff-wrk >/dev/null; }
wait_for 60 gone; within 90 0 gpu-handoff to_vfio; away "at the end"; within 90 0 gpu-handoff to_nvidia; at_home "at the end"
