#!/bin/sh
# A user's own service, by its name; DCGM, which from driver 590 on lets the driver go and runs on; NVIDIA's MPS, refused or stopped with its service.
# lab: --timeout 1800
# tier: long
. /usr/local/lib/lab-home.sh
# The systemd of a user, without the PAM that this guest has not; each of his services uses the GPU where there is one.
useradd -u 1000 -M lab 2>/dev/null; mkdir -p /etc/systemd/system/user@.service.d /etc/systemd/user
printf '[Service]\nPAMName=\nEnvironment=XDG_RUNTIME_DIR=/run/user/%%i\n' >/etc/systemd/system/user@.service.d/lab.conf; systemctl daemon-reload
his() { setpriv --reuid=1000 --regid=1000 --clear-groups env -i XDG_RUNTIME_DIR=/run/user/1000 systemctl --user "$@"; }
his_systemd() { systemctl start user@1000; wait_for 30 his is-system-running --wait; }
service() { _word=$1; shift
	{ printf '[Service]\nExecStart=/usr/bin/python3 /usr/local/lib/lab-uses %s\n' "$_word"; printf '%s\n' "$@"; } >/etc/systemd/user/ollama.service
	his daemon-reload; his restart ollama; wait_for 20 uses; }
pid_of() { his show -P MainPID "$1"; }
uses() { [ -n "$(find "/proc/$(pid_of ollama)/fd" -lname /dev/nvidia0 2>/dev/null)" ]; }
state() { his show -P ActiveState "$1"; }
down() { [ "$(state ollama)" = inactive ]; }
in_journal() { wait_for 20 sh -c "journalctl -q -b -t gpu-handoff -n 80 | grep -qF \"$1\""; }
his_systemd; service -; printf '[Service]\nExecStart=/usr/bin/sleep infinity\n' >/etc/systemd/user/other.service
his daemon-reload; his start other; other=$(pid_of other); card_vm
round() { # WHAT: there and home, a start that fails, and a run that is killed when it has stopped the service
	within 60 0 qm start 111; away "$1"; is "$(state ollama) $(pid_of other)" "inactive $other" "$1: his services"
	within 90 0 qm stop 111; comes_home 60 "$1"; wait_for 20 uses
	qm set 111 --args --no-such-option >/dev/null; may_begin=8000; fails "$1, a start that fails" qm start 111; qm set 111 --delete args >/dev/null; wait_for 20 uses
	gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!
	wait_for 30 down; kill -KILL $run; wait $run 2>/dev/null
	within 90 0 gpu-handoff 111 post-stop; comes_home 60 "$1, killed"; wait_for 20 uses; is "$(pid_of other)" "$other" "$1: his other service"; }
undone_and_killed() { undone "$1" "$2"; wait_for 20 "$3"; killed "$1" "$2"; wait_for 20 "$3"; }

say "a user's service that is not named: refused, and told how to allow it; one of the host by that name is another one"
pid=$(pid_of ollama)
for setting in '' 'services = "ollama"' 'services = "user-1001/ollama"'; do
	setting "$setting" 'deadlines.holder-wait = 1'; within 60 255 qm start 111
	said "in use by process $pid (python3, user service ollama.service)"; said 'systemctl --user stop ollama.service as that user, or services = "user-1000/ollama.service" in /etc/gpu-handoff/config.toml'
	settled || fail "not as before"; is "$(pid_of ollama)" "$pid" "its process"
done
for bad in user-1000/dbus user-lab/ollama user-1000/ user-1000/../x; do setting "services = \"$bad\""; within 60 3 gpu-handoff plan --vm 111; said "user-UID/NAME"; done
for way in unload unbind; do
	say "$way: named, it is stopped and started again through his systemd"
	setting "way = \"$way\"" 'services = "user-1000/ollama"'
	expect_text "ollama.service of user 1000 has the GPU node of $gpu, /dev/nvidiactl open and is stopped, as 'services' says" gpu-handoff plan --vm 111
	round "$way"; undone_and_killed "his service, $way" down uses
done
say "with its socket, which starts it again whenever it is used"
printf '[Socket]\nListenStream=/run/user/1000/ollama.sock\n' >/etc/systemd/user/ollama.socket; his stop ollama; his daemon-reload; his start ollama.socket; his start ollama; wait_for 20 uses
round "a socket"; is "$(state ollama.socket)" active "the socket"; his stop ollama.socket ollama; rm /etc/systemd/user/ollama.socket
say "what needs it is named by the same user's number"
service -; printf '[Unit]\nRequires=ollama.service\n[Service]\nExecStart=/usr/bin/sleep 1000\n' >/etc/systemd/user/exporter.service; his daemon-reload; his start exporter; pid=$(pid_of ollama)
within 60 255 qm start 111; said "exporter.service needs it and would be stopped as well"; said "name user-1000/exporter.service in 'services' as well"; is "$(pid_of ollama)" "$pid" "its process"
setting 'services = "user-1000/ollama user-1000/exporter"'; within 60 0 qm start 111; away "with what needs it"; is "$(state exporter)" inactive exporter
within 90 0 qm stop 111; comes_home 60 "with what needs it"; wait_for 20 uses; wait_for 20 his -q is-active exporter; his stop exporter
say "a signal while what needs it takes its time to end, with a socket that was stopped before: what gives back is finished"
printf '[Socket]\nListenStream=/run/user/1000/ollama.sock\n' >/etc/systemd/user/ollama.socket; his stop ollama
printf '[Unit]\nRequires=ollama.service\n[Service]\nExecStart=/usr/bin/sleep 1000\nExecStop=/usr/bin/sleep 1\n' >/etc/systemd/user/exporter.service
his daemon-reload; his start ollama.socket; his start ollama exporter; wait_for 20 uses
listens_not() { [ "$(state ollama.socket) $(state exporter)" = "inactive deactivating" ]; }
gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!; wait_for 30 listens_not; kill -TERM $run; wait $run; is $? 1 "status of a run that was asked to end"; cat /root/said
settled || fail "not as before"; wait_for 20 uses; is "$(state ollama.socket) $(state ollama) $(state exporter)" "active active active" "his units"
his stop ollama.socket exporter ollama; rm /etc/systemd/user/ollama.socket; his daemon-reload; his start ollama; wait_for 20 uses
say "his systemd gives no answer: refused in time, and nothing was stopped"
setting 'services = "user-1000/ollama"' 'deadlines.unit = 4'; pid=$(pid_of ollama); manager=$(systemctl show -P MainPID user@1000)
kill -STOP "$manager"; within 60 255 qm start 111; kill -CONT "$manager"
said "ollama.service of user 1000 may be stopped for it, and is not, since its systemd gives no answer"; at_home "no answer"; is "$(pid_of ollama)" "$pid" "its process"
say "deaf to TERM: the start fails in time, and it runs again when his systemd has ended it"
setting 'deadlines.unit = 3' 'services = "user-1000/ollama"'; service deaf TimeoutStopSec=15
within 60 255 qm start 111; said "ollama of user 1000: stop the service"; comes_home 120 "deaf"; wait_for 60 uses
say "it does not start again, or his systemd has ended: that is said, and the GPU is home"
setting 'services = "user-1000/ollama"'
for how in broken gone; do
	service - 'ExecStartPre=/usr/bin/test ! -e /run/lab-broken'
	within 60 0 qm start 111; away "$how"
	case $how in broken) touch /run/lab-broken ;; gone) systemctl stop user@1000 ;; esac
	within 90 0 qm stop 111; comes_home 60 "$how"
	in_journal "ollama.service of user 1000 was stopped for the handoff and does not start again"
	case $how in broken) rm /run/lab-broken ;; gone) his_systemd ;; esac
	journalctl --rotate; journalctl -q --vacuum-time=1s
done
systemctl stop user@1000; setting

engine() { systemctl show -P MainPID nvidia-dcgm; }
watches() { [ -n "$(find "/proc/$(engine)/fd" -lname /dev/nvidia0 2>/dev/null)" ]; }
let_go() { ! watches; }
fault() { mkdir -p /etc/lab; echo "$2" >"/etc/lab/dcgmi-$1"; }
# driver VERSION: the modules of another release, whose DRM lets a GPU go, loaded anew
driver() {
	printf 'options %s\n' "nvidia version=$1" "nvidia_drm modeset_ref=0" >/etc/modprobe.d/scenario-driver.conf
	unload_nvidia || fail "unload"; modprobe -a nvidia nvidia_uvm nvidia_drm || fail "load"; grep -q " $1 " /proc/driver/nvidia/version || fail "it is not $1"
	at_home "driver $1"; systemctl start nvidia-dcgm; wait_for 20 watches; first=$(engine); }
# dcgm WHAT: there and home, a start that fails, and a run that is killed; the host engine goes on
dcgm() {
	within 60 0 qm start 111; said "let the driver go"; away "$1"; let_go || fail "it has the GPU still"; is "$(engine)" "$first" "$1: the host engine"
	within 90 0 qm stop 111; comes_home 60 "$1"; wait_for 20 watches
	qm set 111 --args --no-such-option >/dev/null; fails "$1, a start that fails" qm start 111; qm set 111 --delete args >/dev/null; wait_for 20 watches
	gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!
	wait_for 30 let_go; kill -KILL $run; wait $run 2>/dev/null
	within 90 0 gpu-handoff 111 post-stop; comes_home 60 "$1, killed"; wait_for 20 watches; is "$(engine)" "$first" "$1: the host engine at home"; }
# stopped WHAT: there and home, with the service down meanwhile
stopped() { within 60 0 qm start 111; said "stop the service"; away "$1"; is "$(systemctl is-active nvidia-dcgm)" inactive "$1: DCGM"; rm -f /etc/lab/dcgmi-*
	within 90 0 qm stop 111; comes_home 60 "$1"; wait_for 20 watches; }
driver 590.48.01
printf '[Unit]\nRequires=nvidia-dcgm.service\n[Service]\nExecStart=/usr/bin/sleep infinity\n' >/run/systemd/system/exporter.service; systemctl daemon-reload; systemctl start exporter; exporter=$(systemctl show -P MainPID exporter)
for way in unload unbind; do
	say "$way: DCGM lets the driver go and runs on, and so does what needs it"
	setting "way = \"$way\""; expect_text "nvidia-dcgm.service has the GPU node of $gpu, /dev/nvidiactl open; it lets the driver go and runs on" gpu-handoff plan --vm 111
	gpu-handoff holders | tee /root/said; grep -q "nvidia-dcgm.service .*lets go, runs on" /root/said || fail "its row"
	dcgm "$way"; undone_and_killed "DCGM, $way" let_go watches; is "$(systemctl show -P MainPID exporter)" "$exporter" "what needs it"
done
systemctl stop exporter; setting
say "it does not take the driver up at home: it is started anew"
within 60 0 qm start 111; fault exit "1 Error: no"; within 90 0 qm stop 111; rm /etc/lab/dcgmi-exit; comes_home 60 "started anew"; wait_for 20 watches; [ "$(engine)" != "$first" ] || fail "it was not"
say "it gives no answer at home: likewise"
setting 'deadlines.unit = 4'; first=$(engine); within 60 0 qm start 111; fault hang 1000; within 120 0 qm stop 111; rm /etc/lab/dcgmi-hang; comes_home 90 "no answer at home"; wait_for 20 watches; [ "$(engine)" != "$first" ] || fail "it was not started anew"; setting
say "it has ended meanwhile: it is started"
within 60 0 qm start 111; systemctl stop nvidia-dcgm; within 90 0 qm stop 111; comes_home 60 "started"; wait_for 20 watches
say "its program fails, gives no answer, or is too old: it is stopped"
fault exit "1 Error: no"; stopped "it fails"
setting 'deadlines.unit = 4'; fault hang 1000; stopped "no answer"; setting
fault old ""; stopped "too old"; grep -q "let the driver go" /root/said && fail "it was asked to let go"
say "refused by the setting"
setting 'services = "refuse"' 'deadlines.holder-wait = 1'; first=$(engine); within 60 255 qm start 111; said 'services = "nvidia-dcgm.service"'; is "$(engine)" "$first" "the host engine"; settled || fail "not as before"
say "by an older driver it is stopped"
setting; systemctl stop nvidia-dcgm; driver 580.126.09; stopped "580"; systemctl stop nvidia-dcgm

say "MPS at a prompt: refused, with what ends it; it goes on"
login=/sys/fs/cgroup/user.slice/user-0.slice/session-7.scope; mkdir -p $login /run/systemd/sessions; printf 'CLASS=user\nTYPE=tty\n' >/run/systemd/sessions/7
mps() { fuser /dev/nvidia0 2>/dev/null | tr -d ' '; }
serves() { [ -n "$(mps)" ]; }
sh -c "echo \$\$ >$login/cgroup.procs; exec nvidia-cuda-mps-control -d"; wait_for 20 serves; server=$(mps)
setting 'deadlines.holder-wait = 1'; within 60 255 qm start 111; said "in use by process $server (nvidia-cuda-mps, login session 7)"
said "Hint: it is NVIDIA's MPS, which computes for others: when it has no clients, 'echo quit | nvidia-cuda-mps-control'"; grep -q 'processes =' /root/said && fail "a setting is offered that would end it"
is "$(mps)" "$server" "its server"; settled || fail "not as before"
echo quit | nvidia-cuda-mps-control; gone() { ! serves; }; wait_for 20 gone; within 60 0 qm start 111; away "without MPS"; within 90 0 qm stop 111; comes_home 60 "without MPS"
say "MPS by a service: refused with the line, and stopped and started again by it"
printf '[Service]\nType=forking\nExecStart=/usr/bin/nvidia-cuda-mps-control -d\n' >/run/systemd/system/mps.service; systemctl daemon-reload; systemctl start mps; wait_for 20 serves
within 60 255 qm start 111; said 'or services = "mps.service" in /etc/gpu-handoff/config.toml: then it is stopped for you, whoever computes through it'; serves || fail "it was ended"
for way in unload unbind; do
	setting 'services = "mps"' "way = \"$way\""; within 60 0 qm start 111; away "$way"; is "$(systemctl is-active mps)" inactive MPS
	within 90 0 qm stop 111; comes_home 60 "$way, MPS"; wait_for 20 serves
done
systemctl stop mps; rm -rf /etc/systemd/user/*.service /etc/systemd/system/user@.service.d; systemctl daemon-reload; setting; settled || fail "not as before"
