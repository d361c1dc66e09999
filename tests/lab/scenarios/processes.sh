#!/bin/sh
# What somebody has started at a prompt and uses the GPU: refused with its name, or asked to end and ended, as a setting says; nobody else is.
# tier: full
. /usr/local/lib/lab-home.sh
cat >/root/uses <<'END'
import os, signal, sys
if "deaf" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
held = [os.open(node, os.O_RDWR) for node in ("/dev/nvidia0", "/dev/nvidiactl")]
print("holding", flush=True)
while True: signal.pause()
END
login=/sys/fs/cgroup/user.slice/user-0.slice/session-7.scope; mkdir -p $login /run/systemd/sessions # as logind makes one
kind() { printf 'CLASS=%s\nTYPE=%s\n' "$1" "$2" >/run/systemd/sessions/7; }; kind user tty
# prompt WORD: a process of a login session that uses the GPU; its pid in $user
prompt() { sh -c "echo \$\$ >$login/cgroup.procs; exec python3 /root/uses $1" >/root/uses.out 2>&1 & user=$!; wait_for 20 grep -q holding /root/uses.out; }
lives() { kill -0 "$user" 2>/dev/null || fail "$1: it has ended"; }
gone() { wait "$user" 2>/dev/null; [ $? -eq $((128 + $1)) ] || fail "$2: it was not signal $1 that has ended it"; }
card_vm; prompt -

say "refused, with the line that allows it"
within 60 255 qm start 111; said "in use by process $user"; said 'processes = "terminate" in /etc/gpu-handoff/config.toml'
lives refused; at_home refused
within 30 0 gpu-handoff holders; grep -q "^$user  *python3  *login session 7  *in the way" /root/said || fail "its row"; said "         Hint: end that process"
for way in unload unbind; do
	say "$way: it is asked to end"
	setting "way = \"$way\"" 'processes = "terminate"'
	expect_text "process $user (python3) has the GPU node of $gpu, /dev/nvidiactl open and is asked to end as 'processes' says" gpu-handoff plan --vm 111; lives plan
	expect_text "asked to end" gpu-handoff holders --vm 111; lives holders
	within 60 0 qm start 111; said "process $user (python3)"; away "$way"; gone 15 "$way"
	within 90 0 qm stop 111; comes_home 60 "$way"
	say "$way: deaf to it, it keeps the VM from starting, and ours is at home"
	setting "way = \"$way\"" 'processes = "terminate"' 'deadlines.process = 2'; prompt deaf
	within 60 255 qm start 111; said "has not 2 s later. Hint: end it yourself"; lives "$way, deaf"; comes_home 30 "$way, deaf"
	setting "way = \"$way\"" 'processes = "kill"' 'deadlines.process = 2'
	within 60 0 qm start 111; away "$way, killed"; gone 9 "$way, killed"
	within 90 0 qm stop 111; comes_home 60 "$way, killed"
	say "$way: the start fails when it has ended"
	setting "way = \"$way\"" 'processes = "terminate"'; prompt -
	qm set 111 --args --no-such-option >/dev/null; may_begin=8000; fails "$way, a start that fails" qm start 111; qm set 111 --delete args >/dev/null; gone 15 "$way, a start that fails"
	prompt -
done

say "several are asked at once, one that was stopped as well; a desktop, a job of cron's and a container of its own are not"
setting 'processes = "terminate"' 'deadlines.process = 15'
kill $user; wait $user 2>/dev/null; prompt -; first=$user; prompt -; kill -STOP $user
within 60 0 qm start 111; said "2 processes"; away several; gone 15 stopped; user=$first; gone 15 first
within 90 0 qm stop 111; comes_home 60 several
for what in "user wayland" "greeter x11" "background unspecified" "user tty"; do
	kind $what
	if [ "$what" = "user tty" ]; then sh -c "echo \$\$ >$login/cgroup.procs; exec unshare -p --fork --kill-child python3 /root/uses" >/root/uses.out 2>&1 & user=$!; wait_for 20 grep -q holding /root/uses.out
	else prompt -; fi
	within 60 255 qm start 111; said "in use by process"; grep -q "processes =" /root/said && fail "$what: it is told to be ended"
	lives "$what"; kill -KILL $user; wait $user 2>/dev/null
done
say "who has asked for it is gone: nobody is killed"
setting 'processes = "kill"' 'deadlines.process = 5'; prompt deaf; gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!
wait_for 30 sh -c "gpu-handoff status | grep -q 'ask it to end'"; kill -KILL $run; wait $run 2>/dev/null
stays 12; lives "12 s later"; within 90 0 gpu-handoff 111 post-stop; comes_home 60 "killed"
gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!
wait_for 30 sh -c "gpu-handoff status | grep -q 'ask it to end'"; kill -TERM $run; wait $run; is $? 1 "status of a run that was asked to end"
said "a signal asked us to end meanwhile"; stays 12; lives "12 s after it"; at_home "asked to end"; kill -KILL $user; wait $user 2>/dev/null; prompt -
say "a signal when one of two has ended: who has ended for nothing is named"
setting 'processes = "terminate"' 'deadlines.process = 15'; first=$user; prompt deaf
gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!; wait "$first" 2>/dev/null; wait_for 30 sh -c "gpu-handoff status | grep -q 'ask them to end'"; kill -TERM $run; wait $run; is $? 1 "status of a run that was asked to end"
said "process $first (python3) was asked to end, and nobody starts it again"; lives "the deaf one"; at_home "one of two"; kill -KILL $user; wait $user 2>/dev/null; prompt -

say "nobody else's, and not who has started the run"
setting 'processes = "kill"' 'deadlines.holder-wait = 1'
hold_open /dev/nvidia0; within 60 255 qm start 111; said "in use by process $holder"
lives "beside a service's"; kill -0 $holder || fail "the service's process has ended"; kill $holder; wait $holder 2>/dev/null
kill $user; wait $user 2>/dev/null
sh -c "echo \$\$ >$login/cgroup.procs; exec 9<>/dev/nvidia0; gpu-handoff to_vfio --gpu $gpu; echo status \$?" >/root/said 2>&1; cat /root/said
said "has started this run, and is not ended for it"; said "status 3"; at_home "its own shell"
say "killed while it waits for the end of one: nothing has left"
prompt deaf; gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!
wait_for 30 sh -c "gpu-handoff status | grep -q 'ask it to end'"; kill -KILL $run; wait $run 2>/dev/null
within 90 0 gpu-handoff 111 post-stop; kill -KILL "$user" 2>/dev/null; wait "$user" 2>/dev/null; comes_home 60 "killed in the middle"
rmdir $login; rm /run/systemd/sessions/7
