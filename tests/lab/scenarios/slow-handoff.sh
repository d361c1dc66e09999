#!/bin/sh
# In the middle of a handoff that takes its time, both ways: who asks is told who is at work, at what and since when, and nothing is called wedged; Ctrl-Z does not stop it.
# lab: --driver stub
# tier: full
. /usr/local/lib/lab-card.sh
card_vm; mkvm 112 "${gpu%.*},pcie=1"; qm set 112 --hookscript local:snippets/gpu-handoff >/dev/null
# asked STATUS COMMAND...: within ten seconds, with that exit status, and it says who is at what
asked() {
	within 10 "$@"; said "VM 111 $phase (pid $run)"; said "at '$act', for "
	grep -qi -e wedged -e power-cycle -e reboot -e "nothing is away" /root/said && fail "that is not so"
	[ -d "/proc/$run" ] || fail "the handoff was over before"
}
# slowly FAULT PHASE ACT: the hook, with a driver that takes 15 s over that act
slowly() {
	stub "$1" 15000; phase=$2 act=$3
	$hook 111 "$2" >/root/hook 2>&1 & run=$!
	at_it() { gpu-handoff status | grep -q "at '$act'"; }
	wait_for 60 at_it; kill -TSTP $run
	asked 0 gpu-handoff status; asked 0 gpu-handoff recover -n
	asked 3 gpu-handoff plan --vm 111; asked 3 gpu-handoff plan --vm 112
	is "$(state_of $run)" S "the run after Ctrl-Z"
	wait $run || { cat /root/hook; fail "the hook"; }
	cat /root/hook; stub "$1" 0
}
setting 'way = "unbind"' 'deadlines.bind = 40'
slowly delay_remove_ms pre-start "$gpu: unbind from nvidia"; away "on the way out"
slowly delay_probe_ms post-stop "$gpu: bind to nvidia"; at_home "on the way home"
