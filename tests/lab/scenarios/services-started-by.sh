#!/bin/sh
# A service that a timer or a path unit starts is stopped with that, and both are as they were; one with Restart=always is, too; one whose stop leaves what it has started is not stopped, and one that somebody has started meanwhile is named; what is left of one that has failed, and of one in its pause before a restart, is not taken for a service that runs.
# lab: --timeout 1200
# tier: full
. /usr/local/lib/lab-home.sh
units=/run/systemd/system
service() { { printf '[Service]\nExecStart=/usr/bin/python3 /usr/local/lib/lab-uses\n'; printf '%s\n' "$@"; } >$units/lab-user.service; systemctl daemon-reload; }
holds() { [ -n "$(find "/proc/$(systemctl show -P MainPID lab-user)/fd" -lname /dev/nvidia0 2>/dev/null)" ]; }
states() { for _unit; do systemctl is-active "$_unit"; done | tr '\n' ' '; }
card_vm; setting 'services = "lab-user"'
printf '[Timer]\nOnActiveSec=1s\nOnUnitInactiveSec=1s\nAccuracySec=100ms\n' >$units/lab-user.timer
printf '[Path]\nPathExists=/run/lab-wanted\n' >$units/lab-user.path; touch /run/lab-wanted
for kind in timer path; do
	service; systemctl start lab-user.$kind; wait_for 30 holds
	back() { holds && [ "$(states lab-user.$kind)" = "active " ]; }
	down() { [ "$(states lab-user)" = "inactive " ]; }
	for way in unload unbind; do
		say "$kind, $way"
		setting 'services = "lab-user"' "way = \"$way\""
		within 60 0 qm start 111; away "$kind, $way"; stays 5; is "$(states lab-user.$kind lab-user)" "inactive inactive " "$kind, $way: both"; away "$kind, $way, later"
		within 90 0 qm stop 111; comes_home 60 "$kind, $way"; wait_for 30 back
		undone "$kind, $way" down; wait_for 30 back; killed "$kind, $way" down; wait_for 30 back
	done
	systemctl stop lab-user.$kind lab-user
done
rm $units/lab-user.timer $units/lab-user.path
say "it starts again whenever it ends"
service Restart=always RestartSec=1; systemctl start lab-user; wait_for 20 holds
within 60 0 qm start 111; away restarting; stays 5; is "$(states lab-user)" "inactive " "the service"
within 90 0 qm stop 111; comes_home 60 restarting; wait_for 20 holds
say "its stop would leave what it has started: it is not stopped"
service KillMode=process; systemctl restart lab-user; wait_for 20 holds; setting 'services = "lab-user"' 'deadlines.holder-wait = 1'
within 60 255 qm start 111; said "lab-user.service has KillMode=process, and what it has started goes on when it is stopped"; holds || fail "it was stopped"; at_home "with KillMode=process"
say "somebody starts it while the GPU is away: it runs without, is left alone, and named"
printf '[Service]\nExecStart=/bin/sh -c "hold /dev/nvidia0; exec sleep infinity"\n' >$units/lab-user.service
systemctl stop lab-user; systemctl daemon-reload; systemctl start lab-user; wait_for 20 fuser -s /dev/nvidia0; setting 'services = "lab-user"'
named() { journalctl -q -b -o cat -t gpu-handoff | grep -q 'lab-user: it runs already, since somebody has started it meanwhile, and may do without the GPU. Hint: systemctl restart lab-user.service'; }
within 60 0 qm start 111; away "before somebody starts it"; ! named || fail "named before"; systemctl start lab-user; pid=$(systemctl show -P MainPID lab-user)
within 90 0 qm stop 111; comes_home 60 "with it running"; wait_for 20 named; is "$(systemctl show -P MainPID lab-user)" "$pid" "its process"
systemctl stop lab-user
say "in the pause before its restart, with something left of it that uses the GPU: named, and not taken for stopped"
service Restart=always RestartSec=1000 KillMode=none; systemctl restart lab-user; wait_for 20 holds
printf '[Service]\nExecStart=/bin/sh -c "hold /dev/nvidia0 & sleep 2; exit 1"\nRestart=always\nRestartSec=1000\nKillMode=process\n' >$units/lab-user.service
systemctl daemon-reload; systemctl kill -s KILL lab-user; systemctl stop lab-user; systemctl --no-block start lab-user
paused() { [ "$(systemctl show -P SubState lab-user)" = auto-restart ]; }
wait_for 30 paused; wait_for 10 fuser -s /dev/nvidia0
setting 'services = "lab-user"' 'deadlines.holder-wait = 1'
within 60 255 qm start 111; said "lab-user.service may be stopped for it, but is "; at_home "in its pause"; paused || fail "its state has changed"
fuser -k -KILL /dev/nvidia0; systemctl stop lab-user
say "it has failed, with something left of it that uses the GPU"
printf '[Service]\nExecStart=/bin/sh -c "hold /dev/nvidia0 & sleep 2; exit 1"\nKillMode=process\n' >$units/lab-user.service
systemctl daemon-reload; systemctl --no-block start lab-user; failed() { systemctl -q is-failed lab-user; }
wait_for 30 failed; fuser -s /dev/nvidia0 || fail "nobody uses it"
within 60 255 qm start 111; said "lab-user.service may be stopped for it, but is \"failed\""; at_home failed; failed || fail "its state has changed"
fuser -k -KILL /dev/nvidia0; rm -f /run/lab-wanted $units/lab-user.service; systemctl daemon-reload; systemctl reset-failed
setting; wait_for 10 settled
