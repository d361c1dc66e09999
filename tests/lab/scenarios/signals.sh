#!/bin/sh
# TERM ends a run in order, wherever it is; what it had to leave, and what a KILL leaves, is brought home by the next run.
# tier: full
# lab: --driver stub
. /usr/local/lib/lab-card.sh
card_vm
begin() { "$@" >/root/said 2>&1 & run=$!; }
# term SECONDS STATUS: TERM to the run, which ends in that time with that status
term() { kill -TERM $run; _from=$(date +%s%3N); wait $run; _rc=$?; _took=$(($(date +%s%3N) - _from)); cat /root/said
	say "$_took ms after TERM: exit status $_rc"; is $_rc "$2" "exit status"; [ $_took -le $(($1 * 1000)) ] || fail "more than $1 s"; }

say "while it waits: for the lock, for a holder, for QEMU"
exec 9>>/run/gpu-handoff/lock; flock 9
begin gpu-handoff to_vfio; sleep 3; term 3 1; said "nothing was changed"
exec 9>&-; at_home "after the wait for the lock"
hold_open /dev/nvidia0
setting 'deadlines.holder-wait = 60'; begin $hook 111 pre-start; wait_for 30 grep -q "waiting up to" /root/said; term 3 1; said "nothing was changed"
kill $holder; at_home "after the wait for a holder"
within 60 0 qm start 111
begin $hook 111 post-stop; wait_for 30 grep -q "waiting for process" /root/said; term 3 1; said "nothing was changed"; away "the guest runs"
within 90 0 qm stop 111; at_home "after the wait for QEMU"

setting 'way = "unbind"'
say "while an act of a second is under way"
stub delay_remove_ms 1000; begin $hook 111 pre-start; wait_for 60 has_driver "$gpu" none; term 10 1
said "undo: "; said "the host is as it was"; grep "^gpu-handoff: \[.*bind to vfio-pci" /root/said && fail "a new step was begun"
at_home "after TERM"
say "the Stop button of a task"
qm start 111 >/root/task 2>&1 & task=$!
wait_for 60 has_driver "$gpu" none; qm-task stop 111; wait $task; cat /root/task
is_home() { [ "$(both)" = "nvidia snd_hda_intel (null) (null)" ] && [ -z "$(records)" ]; }
wait_for 30 is_home; at_home "after the Stop button" # the task does not wait for its hook, which is undoing

say "while an act is under way that takes too long: the next run waits for it"
stub delay_remove_ms 12000; begin $hook 111 pre-start; wait_for 60 has_driver "$gpu" none; term 7 4
said "gpu-handoff recover"; is "$(records)" vm-111.json "the record"; is "$(driver_of "$gpu")" none "the card is still let go"
stub delay_remove_ms 0
within 90 0 gpu-handoff recover; said "waiting up to"; at_home "after the recovery"

setting; hits=0
# killed AT PHASE: KILL to the phase once it has said so many steps
killed() {
	begin $hook 111 $2; wait_for 30 grep -q "\[ *$1/" /root/said; kill -KILL $run; wait $run; [ $? -eq 137 ] && hits=$((hits + 1))
	within 90 0 gpu-handoff recover; at_home "after a KILL to $2 at step $1"; }
for step in 1 4 6 8 10; do killed $step pre-start; done
for step in 1 4 6 9 13; do $hook 111 pre-start >/dev/null 2>&1 || fail "pre-start"; away "away"; killed $step post-stop; done
[ $hits -ge 6 ] || fail "only $hits of 10 KILLs met a run"; say "$hits of 10 KILLs met a run"
say "nobody reads what it says"
sh -c 'gpu-handoff to_vfio >&- 2>&-' || fail "with closed descriptors"
away "closed descriptors"; gpu-handoff to_nvidia 2>&1 | true; at_home "into a closed pipe"
