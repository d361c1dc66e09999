#!/bin/sh
# A container with a systemd of its own uses the GPU: that service alone is stopped inside and started again, ten times, also where HA manages the container; a GPU that is stranded comes home before its own container starts; a shell of it, and one that gives no answer, keep the GPU.
# lab: --timeout 1800
# tier: long
. /usr/local/lib/lab-home.sh
mkdir -p /etc/lab/ct/104 /etc/pve/lxc
unit() { printf '[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=%s\n' "$2" >"/etc/lab/ct/104/$1.service"; }
unit ollama "/usr/local/bin/hold /dev/nvidia0 /dev/nvidiactl"; unit other "/usr/bin/sleep infinity"
printf 'arch: amd64\nhostname: cuda\ndev0: /dev/nvidia0\ndev1: /dev/nvidiactl\nhookscript: local:snippets/gpu-handoff\nlxc.init.cmd: systemd\n' >/etc/pve/lxc/104.conf
of() { cat "/sys/fs/cgroup/lxc/104/ns/system.slice/$1.service/cgroup.procs" 2>/dev/null; }
uses() { [ -n "$(find "/proc/$(of ollama | head -n 1)/fd" -lname '*/nvidia0' 2>/dev/null)" ]; }
# What runs in it beside that service: another one, a command that somebody has it run, its first process.
rest() { echo "$(of other) $(pgrep -xf "sleep 7777") $(lxc-info -n 104 -pH)"; }
goes_on() { _rest=$(rest); [ "$_rest" = "$running" ] || fail "$1: the rest of the container: '$_rest', should be '$running'"; }
other_runs() { [ -n "$(of other)" ]; }
shell_runs() { pgrep -xf "sleep 7777" >/dev/null; }
users() { pct exec 104 -- systemctl show -p Id,ActiveState,SubState ollama other; pct list; cat /etc/pve/lxc/104.conf; }
within 60 0 pct start 104; wait_for 60 uses; wait_for 20 other_runs; card_vm
pct exec 104 -- sleep 7777 >/dev/null 2>&1 & shell=$!; wait_for 20 shell_runs; running=$(rest); remember

say "refused, with the line that allows it"
pid=$(of ollama); within 60 255 qm start 111
said "in use by process $pid (hold"; said "container 104"; said 'pct exec 104 -- systemctl stop ollama.service, or containers = "release"'
at_home refused; is "$(of ollama)" "$pid" "its process"
setting 'containers = "release"'; gpu-handoff holders | tee /root/said; grep -q "^$pid .*container 104  *stopped, started again" /root/said || fail "its row"
expect_text "ollama.service in container 104 has the GPU node of $gpu, /dev/nvidiactl open and is stopped" gpu-handoff plan --vm 111
for n in 1 2 3 4 5 6 7 8 9 10; do
	[ $n -lt 6 ] || setting 'containers = "release"' 'way = "unbind"'
	within 60 0 qm start 111; said "ollama in container 104"; away "round $n"; is "$(of ollama)" "" "round $n: the service"; goes_on "round $n"
	within 90 0 qm stop 111; comes_home 60 "round $n"; wait_for 20 uses; goes_on "round $n, at home"; as_before "round $n"
done
is_stopped() { [ -z "$(of ollama)" ]; }
for way in unload unbind; do
	say "$way: the start fails; the hook is killed when it has stopped it"
	setting 'containers = "release"' "way = \"$way\""
	qm set 111 --args --no-such-option >/dev/null; may_begin=8000; fails "$way, a start that fails" qm start 111; qm set 111 --delete args >/dev/null; wait_for 20 uses
	gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!
	wait_for 30 sh -c "! grep -q . /sys/fs/cgroup/lxc/104/ns/system.slice/ollama.service/cgroup.procs"; kill -KILL $run; wait $run 2>/dev/null
	within 90 0 gpu-handoff 111 post-stop; comes_home 60 "$way, killed"; wait_for 20 uses; goes_on "$way, killed"
	undone "a service inside, $way" is_stopped; wait_for 20 uses; goes_on "$way, undone"
	killed "a service inside, $way" is_stopped; wait_for 20 uses; goes_on "$way, killed in a start"; as_before "$way, killed in a start"
done
say "HA manages the container: what is stopped inside it is none of HA's, and HA is told nothing"
setting 'containers = "release"'; mkdir -p /etc/pve/ha; printf 'ct: 104\n\tgroup lab\n\tstate started\n' >/etc/pve/ha/resources.cfg; ha=$(cat /etc/pve/ha/resources.cfg)
within 60 0 qm start 111; said "ollama in container 104"; away "with HA's"; [ "$(cat /etc/pve/ha/resources.cfg)" = "$ha" ] || fail "HA was told something"
within 90 0 qm stop 111; comes_home 60 "with HA's"; wait_for 20 uses; goes_on "with HA's"; [ "$(cat /etc/pve/ha/resources.cfg)" = "$ha" ] || fail "HA was told something at home"
rm -r /etc/pve/ha
say "the GPU is stranded, and the container is stopped and started: it comes home first, and waits for nothing of its own"
gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!; wait_for 90 has_driver "$gpu" vfio-pci; kill -KILL $run 2>/dev/null; wait $run 2>/dev/null
systemctl stop "$watch"; is "$(of ollama)" "" "the service"; expect_rc 0 pct stop 104; wait $shell
within 120 0 pct start 104; said "is home after"; comes_home 60 "by its own container"; wait_for 60 uses; wait_for 20 other_runs; running=$(rest); as_before "by its own container"
say "for one VM nobody may be stopped, whatever holds for others"
setting 'containers = "release"' 'deadlines.holder-wait = 1' '[vm.111]' 'containers = "refuse"'; pid=$(of ollama)
within 60 255 qm start 111; said "in use by process $pid (hold, container 104)"; settled || fail "not as before"; is "$(of ollama)" "$pid" "its process"

say "a shell in it is nobody's service: it keeps the GPU, and the service runs on"
setting 'containers = "release"' 'deadlines.holder-wait = 1'; pid=$(of ollama)
pct exec 104 -- hold /dev/nvidia0 >/run/lab-hold.out & wait_for 20 grep -q . /run/lab-hold.out
within 60 255 qm start 111; said "Hint: pct shutdown 104"; is "$(of ollama)" "$pid" "its process"; at_home "a shell"
pct exec 104 -- pkill -f "hold /dev/nvidia0$"; wait
say "a name that is none, chosen in the container"
bad=/sys/fs/cgroup/lxc/104/ns/system.slice/$(printf 'x;reboot \033[2J').service; mkdir "$bad"; hold_open /dev/nvidia0; echo $holder >"$bad/cgroup.procs"
within 60 255 qm start 111; said "in use by process $holder"; grep -q "$(printf '\033')" /root/said && fail "it reaches the terminal"; grep -q reboot /root/said && fail "it is taken for a service"
kill $holder; wait $holder 2>/dev/null; rmdir "$bad"; at_home "a bad name"
say "its systemctl gives no answer, or never ceases to"
systemctl=/run/lab-ct/104/root/usr/bin/systemctl; cp -a $systemctl /root/systemctl; setting 'containers = "release"' 'deadlines.unit = 6'
for how in 'sleep 1000' 'exec yes >&2' 'exec yes'; do
	printf '#!/bin/sh\n%s\n' "$how" >$systemctl.new; chmod 755 $systemctl.new; mv $systemctl.new $systemctl
	within 60 255 qm start 111; said "may be stopped for it"; is "$(of ollama)" "$pid" "$how: its process"; at_home "$how"
done
cp -a /root/systemctl $systemctl.new; mv $systemctl.new $systemctl
say "its systemctl leaves something that is deaf and has our pipe open, and the run is ended at it: nobody waits for that, and it stays where it is"
left() { find /sys/fs/cgroup/lxc/104 -name cgroup.procs -exec cat {} + 2>/dev/null | while read -r _p; do tr '\0' ' ' <"/proc/$_p/cmdline" 2>/dev/null | grep -q '^sleep 4242' && echo "$_p"; done; }
is_left() { [ -n "$(left)" ]; }
cp -a $systemctl $systemctl.real; setting 'containers = "release"'
for how in KILL TERM; do
	phase=pre-start; [ $how = KILL ] || { within 60 0 gpu-handoff 111 pre-start; away "before a start that does not end"; phase=post-stop; }
	printf '#!/bin/sh\ncase "$*" in *show*) exec /usr/bin/systemctl.real "$@" ;; esac\n(trap "" TERM HUP INT; exec sleep 4242) &\nwait\n' >$systemctl.new; chmod 755 $systemctl.new; mv $systemctl.new $systemctl
	gpu-handoff 111 $phase >/root/said 2>&1 & run=$!
	wait_for 60 is_left; deaf=$(left); kill -$how $run; wait $run 2>/dev/null
	cp -a /root/systemctl $systemctl.new; mv $systemctl.new $systemctl
	within 90 0 gpu-handoff 111 post-stop; comes_home 60 "ended by $how at $phase"; wait_for 20 uses; goes_on "ended by $how at $phase"
	case $(cat "/proc/$deaf/cgroup") in 0::/lxc/104*) ;; *) fail "$how: it was moved: $(cat "/proc/$deaf/cgroup")" ;; esac
	kill -KILL "$deaf"
done
say "the service is deaf to TERM: the start fails in time, and it runs again when its systemd has ended it"
is_active() { pct exec 104 -- systemctl -q is-active ollama && uses; } # not while it is stopping still
deaf=/run/lab-ct/104/root/etc/systemd/system/ollama.service.d; mkdir -p $deaf
printf '[Service]\nExecStart=\nExecStart=/usr/bin/python3 /usr/local/lib/lab-uses deaf\nTimeoutStopSec=15\n' >$deaf/deaf.conf
pct exec 104 -- systemctl daemon-reload; pct exec 104 -- systemctl restart ollama; wait_for 20 uses
for way in unload unbind; do
	setting 'containers = "release"' 'deadlines.unit = 3' "way = \"$way\""; within 60 255 qm start 111; said "ollama in container 104: stop the service"
	comes_home 120 "$way, a deaf one"; wait_for 60 is_active; goes_on "$way, a deaf one"
done
rm -r $deaf; pct exec 104 -- systemctl daemon-reload; pct exec 104 -- systemctl kill -s KILL ollama; pct exec 104 -- systemctl restart ollama; wait_for 20 uses
say "the container is stopped while the VM runs: the GPU is home, and that is said"
setting 'containers = "release"'; within 60 0 qm start 111; away "before its end"; expect_rc 0 pct stop 104
within 90 0 qm stop 111; comes_home 60 "without it"
wait_for 20 sh -c 'journalctl -q -b -t gpu-handoff -n 60 | grep -q "ollama.service in container 104 was stopped for the handoff and does not start again"'
say "the driver comes back with another number for nvidia-uvm than a node has that somebody has made in the container: that is said, with the line"
old=$(number)
printf 'lxc.cgroup2.devices.allow: c %s:* rwm\n' "$old" >>/etc/pve/lxc/104.conf
within 60 0 pct start 104; wait_for 60 uses; pct exec 104 -- mknod /dev/nvidia-uvm c "$old" 0 || fail "no node"; within 60 0 qm start 111; away "before another number"
another "$old"
within 90 0 qm stop 111; comes_home 60 "with another number"; wait_for 20 uses; [ "$(number)" != "$old" ] || fail "the number is the same"
wait_for 20 sh -c "journalctl -q -b -t gpu-handoff -n 60 | grep -q 'container 104: its /dev/nvidia-uvm has the major number $old, and the driver came back with $(number).*line $(grep -n cgroup2 /etc/pve/lxc/104.conf | cut -d: -f1) of /etc/pve/lxc/104.conf'"
expect_rc 0 pct stop 104
setting; at_home "in the end"
