#!/bin/sh
# The driver comes back with another number for nvidia-uvm: nodes in containers that run on are right without a restart, by each kind of line; one that was started without the GPU has it when it is home; two are shut down and started beside each other.
# lab: --timeout 1800
# tier: long
. /usr/local/lib/lab-home.sh
mkdir -p /etc/lab/ct/104 /etc/pve/lxc; card_vm
inside() { pct exec "$1" -- stat -c '%Hr:%Lr %a %u' "/dev/$2" 2>/dev/null; }
opens() { pct exec "$1" -- hold --for 0.1 "/dev/$2" >/root/opened 2>&1; }
log() { journalctl -q -b -t gpu-handoff --since "$1"; }
logged() { log "$1" | grep -q "$2"; }
of() { cat "/sys/fs/cgroup/lxc/104/ns/system.slice/$1.service/cgroup.procs" 2>/dev/null; }
uses() { [ -n "$(find "/proc/$(of ollama | head -n 1)/fd" -lname '*/nvidia-uvm' 2>/dev/null)" ]; }
goes_on() { is "$(of other) $(lxc-info -n 104 -pH) $(lxc-info -n 105 -pH)" "$running" "$1: the containers" >/dev/null; }
# fits CTID WHEN: its node is the driver's, and is opened
fits() { is "$(inside "$1" nvidia-uvm | cut -d' ' -f1)" "$(number):0" "$2: nvidia-uvm in container $1"; opens "$1" nvidia-uvm || fail "$2: container $1 does not open it: $(cat /root/opened)"; }
old=$(number)
unit() { printf '[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=%s\n' "$2" >"/etc/lab/ct/104/$1.service"; }
unit ollama "/usr/local/bin/hold /dev/nvidia0 /dev/nvidiactl /dev/nvidia-uvm"; unit other "/usr/bin/sleep infinity"
printf 'arch: amd64\ndev0: /dev/nvidia0\ndev1: /dev/nvidiactl\ndev2: /dev/nvidia-uvm,mode=0640,uid=1000\nlxc.init.cmd: systemd\n' >/etc/pve/lxc/104.conf
printf 'arch: amd64\nlxc.cgroup2.devices.allow: c 195:* rwm\nlxc.cgroup2.devices.allow: c %s:* rwm\nlxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\nlxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file\n' "$old" >/etc/pve/lxc/105.conf
within 60 0 pct start 104; within 60 0 pct start 105; wait_for 60 uses
running="$(of other) $(lxc-info -n 104 -pH) $(lxc-info -n 105 -pH)"; fits 104 "at first"; fits 105 "at first"
setting 'containers = "release"'
for n in 1 2 3 4 5 6 7 8 9 10; do
	was=$(number); since=$(date '+%F %T'); within 60 0 qm start 111; away "round $n"; another "$was"
	within 90 0 qm stop 111; comes_home 60 "round $n"; wait_for 20 uses; goes_on "round $n"
	[ "$(number)" != "$was" ] || fail "round $n: the number is the same"
	fits 104 "round $n"; fits 105 "round $n"; is "$(inside 104 nvidia-uvm)" "$(number):0 640 1000" "round $n: as its config has it"
	is "$(grep -c ' /dev/nvidia-uvm ' "/proc/$(lxc-info -n 104 -pH)/mountinfo")" 1 "round $n: mounts on it"
	logged "$since" "has the major number" && fail "round $n: it is said to be wrong"
	if [ "$(number)" = "$old" ]; then logged "$since" "line 3 of" && fail "round $n: its line fits"
	else wait_for 10 logged "$since" "container 105: line 3 of /etc/pve/lxc/105.conf allows 'c $old:\*', and the driver came back with $(number)"; fi
done
say "a start that fails, a killed hook"
qm set 111 --args --no-such-option >/dev/null; may_begin=8000; fails "a start that fails" qm start 111; qm set 111 --delete args >/dev/null; wait_for 20 uses; fits 104 "a start that fails"; fits 105 "a start that fails"
was=$(number); gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!; wait_for 30 test ! -d /sys/module/nvidia; kill -KILL $run; wait $run 2>/dev/null; another "$was"
within 90 0 gpu-handoff 111 post-stop; comes_home 60 killed; wait_for 20 uses; goes_on killed; fits 104 killed; fits 105 killed
say "a container that lays a link there: it is left alone, and that is said"
pct exec 105 -- sh -c 'umount /dev/nvidia-uvm; rm -f /dev/nvidia-uvm; ln -s /dev/null /dev/nvidia-uvm'; since=$(date '+%F %T'); null=$(stat -c '%Hr:%Lr %a %i' /dev/null)
was=$(number); within 60 0 qm start 111; another "$was"; within 90 0 qm stop 111; comes_home 60 "with a link"
wait_for 10 logged "$since" "container 105.*see that its nodes fit: failed.*its /dev/nvidia-uvm: something else lies there. Hint: 'pct reboot 105'"
is "$(stat -c '%Hr:%Lr %a %i' /dev/null)" "$null" "what it leads to"; is "$(pct exec 105 -- readlink /dev/nvidia-uvm)" /dev/null "the link"; fits 104 "beside a link"
expect_rc 0 pct stop 105; expect_rc 0 pct stop 104; rm /etc/pve/lxc/104.conf /etc/pve/lxc/105.conf
say "in the namespaces of an unprivileged one"
/usr/local/lib/lab-unprivileged >/root/said 2>&1 || fail "$(cat /root/said)"; cat /root/said
is "$(grep -cxF '[{"Ok":null},{"Ok":null},{"Err":"something else lies there"},{"Err":"something else lies there"},{"Err":"entity not found"},{"Ok":null}]' /root/said)" 2 "what became of each, twice"
said '[{"Err":"it has ended"}'; said "/dev/nvidia0 character special file 195:0 640 1000"; said "/dev/link symbolic link"; said opened
is "$(tail -n 1 /root/said)" "$(($(grep -c ' /dev/' /proc/self/mountinfo) + 3))" "mounts below /dev, one for each"
say "one that went on without the GPU has it when that is home"
printf 'arch: amd64\nhookscript: local:snippets/gpu-handoff\nlxc.cgroup2.devices.allow: c 195:* rwm\nlxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\nlxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,optional,create=file\n' >/etc/pve/lxc/106.conf
setting 'container-start = "go-on"'; within 60 0 qm start 111; away "for one that goes on"
mkdir /root/aside; mv /dev/nvidia0 /dev/nvidiactl /root/aside 2>/dev/null
within 60 0 pct start 106; said "nothing is done about it"; opens 106 nvidia0 && fail "it has it"; init=$(lxc-info -n 106 -pH)
mv /root/aside/* /dev/ 2>/dev/null
within 90 0 qm stop 111; comes_home 60 "for one that went on"
for node in nvidia0 nvidiactl; do is "$(inside 106 $node | cut -d' ' -f1)" "$(stat -c %Hr:%Lr /dev/$node)" "$node in it"; opens 106 $node || fail "it does not open $node: $(cat /root/opened)"; done
is "$(lxc-info -n 106 -pH)" "$init" "it runs on"; expect_rc 0 pct stop 106; rm /etc/pve/lxc/106.conf
say "two go down beside each other, and come up so"
printf '#!/bin/sh\ntrap "sleep 6 3<&-; exit 0" TERM\nexec 3</dev/nvidia0\nwhile :; do sleep 0.2 3<&-; done\n' >/usr/local/bin/slow; chmod 755 /usr/local/bin/slow
printf '#!/bin/sh\n[ "$2" != pre-start ] || sleep 4\n' | mkhook slow
for ctid in 107 108; do printf 'arch: amd64\nhookscript: local:snippets/slow\ndev0: /dev/nvidia0\nlxc.init.cmd: /usr/local/bin/slow\n' >/etc/pve/lxc/$ctid.conf; within 60 0 pct start $ctid; done
both_run() { for _c in 107 108; do find "/sys/fs/cgroup/lxc/$_c" -name cgroup.procs -exec cat {} + | while read -r _p; do find "/proc/$_p/fd" -lname /dev/nvidia0 2>/dev/null; done | grep -q . || return 1; done; }
at_once() { pgrep -f "$1 107" >/dev/null && pgrep -f "$1 108" >/dev/null; }
setting 'containers = "shutdown"'; wait_for 30 both_run
within 60 0 gpu-handoff plan --vm 111; said "container 107 has"; said "container 108 has"
within 5 0 sh -c 'qm start 111 >/root/out 2>&1 & echo $! >/root/run'; wait_for 40 at_once "lxc-stop -n"; wait_for 90 has_driver "$gpu" vfio-pci; wait_for 60 qm status 111; cat /root/out
for ctid in 107 108; do is "$(pct status $ctid)" "status: stopped" "$ctid"; grep -q "container $ctid  *shut it down" /root/out || fail "no line of $ctid"; done
wait_for 60 sh -c 'qm status 111 | grep -q running'; qm stop 111 >/root/out 2>&1 & wait_for 60 at_once "pct start"; wait $!; comes_home 90 "with both"; wait_for 30 both_run
say "one that is started again with an old line is named"
was=$(number); since=$(date '+%F %T')
printf 'arch: amd64\nlxc.cgroup2.devices.allow: c 195:* rwm\nlxc.cgroup2.devices.allow: c %s:* rwm\nlxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\nlxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file\nlxc.init.cmd: /usr/local/bin/slow\n' "$was" >/etc/pve/lxc/109.conf
within 60 0 pct start 109; within 120 0 qm start 111; away "for one with an old line"; another "$was"
within 150 0 qm stop 111; comes_home 90 "for one with an old line"; wait_for 30 both_run; [ "$(number)" != "$was" ] || fail "the number is the same"
wait_for 10 logged "$since" "container 109: it may not open its /dev/nvidia-uvm, since the driver came back with the major number $(number). Hint: let line 3 of /etc/pve/lxc/109.conf"
expect_rc 0 pct stop 109; rm /etc/pve/lxc/109.conf
say "the hook is killed while both go down"
gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!; wait_for 40 at_once "lxc-stop -n"; kill -KILL $run; wait $run 2>/dev/null
within 150 0 gpu-handoff 111 post-stop; is_well() { settled && both_run; }; wait_for 150 is_well
for ctid in 107 108; do expect_rc 0 pct stop $ctid; rm /etc/pve/lxc/$ctid.conf; done
setting; at_home "in the end"
