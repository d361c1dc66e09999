#!/bin/sh
# A service that uses only the card that stays: it is stopped where the driver has to let go, and runs again as soon as the other one has left; the fabric manager and a desktop there are not stopped.
# lab: --cards 2
# tier: full
. /usr/local/lib/lab-home.sh
printf '[Service]\nExecStart=/usr/local/bin/hold /dev/nvidia1 /dev/nvidiactl\n' >/run/systemd/system/jellyfin.service
systemctl daemon-reload; systemctl start jellyfin; pid() { systemctl show -P MainPID jellyfin; }
uses() { [ -n "$(find "/proc/$(pid)/fd" -lname /dev/nvidia1)" ]; }
wait_for 20 uses; card_vm; first=$(pid)
say "not named: in the way, since it may use either, with the line that takes that risk"
within 60 255 qm start 111; said 'and may use this GPU as well. Hint: take the risk with doubt = "go-on"'; is "$(pid)" "$first" "its process"
say "named"
setting 'services = "jellyfin"'
expect_text "it is started again when the other GPU has left" gpu-handoff plan --vm 111
within 60 0 qm start 111; away named; wait_for 20 uses; second=$(pid); [ "$second" != "$first" ] || fail "it was not stopped"
grep -q jellyfin $record && fail "it is on record still"
within 90 0 qm stop 111; comes_home 60 named; is "$(pid)" "$second" "its process, at home"
say "the start fails"
qm set 111 --args --no-such-option >/dev/null; fails "a start that fails" qm start 111; qm set 111 --delete args >/dev/null; wait_for 20 uses; systemctl stop jellyfin
say "the fabric manager serves the GPU that stays as well: it is not stopped unasked, and runs on"
printf '[Service]\nExecStart=/usr/local/bin/hold /dev/nvidia0 /dev/nvidia1 /dev/nvidiactl\n' >/run/systemd/system/nvidia-fabricmanager.service
systemctl daemon-reload; systemctl start nvidia-fabricmanager; pid() { systemctl show -P MainPID nvidia-fabricmanager; }; wait_for 20 uses; first=$(pid)
within 60 255 qm start 111; said "in use by process $first (hold, nvidia-fabricmanager.service)"; said 'services = "nvidia-fabricmanager.service"'; is "$(pid)" "$first" "its process"; settled || fail "not as before"
systemctl stop nvidia-fabricmanager; rm /run/systemd/system/nvidia-fabricmanager.service
say "a desktop on the GPU that stays: its display manager is neither stopped nor offered to be, and with that risk taken it runs on"
printf '[Service]\nExecStart=/usr/local/bin/hold /dev/nvidia1 /dev/nvidiactl\n' >/etc/systemd/system/lab-dm.service; ln -sf lab-dm.service /etc/systemd/system/display-manager.service
systemctl daemon-reload; systemctl start lab-dm; pid() { systemctl show -P MainPID lab-dm; }; wait_for 20 uses; first=$(pid)
setting 'display-manager = "stop"' 'deadlines.holder-wait = 1'; within 60 255 qm start 111; said 'and may use this GPU as well. Hint: take the risk with doubt = "go-on"'; is "$(pid)" "$first" "its process"; settled || fail "not as before"
setting 'display-manager = "stop"' 'doubt = "go-on"'; within 60 0 qm start 111; away "beside a desktop"; is "$(pid)" "$first" "its process, away"
within 90 0 qm stop 111; comes_home 60 "beside a desktop"; is "$(pid)" "$first" "its process, at home"
systemctl stop lab-dm; rm /etc/systemd/system/display-manager.service /etc/systemd/system/lab-dm.service; systemctl daemon-reload; setting
