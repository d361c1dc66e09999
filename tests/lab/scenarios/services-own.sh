#!/bin/sh
# The persistence daemon, nvidia-powerd, the fabric manager where all GPUs leave, and MPS by the name of its service: stopped, and given back at home, after a failed start, after one that was undone, and after a run that was killed; deaf to TERM; refused.
# lab: --timeout 2400
# tier: long
. /usr/local/lib/lab-home.sh
unit=
holds() { [ -n "$(find "/proc/$(systemctl show -P MainPID "$unit")/fd" -lname /dev/nvidia0 2>/dev/null)" ]; }
down() { [ "$(systemctl is-active "$unit")" = inactive ]; }
service() { # WORD LINE...
	_word=$1; shift; { printf '[Service]\nExecStart=/usr/bin/python3 /usr/local/lib/lab-uses %s\n' "$_word"; printf '%s\n' "$@"; } >"/run/systemd/system/$unit.service"
	systemctl daemon-reload; systemctl restart "$unit"; wait_for 20 holds; }
runs() { systemctl -q is-active "$unit" && holds; } # not while it is stopping still
users() { systemctl show -p Id,ActiveState,SubState "$unit"; }
card_vm
for unit in nvidia-persistenced nvidia-powerd nvidia-fabricmanager mps; do
	named=; [ $unit = mps ] && named='services = "mps"'
	case $unit in nvidia-persistenced) systemctl start $unit; wait_for 20 holds ;; *) service - ;; esac; remember
	for way in unload unbind; do
		say "$unit, $way"
		setting "way = \"$way\"" "$named"
		within 60 0 qm start 111; away "$unit, $way"; wait_for 1 down
		within 90 0 qm stop 111; comes_home 60 "$unit, $way"; wait_for 20 holds; as_before "$unit, $way"
		qm set 111 --args --no-such-option >/dev/null; may_begin=8000; fails "$unit, $way, a start that fails" qm start 111; qm set 111 --delete args >/dev/null; wait_for 20 holds
		undone "$unit, $way" down; wait_for 20 holds
		killed "$unit, $way" down; wait_for 20 holds; as_before "$unit, $way, killed"
	done
	say "$unit, refused"
	setting 'services = "refuse"' 'deadlines.holder-wait = 1'; pid=$(systemctl show -P MainPID $unit)
	within 60 255 qm start 111; said "in use by process $pid ("; said "services = \"$unit.service\""; settled || fail "not as before"; is "$(systemctl show -P MainPID $unit)" "$pid" "$unit: its process"
	say "$unit, deaf to TERM: the start fails in time, and it runs again when systemd has ended it"
	if [ $unit = nvidia-persistenced ]; then
		mkdir -p /run/systemd/system/$unit.service.d
		printf '[Service]\nType=simple\nExecStart=\nExecStart=/usr/bin/python3 /usr/local/lib/lab-uses deaf\nTimeoutStopSec=15\n' >/run/systemd/system/$unit.service.d/deaf.conf
		systemctl daemon-reload; systemctl restart $unit; wait_for 20 holds
	else service deaf TimeoutStopSec=15; fi
	for way in unload unbind; do
		setting 'deadlines.unit = 3' "way = \"$way\"" "$named"; within 60 255 qm start 111; said "$unit: stop the service"; comes_home 120 "$unit, $way, deaf"; wait_for 60 runs
	done
	systemctl kill -s KILL $unit; systemctl stop $unit; rm -rf /run/systemd/system/$unit.service.d; systemctl daemon-reload; setting
done
