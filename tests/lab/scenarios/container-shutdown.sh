#!/bin/sh
# A container in which no service holds the GPU is shut down and started again, with our own hook as its hookscript, by both ways, after a failed start and a hook that was killed, while it gives back as well; one that does not shut down is ended.
# lab: --timeout 1800
# tier: long
. /usr/local/lib/lab-home.sh
mkdir -p /etc/pve/lxc
# A process that no service has: the container's own init starts it. Its hook is ours.
printf 'arch: amd64\nhostname: cuda\nhookscript: local:snippets/gpu-handoff\ndev0: /dev/nvidia0\ndev1: /dev/nvidiactl\nlxc.init.cmd: hold /dev/nvidia0 /dev/nvidiactl\n' >/etc/pve/lxc/104.conf
user() { for _p in $(find /sys/fs/cgroup/lxc/104 -name cgroup.procs -exec cat {} + 2>/dev/null); do
	[ -z "$(find "/proc/$_p/fd" -lname '*/nvidia0' 2>/dev/null)" ] || echo "$_p"; done; }
uses() { [ -n "$(user)" ]; }
users() { pct list; cat /etc/pve/lxc/104.conf; }
down() { is "$(pct status 104)" "status: stopped" "$1"; }
within 60 0 pct start 104; wait_for 60 uses; card_vm; remember
say "refused, with the line that allows it"
for policy in refuse release; do
	setting "containers = \"$policy\"" 'deadlines.holder-wait = 2'; pid=$(user)
	within 60 255 qm start 111; said "in use by process $pid (hold, container 104)"; said 'Hint: pct shutdown 104, or containers = "shutdown" in /etc/gpu-handoff/config.toml'; settled || fail "not as before"; is "$(user)" "$pid" "its process"
done
is_down() { [ "$(pct status 104)" = "status: stopped" ]; }
starting() { pgrep -f "pct start 104" >/dev/null; }
for way in unload unbind; do
	setting 'containers = "shutdown"' "way = \"$way\""
	expect_text "container 104 has the GPU node of $gpu, /dev/nvidiactl open and is shut down, as 'containers' says; it is started again when the GPU is home" gpu-handoff plan --vm 111
	within 120 0 qm start 111; said "container 104"; away "$way"; down "$way"
	within 120 0 qm stop 111; comes_home 90 "$way"; wait_for 60 uses
	qm set 111 --args --no-such-option >/dev/null; may_begin=8000; fails "$way, a start that fails" qm start 111; qm set 111 --delete args >/dev/null; wait_for 60 uses
	gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!
	wait_for 60 sh -c '! grep -q . /sys/fs/cgroup/lxc/104/ns/cgroup.procs'; kill -KILL $run; wait $run 2>/dev/null
	within 120 0 gpu-handoff 111 post-stop; comes_home 90 "$way, killed"; wait_for 60 uses
	undone "$way" is_down; wait_for 60 uses; killed "$way" is_down; wait_for 60 uses
	setting 'containers = "shutdown"' "way = \"$way\"" 'deadlines.grace = 5'; within 120 0 qm start 111; away "$way, before a killed post-stop"; qm stop 111 >/root/said 2>&1 & run=$!
	wait_for 60 starting; kill -KILL $(pgrep -f "gpu-handoff 111 post-stop"); wait $run; cat /root/said; said "post-stop' failed: got signal 9"
	comes_home 120 "$way, killed while it gives back"; wait_for 60 uses; as_before "$way"
done
say "somebody has started it while the GPU was away: it has none, is left alone, and named"
named() { journalctl -q -b -o cat -t gpu-handoff | grep -q 'container 104: it runs already, since somebody has started it meanwhile, and may do without the GPU. Hint: pct reboot 104'; }
! named || fail "named before"
setting 'containers = "shutdown"' 'container-start = "go-on"'
sed -i 's/^dev[01].*//; s/^lxc.init.*//' /etc/pve/lxc/104.conf
printf 'lxc.cgroup2.devices.allow: c 195:* rwm\nlxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\nlxc.init.cmd: hold /dev/nvidia0\n' >>/etc/pve/lxc/104.conf
within 120 0 qm start 111; away "for that"; down "for that"; sed -i 's/^lxc.init.*/lxc.init.cmd: sleep infinity/' /etc/pve/lxc/104.conf; within 60 0 pct start 104
within 120 0 qm stop 111; comes_home 90 "with it running"; is "$(pct status 104)" "status: running" "the container"; wait_for 20 named
within 60 0 pct stop 104; printf 'arch: amd64\ndev0: /dev/nvidia0\nlxc.init.cmd: sh -c "trap : PWR TERM; exec 3</dev/nvidia0; while :; do sleep 1; done"\n' >/etc/pve/lxc/104.conf
within 60 0 pct start 104; wait_for 60 uses
say "it does not shut down when it is asked to: it is ended"
setting 'containers = "shutdown"'
within 150 0 qm start 111; away "with one that was ended"; down "it"
within 120 0 qm stop 111; comes_home 90 "in the end"; wait_for 60 uses
say "the hook is killed, and ended by TERM, while that takes its time: the shutdown goes on, and it runs again"
stopping() { pgrep -f "lxc-stop -n 104" >/dev/null; }
for signal in KILL TERM; do
	gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!
	wait_for 60 stopping; kill -$signal $run; wait $run 2>/dev/null; cat /root/said
	within 150 0 gpu-handoff 111 post-stop # a run by hand: nobody else calls before its shell ends
	is_well() { settled && uses; }
	wait_for 150 is_well; stays 40; uses || fail "$signal: it has gone down since"
done
within 60 0 pct stop 104; setting; settled || fail "not as before"
