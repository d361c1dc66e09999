#!/bin/sh
# A container that HA manages is refused, and by the setting ignored by HA while it is stopped, by both ways, after a failed start, a start undone in the middle and a killed hook; a deaf one is ended, one that does not start again is named and not given back; without a manager that answers all is as before; what somebody has told HA meanwhile counts.
# lab: --timeout 2400
# tier: long
. /usr/local/lib/lab-home.sh
conf=/etc/pve/lxc/104.conf; mkdir -p /etc/pve/lxc /etc/pve/ha
printf 'arch: amd64\nhostname: cuda\nhookscript: local:snippets/gpu-handoff\ndev0: /dev/nvidia0\ndev1: /dev/nvidiactl\nlxc.init.cmd: hold /dev/nvidia0 /dev/nvidiactl\n' >$conf
user() { for _p in $(find /sys/fs/cgroup/lxc/104 -name cgroup.procs -exec cat {} + 2>/dev/null); do
	[ -z "$(find "/proc/$_p/fd" -lname '*/nvidia0' 2>/dev/null)" ] || echo "$_p"; done; }
uses() { [ -n "$(user)" ]; }
is_down() { [ "$(pct status 104)" = "status: stopped" ]; }
wants() { is "$(sed -n 's/^\tstate //p' /etc/pve/ha/resources.cfg)" "$1" "$2: what HA is to do"; }
# has STATE: what HA's manager says of it, none where it has let go of it
has() { [ "$(python3 -c 'import json; print(json.load(open("/etc/pve/ha/manager_status"))["service_status"].get("ct:104", {}).get("state", "none"))')" = "$1" ]; }
told() { ha-manager set ct:104 --state "$1" || fail "ha-manager set $1"; }
# back WHEN: it runs with the GPU, and is HA's again, whose file is as it was
back() { wait_for 60 uses; wants started "$1"; [ "$(cat /etc/pve/ha/resources.cfg)" = "$of_ha" ] || fail "$1: not as before: $(cat /etc/pve/ha/resources.cfg)"; wait_for 30 has started; }
# journal TEXT: our lines have it, since the mark
mark() { marked=$(date '+%Y-%m-%d %H:%M:%S'); sleep 1; }
journal() { journalctl -q -b -o cat --since "$marked" | grep -F "$1" || fail "it is not said: $1"; }
printf 'ct: 104\n\tstate started\n\tgroup lab\n\tmax_restart 2\n' >/etc/pve/ha/resources.cfg; of_ha=$(cat /etc/pve/ha/resources.cfg)
systemd-run --quiet --unit lab-ha ha-manager run
wait_for 60 uses; back "before"; card_vm
say "refused, with the line that allows it"
setting 'containers = "shutdown"' 'deadlines.holder-wait = 2'
pid=$(user); within 60 255 qm start 111; said "in use by process $pid (hold, container 104)"; said 'ha-containers = "stop"'; settled || fail "not as before"; is "$(user)" "$pid" "its process"; back refused
for way in unload unbind; do
	setting 'containers = "shutdown"' 'ha-containers = "stop"' "way = \"$way\""
	expect_text "is shut down, as 'containers' says; it is started again when the GPU is home, and HA ignores it until then" gpu-handoff plan --vm 111
	within 180 0 qm start 111; away "$way"; is_down || fail "$way: it runs"; wants ignored "$way"; has none || fail "$way: HA has a state for it"
	stays 15; is_down || fail "$way: HA has started it"
	within 180 0 qm stop 111; comes_home 120 "$way"
	say "$way: at once again, before HA has had its round"
	within 180 0 qm start 111; away "$way, again"; is_down || fail "$way, again: it runs"; within 180 0 qm stop 111; comes_home 120 "$way, again"; back "$way"
	qm set 111 --args --no-such-option >/dev/null; may_begin=8000; fails "$way, a start that fails" qm start 111; qm set 111 --delete args >/dev/null; back "$way, failed"
	undone "$way" is_down; back "$way, undone"; killed "$way" is_down; back "$way, killed"
done
say "the hook is killed while HA lets go of it, and while it is shut down; and is told to end meanwhile"
setting 'containers = "shutdown"' 'ha-containers = "stop"'
is_ignored() { grep -q ignored /etc/pve/ha/resources.cfg; }
for signal in KILL TERM; do for moment in is_ignored "has none" is_down; do
	gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!
	until eval "$moment"; do sleep 0.1; done; kill -$signal $run; wait $run 2>/dev/null; cat /root/said
	within 180 0 gpu-handoff 111 post-stop; comes_home 120 "$signal: $moment"; back "$signal: $moment"
done; done
say "somebody has told HA to leave it stopped: it stays so, and that is said"
mark; within 180 0 qm start 111; away "for that"; told disabled
within 180 0 qm stop 111; comes_home 120 "with it disabled"; is_down || fail "it was started"; wants disabled "by somebody"
journal 'HA has it "disabled" by now, and it is left so'; told started; back "by somebody"
say "somebody gives it back meanwhile: HA cannot start it, and that is said; in error it is left alone"
mark; within 180 0 qm start 111; away "for that"; told started; wait_for 60 has error
within 180 0 qm stop 111; comes_home 120 "with it in error"; journal 'is in "error" for HA'
LAB_BY_HA=1 pct start 104; wait_for 20 uses; within 60 255 qm start 111; said 'is "error" for HA'; settled || fail "not as before"
told disabled; wait_for 60 is_down; wait_for 20 has disabled; told started; back "from error"
say "one that HA has ignored for long stays so"
told ignored; wait_for 30 has none; within 180 0 qm start 111; away "ignored before"; within 180 0 qm stop 111; comes_home 120 "ignored before"
wait_for 60 uses; wants ignored "ignored before"; told started; back "ignored before"
say "it does not start again: it is named, and not given back"
mark; within 180 0 qm start 111; away "for that"; echo 'dev2: /dev/no-such-node' >>$conf
within 180 0 qm stop 111; comes_home 120 "without it"; is_down || fail "it was started"; wants ignored "without it"; journal ', and HA ignores it still'
sed -i /no-such-node/d $conf; told started; back "by hand"
say "it is started by hand while the GPU is stranded: HA has it back"
gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!; wait_for 120 has_driver "$gpu" vfio-pci; kill -KILL $run 2>/dev/null; wait $run 2>/dev/null
systemctl stop "$watch"; wants ignored stranded; within 120 0 pct start 104; said "is home after"; back stranded; comes_home 60 stranded
say "HA's manager does not run: nothing is touched, and it is given back"
systemctl stop lab-ha; within 180 255 qm start 111; said "HA was asked to ignore container 104, and has not let go of it within"; comes_home 60 "without a manager"
uses || fail "it was stopped"; wants started "without a manager"; systemd-run --quiet --unit lab-ha ha-manager run
say "it does not shut down when it is asked to: it is ended, and HA has it back all the same"
sed -i 's/^lxc.init.*/lxc.init.cmd: sh -c "trap : PWR TERM; exec 3<\/dev\/nvidia0; while :; do sleep 1; done"/' $conf
told ignored; wait_for 30 has none; within 60 0 pct stop 104; told started; back "a deaf one"
within 240 0 qm start 111; away "with one that was ended"; is_down || fail "deaf: it runs"; within 180 0 qm stop 111; comes_home 120 "in the end"; back "in the end"
systemctl stop lab-ha; rm -r /etc/pve/ha /etc/pve/local/lrm_status; within 60 0 pct stop 104; rm $conf; setting; settled || fail "not as before"
