#!/bin/sh
# The records' file system is full before a handoff, during it, and while the card is away: refused, undone, and home all the same.
# tier: full
. /usr/local/lib/lab-card.sh
card_vm; setting 'deadlines.grace = 3'
for v in /sys/class/vtconsole/vtcon*; do grep -q 'frame buffer' "$v/name" && echo 0 >"$v/bind"; done # the console is another scenario's
mount -t tmpfs -o size=512k,mode=700 none /run/gpu-handoff || fail "no file system of its own"
fill() { dd if=/dev/zero of=/run/gpu-handoff/full bs=4k >/dev/null 2>&1; }
room() { rm -f /run/gpu-handoff/full; }
say "full before it: refused"
fill; within 60 3 $hook 111 pre-start; said "No space left on device"; said "'df /run'"; at_home "refused"
say "getting full all the time: it is away, or all is undone"
for round in 1 2 3; do
	room; while :; do fill; done & filler=$!
	$hook 111 pre-start >/root/said 2>&1; rc=$?; kill $filler; wait $filler; cat /root/said
	case $rc in 0) away "round $round"; $hook 111 post-stop || fail "post-stop"; at_home "round $round" ;; 1 | 3) at_home "round $round" ;; *) fail "exit status $rc" ;; esac
done
say "full from a moment on at which it is half away: all is undone"
room; $hook 111 pre-start >/root/said 2>&1 & run=$!
hooks=$(/usr/local/lib/lab-when "$gpu") || fail "it was not halted"
[ -e /run/gpu-handoff/vm-111.json ] || fail "there is no record"
rm -f /run/gpu-handoff/reserve*; fill; kill -CONT $hooks; wait $run; rc=$?; cat /root/said
is "$rc" 1 "exit status"; said "No space left on device"; at_home "half away"
say "full while it is away: it comes home"
room; within 60 0 $hook 111 pre-start; away "away"; fill; rm -f /run/gpu-handoff/reserve*; fill
within 60 0 $hook 111 post-stop; at_home "home"
say "not to be written while it is away: it comes home, and its record goes when it can"
room; within 60 0 $hook 111 pre-start; away "away"; mount -o remount,ro /run/gpu-handoff
within 60 1 $hook 111 post-stop; said "Read-only file system"; is "$(both)" "nvidia snd_hda_intel (null) (null)" "home"
mount -o remount,rw /run/gpu-handoff; within 60 0 gpu-handoff recover; at_home "with its record"
umount -l /run/gpu-handoff
