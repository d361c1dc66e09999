#!/bin/sh
# A desktop uses the GPU: refused, or its display manager is stopped and started again, or named where it does not start; and a service that its socket starts whenever it is used.
# lab: --timeout 1800
# tier: long
. /usr/local/lib/lab-home.sh
# The display manager of this lab: it has the GPU open, and so has a session of its own, which ends with it as one of gdm's does, and
# a service of that user's systemd, which ends some seconds later, as logind has it.
useradd -u 1000 -M lab 2>/dev/null; mkdir -p /etc/systemd/system/user@.service.d /etc/systemd/user
printf '[Service]\nPAMName=\nEnvironment=XDG_RUNTIME_DIR=/run/user/%%i\n' >/etc/systemd/system/user@.service.d/lab.conf
printf '[Service]\nExecStart=/usr/local/bin/hold /dev/nvidia0\n' >/etc/systemd/user/lab-pipe.service
cat >/root/his <<'END'
#!/bin/sh
exec setpriv --reuid=1000 --regid=1000 --clear-groups env -i XDG_RUNTIME_DIR=/run/user/1000 systemctl --user "$@"
END
chmod 755 /root/his
printf '[Service]\nExecStartPre=-/usr/bin/systemctl stop lab-linger.timer\nExecStart=/usr/local/bin/hold /dev/nvidia0 /dev/nvidiactl\nExecStartPost=/root/session\nExecStopPost=/bin/sh -c "kill $(cat /run/lab-session)"\nExecStopPost=-/usr/bin/systemd-run --quiet --unit=lab-linger --on-active=6 systemctl stop user@1000\nExecStopPost=-/bin/sh -c "[ ! -e /root/late ] || systemd-run --quiet --unit=lab-late hold /dev/nvidia0"\n' >/etc/systemd/system/lab-dm.service
cat >/root/session <<'END'
#!/bin/sh
mkdir -p /run/systemd/sessions; printf 'UID=1000\nCLASS=user\nTYPE=x11\nSERVICE=lab-dm\n' >/run/systemd/sessions/97
# The user's systemd, a session by itself from systemd 256 on.
printf 'UID=1000\nCLASS=manager\nTYPE=unspecified\nSERVICE=systemd-user\n' >/run/systemd/sessions/98
systemd-run --quiet --scope --slice=user-1000.slice --unit=session-97.scope hold /dev/nvidia0 >/dev/null 2>&1 &
for n in $(seq 100); do pid=$(cat /sys/fs/cgroup/user.slice/user-1000.slice/session-97.scope/cgroup.procs 2>/dev/null | head -n 1); [ -z "$pid" ] || break; sleep 0.1; done
echo "$pid" >/run/lab-session
systemctl start user@1000; timeout 30 /root/his start lab-pipe
END
chmod 755 /root/session; ln -sf /etc/systemd/system/lab-dm.service /etc/systemd/system/display-manager.service; systemctl daemon-reload
holds() { [ -n "$1" ] && [ -n "$(find "/proc/$1/fd" -lname /dev/nvidia0 2>/dev/null)" ]; }
dm() { systemctl show -P MainPID lab-dm; }
dm_is_down() { [ "$(systemctl is-active lab-dm)" = inactive ]; }
used() { holds "$(dm)" && holds "$(cat /run/lab-session)" && holds "$(/root/his show -P MainPID lab-pipe)"; }
# What the login of a session has open as long as it lasts, beside the file: nothing ever comes from it.
mkdir -p /run/systemd/sessions; mkfifo /run/systemd/sessions/97.ref; sleep 3600 3<>/run/systemd/sessions/97.ref & login=$!
systemctl start lab-dm; wait_for 30 used; card_vm; setting 'deadlines.holder-wait = 2'
say "refused, with the line that allows it"
within 60 255 qm start 111; said "in use by process $(cat /run/lab-session) (hold, desktop session 97)"; said 'Hint: systemctl stop display-manager, or display-manager = "stop" in /etc/gpu-handoff/config.toml'; used || fail "it was ended"; settled || fail "not as before"
for way in unload unbind; do
	setting 'display-manager = "stop"' "way = \"$way\""
	expect_text "as 'display-manager' says; it is started again when the GPU is home, and all desktops end" gpu-handoff plan --vm 111
	gpu-handoff holders | tee /root/said; is "$(grep -c 'stopped, started again' /root/said)" 3 "rows"
	within 90 0 qm start 111; away "$way"; is "$(systemctl is-active lab-dm)" inactive "the display manager"; said "wait until they have ended with their desktop"
	within 90 0 qm stop 111; comes_home 60 "$way"; wait_for 30 used
	qm set 111 --args --no-such-option >/dev/null; may_begin=8000; fails "$way, a start that fails" qm start 111; qm set 111 --delete args >/dev/null; wait_for 30 used
	# Somebody comes when it is down: all is given back, and what is not is said.
	touch /root/late; within 90 255 qm start 111; said "the desktop has ended (process "; rm /root/late; systemctl stop lab-late; wait_for 30 used; settled || fail "not as before"
	gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!
	wait_for 30 sh -c '! systemctl -q is-active lab-dm'; kill -KILL $run; wait $run 2>/dev/null
	within 90 0 gpu-handoff 111 post-stop; comes_home 60 "$way, killed"; wait_for 30 used
	killed "$way" dm_is_down; wait_for 30 used
done

say "a display manager that is deaf to TERM: the start fails in time, and it runs again when systemd has ended it"
mkdir -p /run/systemd/system/lab-dm.service.d; printf '[Service]\nKillSignal=SIGCONT\nTimeoutStopSec=15\n' >/run/systemd/system/lab-dm.service.d/deaf.conf; systemctl daemon-reload
for way in unload unbind; do
	setting 'display-manager = "stop"' 'deadlines.unit = 3' "way = \"$way\""; within 60 255 qm start 111; said "lab-dm: stop the service"
	comes_home 120 "$way, a deaf one"; wait_for 60 systemctl -q is-active lab-dm; wait_for 30 used
done
rm -r /run/systemd/system/lab-dm.service.d; systemctl daemon-reload
say "it does not start again: that is said, and the GPU is home"
mkdir -p /run/systemd/system/lab-dm.service.d; printf '[Service]\nExecStartPre=/usr/bin/test ! -e /root/broken\n' >/run/systemd/system/lab-dm.service.d/broken.conf; systemctl daemon-reload
setting 'display-manager = "stop"'; within 90 0 qm start 111; away "before that"; touch /root/broken; within 90 0 qm stop 111; comes_home 60 "without it"
wait_for 20 sh -c 'journalctl -q -b -t gpu-handoff -n 60 | grep -q "lab-dm.service was stopped for the handoff and does not start again"'
is "$(systemctl is-active lab-dm)" failed "the display manager"
rm -r /root/broken /run/systemd/system/lab-dm.service.d; systemctl daemon-reload; systemctl reset-failed lab-dm; systemctl start lab-dm; wait_for 30 used

say "a session that another has opened does not end with the display manager, and a run from its desktop would end in the middle"
setting 'display-manager = "stop"' 'deadlines.holder-wait = 2'; pid=$(dm)
sed -i s/SERVICE=lab-dm/SERVICE=xrdp-sesman/ /run/systemd/sessions/97; within 60 255 qm start 111; said "graphical session 97"; is "$(dm)" "$pid" "the display manager"
sed -i s/SERVICE=xrdp-sesman/SERVICE=lab-dm/ /run/systemd/sessions/97
within 60 3 sh -c 'echo $$ >/sys/fs/cgroup/user.slice/user-1000.slice/session-97.scope/cgroup.procs; exec gpu-handoff to_vfio'; said "this run was started from it"; is "$(dm)" "$pid" "the display manager"; used || fail "it was ended"
systemctl stop lab-dm; systemctl stop lab-linger.timer user@1000; rm /etc/systemd/system/display-manager.service
kill $login; rm -f /run/systemd/sessions/97* /run/systemd/sessions/98

say "a service that its socket starts: stopped with it, and both are as they were"
printf '[Socket]\nListenStream=/run/lab.sock\n' >/etc/systemd/system/lab-user.socket
printf '[Service]\nExecStart=/usr/local/bin/hold /dev/nvidia0\n' >/etc/systemd/system/lab-user.service; systemctl daemon-reload
touch_it() { python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect("/run/lab.sock")'; }
both_down() { [ "$(systemctl is-active lab-user.socket) $(systemctl is-active lab-user)" = "inactive inactive" ]; }
user() { holds "$(systemctl show -P MainPID lab-user)" && systemctl -q is-active lab-user.socket; }
systemctl start lab-user.socket; touch_it; wait_for 20 user
for way in unload unbind; do
	setting 'services = "lab-user"' "way = \"$way\""
	expect_text "lab-user.socket starts lab-user.service whenever it is used, and is stopped and started again with it" gpu-handoff plan --vm 111
	within 90 0 qm start 111; away "$way"
	is "$(systemctl is-active lab-user.socket) $(systemctl is-active lab-user)" "inactive inactive" "socket and service"
	within 90 0 qm stop 111; comes_home 60 "$way"; wait_for 20 user
	qm set 111 --args --no-such-option >/dev/null; fails "$way, a start that fails" qm start 111; qm set 111 --delete args >/dev/null; wait_for 20 user
	gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!
	wait_for 30 sh -c '! systemctl -q is-active lab-user.socket'; kill -KILL $run; wait $run 2>/dev/null
	within 90 0 gpu-handoff 111 post-stop; comes_home 60 "$way, killed between socket and service"; wait_for 20 user
	killed "$way, socket and service" both_down; wait_for 20 user
done
systemctl stop lab-user.socket lab-user; setting; settled || fail "not as before"
