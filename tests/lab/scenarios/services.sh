#!/bin/sh
# Services that use the GPU: one that is named is stopped, and runs again at home, after a failed start, one undone in the middle and a killed run; others are refused, one that is masked is left alone, and one whose start takes for ever is named.
# lab: --timeout 1200
# tier: full
. /usr/local/lib/lab-home.sh
# service NAME WORD LINE...: a service that uses the GPU where there is one, and runs without one as well
service() { _name=$1 _word=$2; shift 2
	{ printf '[Service]\nExecStart=/usr/bin/python3 /usr/local/lib/lab-uses %s\n' "$_word"; printf '%s\n' "$@"; } >"/run/systemd/system/$_name.service"
	systemctl daemon-reload; systemctl restart "$_name"; wait_for 20 uses "$_name"; }
pid_of() { systemctl show -P MainPID "$1"; }
uses() { [ -n "$(find "/proc/$(pid_of "$1")/fd" -lname /dev/nvidia0)" ]; }
down() { ! systemctl -q is-active ollama && ! systemctl -q is-active jellyfin; }
users() { systemctl show -p Id,ActiveState,SubState ollama jellyfin idle; }
service ollama -; service jellyfin -; service idle -; systemctl stop idle; card_vm; remember

say "not named: refused, and told how to allow it"
pid=$(pid_of ollama)
within 60 255 qm start 111; said "in use by process $pid (python3, ollama.service)"; said "systemctl stop ollama.service, or services = \"ollama.service\" in /etc/gpu-handoff/config.toml"
settled || fail "not as before"; is "$(pid_of ollama)" "$pid" "its process"
for bad in pvedaemon dbus 'ollama auto' '../x'; do
	setting "services = \"$bad\""; within 60 3 gpu-handoff plan --vm 111; said "names of services"
done

for way in unload unbind; do
	say "$way: named, it is stopped and started again"
	setting "way = \"$way\"" 'services = "ollama jellyfin idle"'
	expect_text "ollama.service has the GPU node of $gpu, /dev/nvidiactl open and is stopped" gpu-handoff plan --vm 111
	within 60 0 qm start 111; away "$way"
	for name in ollama jellyfin idle; do is "$(systemctl is-active $name)" inactive "$name"; done
	within 90 0 qm stop 111; comes_home 60 "$way"
	for name in ollama jellyfin; do wait_for 20 uses $name; done; as_before "$way"
	is "$(systemctl is-active idle)" inactive "what did not run"
	qm set 111 --args --no-such-option >/dev/null
	fails "$way, a start that fails" qm start 111; qm set 111 --delete args >/dev/null
	for name in ollama jellyfin; do wait_for 20 uses $name; done; as_before "$way, a start that fails"
	gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!
	wait_for 30 sh -c "! systemctl -q is-active ollama"; kill -KILL $run; wait $run 2>/dev/null
	within 90 0 gpu-handoff 111 post-stop; comes_home 60 "$way, killed when it was stopped"
	for name in ollama jellyfin; do wait_for 20 uses $name; done; as_before "$way, killed when it was stopped"
	undone "$way" down; for name in ollama jellyfin; do wait_for 20 uses $name; done; as_before "$way, undone"
	killed "$way" down; for name in ollama jellyfin; do wait_for 20 uses $name; done; as_before "$way, killed"
done
say "ended by TERM when it was stopped: it runs again"
# With a shell of its own: what a slow host did not manage after the signal is the watcher's once the caller has ended.
sh -c 'gpu-handoff 111 pre-start >/root/said 2>&1; exit $?' & shell=$!
wait_for 30 sh -c "! systemctl -q is-active ollama"; pkill -TERM -P $shell -x gpu-handoff; wait $shell 2>/dev/null; cat /root/said
comes_home 60 "TERM"; for name in ollama jellyfin; do wait_for 20 uses $name; done; as_before "TERM"
systemctl stop jellyfin

say "another user keeps the GPU: what was not stopped for nothing"
setting 'deadlines.holder-wait = 1' 'services = "ollama"'; pid=$(pid_of ollama)
hold_open /dev/nvidia0; within 60 255 qm start 111; said "in use by process $holder"; kill $holder; wait $holder 2>/dev/null
is "$(pid_of ollama)" "$pid" "its process"

say "what needs it goes down with it, and runs again; a job that is at work is not broken off"
setting 'services = "ollama"'; printf '[Unit]\nRequires=ollama.service\n[Service]\nExecStart=/usr/bin/sleep 1000\n' >/run/systemd/system/exporter.service
systemctl daemon-reload; systemctl restart exporter; pid=$(pid_of ollama)
within 60 255 qm start 111; said "exporter.service needs it and would be stopped as well"; said "name exporter.service in 'services' as well"; is "$(pid_of ollama)" "$pid" "its process"
setting 'services = "ollama exporter"'
expect_text "exporter.service needs ollama.service, and is stopped and started again with it" gpu-handoff plan --vm 111
within 60 0 qm start 111; away "with what needs it"; is "$(systemctl is-active exporter)" inactive exporter
within 90 0 qm stop 111; comes_home 60 "with what needs it"; wait_for 20 uses ollama; wait_for 20 systemctl -q is-active exporter; systemctl stop exporter ollama
printf '[Service]\nType=oneshot\nExecStart=/usr/bin/python3 /usr/local/lib/lab-uses\n' >/run/systemd/system/ollama.service; systemctl daemon-reload; systemctl --no-block start ollama
wait_for 20 fuser -s /dev/nvidia0; pid=$(fuser /dev/nvidia0 2>/dev/null)
within 60 255 qm start 111; said 'ollama.service may be stopped for it, but is "activating"'; is "$(fuser /dev/nvidia0 2>/dev/null)" "$pid" "its process"; systemctl stop ollama

say "deaf to TERM: the start fails in time, and it runs again when systemd has ended it"
setting 'deadlines.unit = 3' 'services = "ollama"'; service ollama deaf TimeoutStopSec=15
within 60 255 qm start 111; said "ollama: stop the service"
comes_home 120 "deaf"; wait_for 60 uses ollama

say "one that needs another, older than that, and deaf: it is asked first, and both run when the start has failed"
setting 'deadlines.unit = 3' 'services = "ollama webui"'; service ollama -
service webui deaf TimeoutStopSec=15 '[Unit]' 'Requires=ollama.service' 'After=ollama.service'
kill -KILL "$(pid_of ollama)"; wait_for 20 sh -c '! systemctl -q is-active ollama'; systemctl start ollama; wait_for 20 uses ollama; pid=$(pid_of ollama)
[ "$(pid_of webui)" -lt "$pid" ] || fail "it is not the older one"
within 60 255 qm start 111; said "webui: stop the service"; is "$(pid_of ollama)" "$pid" "the other's process"
comes_home 120 "deaf, and needs another"; wait_for 60 uses webui; uses ollama || fail "it does not run"
systemctl kill -s KILL webui; systemctl stop webui; rm /run/systemd/system/webui.service; systemctl daemon-reload

say "it does not start again: that is said, and the GPU is home"
setting 'services = "ollama"'
for how in broken masked; do
	service ollama - 'ExecStartPre=/usr/bin/test ! -e /root/broken'
	within 60 0 qm start 111; away "$how"
	case $how in broken) touch /root/broken ;; masked) rm /run/systemd/system/ollama.service; systemctl -q mask --runtime ollama ;; esac
	within 90 0 qm stop 111; comes_home 60 "$how"
	wait_for 20 sh -c 'journalctl -q -b -t gpu-handoff -n 60 | grep -q "ollama.service was stopped for the handoff and does not start again"'
	is "$(systemctl is-active ollama | sed s/failed/inactive/)" inactive "$how"
	case $how in broken) rm /root/broken ;; masked) systemctl -q unmask --runtime ollama ;; esac
done
say "its start takes for ever: that is said, the GPU is home, and systemd goes on with it"
setting 'services = "ollama"' 'deadlines.unit = 4'; service ollama - 'ExecStartPre=/bin/sh -c "[ ! -e /root/broken ] || sleep 1000"'
within 60 0 qm start 111; away "before such a start"; touch /root/broken
within 90 0 qm stop 111; comes_home 60 "such a start"
wait_for 20 sh -c 'journalctl -q -b -t gpu-handoff -n 60 | grep -q "ollama.service was stopped for the handoff and has not started again within 4 s, systemd goes on with it"'
is "$(systemctl is-active ollama)" activating "its state"; systemctl stop ollama; rm /root/broken
say "masked while it runs: nothing would start it again, and it is left alone"
setting 'services = "ollama"' 'deadlines.holder-wait = 1'; service ollama -; pid=$(pid_of ollama); rm /run/systemd/system/ollama.service; systemctl -q mask --runtime ollama
within 60 255 qm start 111; said 'ollama.service may be stopped for it, but ollama.service is "masked" for systemd'; is "$(pid_of ollama)" "$pid" "its process"; settled || fail "not as before"
systemctl stop ollama; systemctl -q unmask --runtime ollama
setting; at_home "in the end"
