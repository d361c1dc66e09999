#!/bin/sh
# The start task is killed at pre-start, by TERM and KILL, whole or its worker alone; a start fails in a backup job that goes on.
# tier: full
. /usr/local/lib/lab-home.sh
card_vm
setting 'way = "unbind"' # a second of the way out is one act, then
# killed HOW: a start, and what is done to its task in the middle of pre-start
killed() {
	stub delay_remove_ms 1000; qm start 111 & _task=$!
	wait_for 60 has_driver "$gpu" none; qm-task $1; wait $_task; _rc=$?; stub delay_remove_ms 0; return $_rc; }

say "KILL to the task and its hook: what the hook has begun goes home"
fails "KILL" killed "kill 111 KILL"
say "TERM to the worker alone: the hook goes on without the VM's lock, and all that it took goes home"
fails "TERM to the worker" killed "worker 111 TERM"
for how in "kill 111 TERM" "stop 111"; do
	say "the Stop button, $how: the hook takes everything back itself"
	_last=$(begun); killed "$how" && fail "the start did not fail"; comes_home 30 "$how"; say "$how: over $took ms after the task's end"
	# Nobody reads the hook's output any more, but the journal has it.
	journalctl -q -t gpu-handoff -o cat -n 20 | grep "the host is as it was" || { explain; fail "$how: it was not undone"; }
	is "$(begun)" "$_last" "$how: when a way home was begun"
done

say "a backup job: the first VM's start fails, and the job goes on with the second one"
setting; qm set 111 --args --no-such-option >/dev/null; mkvm 112
job() { LAB_BACKUP_SECONDS=60 vzdump 111 112 & job=$!; wait_for 90 grep -q "Backup of VM 111 failed" /root/said; return 255; }
fails "in a job that goes on" job
kill -0 $job || fail "the job has ended"; is "$(qm status 112)" "status: running" "the job's second VM"
qm-task stop 111; wait $job; qm stop 112 --skiplock; settled || fail "not as before"
