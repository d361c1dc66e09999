# What the crash scenarios do: `. /usr/local/lib/lab-crash.sh` behind lab-home.sh. A point is ROUND:MOMENT of a run's acts, the
# moment being before, in or after: there the hook is killed, nobody does anything about it, and the GPU must come home.
points=0 most=0
# let_in: nobody's gate is shut, or that of the run that brings the GPU home by now; by a node that no run looks for
mknod /root/elsewhere c 195 0 2>/dev/null
a_run() { for _p in $(pgrep -x gpu-handoff); do tr '\0' ' ' </proc/$_p/cmdline | grep -qE "(recover|[0-9]+ p[a-z-]+) $" && return; done; return 1; }
let_in() { a_run || ! sh -c ': <>/root/elsewhere' 2>&1 | grep -q "Operation not permitted"; }
survived() { wait_for 2 let_in; comes_home 200 "$1"; let_in || fail "the gate is shut: $1"; points=$((points + 1)); [ $took -le $most ] || most=$took; return 0; }
# Each of these returns 1 where the run has no such point: it was not killed, and has ended well.
# qm_out POINT, qm_home POINT: in a start and in a stop by Proxmox; a pre-start that is killed fails the start
qm_out() {
	GPU_HANDOFF_TEST_KILL=$1 qm start 111 >/root/said 2>&1 && { said "is on vfio-pci after"; return 1; }
	said "pre-start' failed: got signal 9"; survived "out $1"; }
qm_home() {
	qm start 111 >/root/said 2>&1 || { cat /root/said; fail "qm start before $1"; }
	GPU_HANDOFF_TEST_KILL=$1 qm stop 111 >/root/said 2>&1 || fail "qm stop at $1"
	grep -q "is home after" /root/said && return 1
	said "post-stop' failed: got signal 9"; survived "home $1"; }
# out POINT, home POINT: the phases alone, under the VM's lock as in a task, which takes a third of the time
task() { flock -o $lock sh -c "$1" >/root/said 2>&1; }
out() {
	task "GPU_HANDOFF_TEST_KILL=$1 $hook 111 pre-start; [ \$? = 137 ]" || { said "is on vfio-pci after"; return 1; }
	survived "out $1"; }
home() {
	task "$hook 111 pre-start; GPU_HANDOFF_TEST_KILL=$1 $hook 111 post-stop; [ \$? = 137 ]" || { said "is home after"; return 1; }
	said "is on vfio-pci after"; survived "home $1"; }
# every RUN MOMENT...: at these moments of every round that such a run has, or of each stride-th, from one on that is another each day
every() {
	_run=$1 _act=$(($(date +%s) / 86400 % ${stride:-1} + 1)); shift
	[ "${stride:-1}" = 1 ] || say "$_run: act $_act, and each ${stride}rd one after it"
	while :; do for _moment; do $_run $_act:$_moment || return 0; done; _act=$((_act + ${stride:-1})); done; }
lost_none() {
	dmesg | grep -e 'BUG:' -e 'Oops' -e 'WARNING:' && fail "the kernel complains"
	say "$points points, 0 GPUs lost, the longest way home $most ms"
	[ $points -ge "$1" ] || fail "$points points are fewer than $1"; }
# campaign LEAST: everything of one card's ways out and home, by Proxmox and by hand
campaign() {
	setting 'deadlines.grace = 1' 'deadlines.look = 60' 'deadlines.verify = 90'; card_vm # a busy machine loses no GPU
	every qm_out before in after; away "a start that was not killed"; qm stop 111 >/dev/null 2>&1; comes_home 60 "after it"
	every qm_home in; comes_home 60 "a stop that was not killed"
	every home before after; comes_home 60 "a way home that was not killed"
	lost_none "$1"; }
# campaign_beside LEAST: one of two cards, by unbind, while the other one is in use, which is not disturbed
campaign_beside() {
	setting 'deadlines.grace = 1' 'deadlines.look = 60' 'deadlines.verify = 90'; card_vm
	hold_open /dev/nvidia1
	every out before in after; comes_home 60 "a way out that was not killed, without a QEMU"
	every home before in after; comes_home 60 "a way home that was not killed"
	lost_none "$1"
	kill -0 $holder || fail "the other card's user has ended"; kill $holder; }
