#!/bin/sh
# No post-stop, two at once, or at the wrong moment; a phase by hand; five quick rounds; a call that is stuck: the GPU comes home.
# lab: --timeout 1200
# tier: full
. /usr/local/lib/lab-home.sh
mkdir -p /etc/lab; card_vm; setting 'deadlines.grace = 3'
started() { within 90 0 qm start 111; away "the VM runs"; }
none_came() { comes_home 60 "$1"; say "$1: home $took ms after QEMU's end, 3000 of them for post-stop"; }

say "the guest powers off, and 'qm cleanup' comes too early: post-stop is lost (old mechanism, bug 7119)"
echo old >/etc/lab/cleanup-mechanism; nobody_listens; started
expect_text "vm still running" qm cleanup 111 1 1; away "QEMU still runs"
end_qemu TERM; none_came "power-off"
say "QEMU is killed, and nobody listens (new mechanism)"
echo new >/etc/lab/cleanup-mechanism; started; end_qemu KILL; none_came "killed"

say "post-stop twice at once, before the watcher's own turn"
setting 'deadlines.grace = 75'; started; end_qemu KILL
$hook 111 post-stop >/root/one 2>&1 & one=$!
$hook 111 post-stop >/root/two 2>&1 & two=$!
wait $one || fail "the first: $(cat /root/one)"; wait $two || fail "the second: $(cat /root/two)"
cat /root/one /root/two; is "$(cat /root/one /root/two | grep -c 'is home after')" 1 "ways home"; comes_home 30 "twice at once"
say "post-stop beside the watcher's way home"
setting 'deadlines.grace = 1'; started; end_qemu KILL; $hook 111 post-stop || fail "post-stop"; comes_home 60 "beside the watcher"

say "the start task is killed while QEMU starts: as long as QEMU lives the GPU is its own"
qm set 111 --args "-chardev socket,id=late,path=/run/late,server=on,wait=on" >/dev/null
qm start 111 >/root/said 2>&1 & task=$!; wait_for 90 test -S /run/late; qm-task kill 111 KILL; wait $task; cat /root/said
stays 4; away "QEMU starts for ever"; end_qemu KILL; comes_home 60 "QEMU has ended"; qm set 111 --delete args >/dev/null

say "a phase by hand, without the VM's lock: its caller is followed"
sh -c "$hook 111 pre-start; sleep 6; cut -d' ' -f1 /proc/uptime | tr -d . >/root/ended" 2>&1 | tee /root/said & caller=$!
wait_for 60 grep -q "called by hand" /root/said; wait_for 60 has_driver "$gpu" vfio-pci; stays 3; away "the caller lives"; wait $caller
comes_home 60 "the caller has ended"; say "the way home began $((($(begun) - $(cat /root/ended)) * 10)) ms after the caller's end"

say "a phase by a unit: its caller is the first process, which is no caller"
within 90 0 systemd-run --quiet --wait $hook 111 pre-start; comes_home 60 "called by a unit"

say "a call is stuck in the kernel: the way home begins when it is let go"
setting 'way = "unbind"' 'deadlines.bind = 3'
stub delay_remove_ms 25000; within 60 255 qm start 111; said "no answer within 3000 ms"; said "exit code 4"; stub delay_remove_ms 0
is "$(driver_of "$gpu")" none "the GPU's driver"; comes_home 90 "after the stuck call"

say "five quick rounds, by both mechanisms: no watcher of an earlier round is in the way of a later one"
setting 'deadlines.grace = 1'; somebody_listens
for mechanism in new old new old old; do
	echo $mechanism >/etc/lab/cleanup-mechanism
	qm start 111 >/root/said 2>&1 || fail "round $mechanism: $(cat /root/said)"; away "round, $mechanism"; qm stop 111 >/root/said 2>&1 || fail "qm stop: $(cat /root/said)"
done
qm start 111 >/dev/null 2>&1 || fail "the sixth start"; stays 4; away "the last VM keeps it"
qm stop 111 >/dev/null; comes_home 60 "after the last round"
