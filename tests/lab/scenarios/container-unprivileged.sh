#!/bin/sh
# As Proxmox makes containers: an unprivileged one, of which a service alone is stopped inside, also when the driver comes back with another number; and one made from an OCI image, whose only program is asked to end by the image's signal, or ended where it is deaf to that, and started again.
# lab: --timeout 2400
# tier: long
. /usr/local/lib/lab-home.sh
mkdir -p /etc/lab/ct/104 /etc/pve/lxc; card_vm
inside() { pct exec "$1" -- stat -c '%Hr:%Lr %a %u:%g' "/dev/$2" 2>/dev/null; }
of() { cat "/sys/fs/cgroup/lxc/104/ns/system.slice/$1.service/cgroup.procs" 2>/dev/null; }
uses() { [ -n "$(find "/proc/$(of ollama | head -n 1)/fd" -lname '*/nvidia-uvm' 2>/dev/null)" ]; }
goes_on() { is "$(of other) $(lxc-info -n 104 -pH)" "$running" "$1: the rest of the container" >/dev/null; }
unit() { printf '[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=%s\n' "$2" >"/etc/lab/ct/104/$1.service"; }
unit ollama "/usr/local/bin/hold /dev/nvidia0 /dev/nvidiactl /dev/nvidia-uvm"; unit other "/usr/bin/sleep infinity"
printf 'arch: amd64\nhostname: cuda\nunprivileged: 1\ndev0: /dev/nvidia0\ndev1: /dev/nvidiactl\ndev2: /dev/nvidia-uvm,mode=0640,gid=44\nlxc.init.cmd: systemd\n' >/etc/pve/lxc/104.conf
within 60 0 pct start 104; wait_for 60 uses; wait_for 20 test -n "$(of other)"; running="$(of other) $(lxc-info -n 104 -pH)"
is "$(awk '/^Uid/ { print $2 }' "/proc/$(of ollama | head -n 1)/status")" 100000 "its user on the host"

say "refused, with the line that allows it"
pid=$(of ollama); within 60 255 qm start 111; said "in use by process $pid (hold"; said 'pct exec 104 -- systemctl stop ollama.service, or containers = "release"'; at_home refused
for way in unload unbind; do
	setting 'containers = "release"' "way = \"$way\""
	within 60 0 qm start 111; said "ollama in container 104"; away "$way"; is "$(of ollama)" "" "$way: the service"; goes_on "$way"
	within 90 0 qm stop 111; comes_home 60 "$way"; wait_for 20 uses; goes_on "$way, at home"
	is_stopped() { [ -z "$(of ollama)" ]; }
	undone "$way" is_stopped; wait_for 20 uses; killed "$way" is_stopped; wait_for 20 uses; goes_on "$way, undone and killed"
	qm set 111 --args --no-such-option >/dev/null; may_begin=8000; fails "$way, a start that fails" qm start 111; qm set 111 --delete args >/dev/null; wait_for 20 uses
done
setting 'containers = "release"'
for round in 1 2 3; do
	was=$(number); within 60 0 qm start 111; away "round $round"; another "$was"
	within 90 0 qm stop 111; comes_home 60 "round $round"; [ "$(number)" != "$was" ] || fail "the number is the same"
	wait_for 20 uses; goes_on "round $round"; is "$(inside 104 nvidia-uvm)" "$(number):0 640 0:44" "round $round: the node, as its config has it"
done
say "it is shut down and started again"
within 60 0 pct stop 104; sed -i 's/^lxc.init.*/lxc.init.cmd: hold \/dev\/nvidia0 \/dev\/nvidiactl/' /etc/pve/lxc/104.conf
of_ct() { find "/sys/fs/cgroup/lxc/$1" -name cgroup.procs -exec cat {} + 2>/dev/null; }
uses() { for _p in $(of_ct "$ct"); do [ -n "$(find "/proc/$_p/fd" -lname '*/nvidia0' 2>/dev/null)" ] && return 0; done; return 1; }
is_down() { [ "$(pct status "$ct")" = "status: stopped" ]; }
goes() {
	for way in unload unbind; do
		setting 'containers = "shutdown"' "way = \"$way\""
		within 120 0 qm start 111; said "container $ct"; away "$ct, $way"; is_down || fail "$ct, $way: it runs"
		within 120 0 qm stop 111; comes_home 90 "$ct, $way"; wait_for 60 uses
		qm set 111 --args --no-such-option >/dev/null; may_begin=8000; fails "$ct, $way, a start that fails" qm start 111; qm set 111 --delete args >/dev/null; wait_for 60 uses
		undone "$ct, $way" is_down; wait_for 60 uses; killed "$ct, $way" is_down; wait_for 60 uses
	done; within 60 0 pct stop $ct; }
ct=104; within 60 0 pct start 104; wait_for 60 uses; goes
say "made from an OCI image: its program is the first process, and there is no systemd"
printf 'arch: amd64\nhostname: whisper\nunprivileged: 1\nostype: unmanaged\nentrypoint: /usr/local/bin/hold /dev/nvidia0 /dev/nvidiactl\nenv: PATH=/usr/bin\0NVIDIA_VISIBLE_DEVICES=all\ndev0: /dev/nvidia0\ndev1: /dev/nvidiactl\nlxc.signal.halt: SIGINT\n' >/etc/pve/lxc/105.conf
ct=105; within 60 0 pct start 105; wait_for 60 uses; is "$(cat "/proc/$(lxc-info -n 105 -pH)/comm")" hold "its first process"
setting 'containers = "release"' 'deadlines.holder-wait = 2'; within 60 255 qm start 111; said "in use by process $(lxc-info -n 105 -pH) (hold, container 105)"; said 'Hint: pct shutdown 105, or containers = "shutdown" in /etc/gpu-handoff/config.toml'; at_home "release of what has no services"
goes
say "deaf to that signal: it is ended, and started again"
printf '#!/bin/sh\ntrap : INT TERM\nexec 3</dev/nvidia0\nwhile :; do sleep 1 3<&-; done\n' >/usr/local/bin/deaf; chmod 755 /usr/local/bin/deaf
sed -i 's|^entrypoint:.*|entrypoint: /usr/local/bin/deaf|' /etc/pve/lxc/105.conf; within 60 0 pct start 105; wait_for 60 uses
for way in unload unbind; do
	setting 'containers = "shutdown"' 'deadlines.container = 5' "way = \"$way\""
	within 120 0 qm start 111; away "$way, a deaf one"; is_down || fail "$way, deaf: it runs"
	within 120 0 qm stop 111; comes_home 90 "$way, a deaf one"; wait_for 60 uses
done
within 60 0 pct stop 105; rm /etc/pve/lxc/104.conf /etc/pve/lxc/105.conf; setting; at_home "in the end"
