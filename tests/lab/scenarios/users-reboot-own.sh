#!/bin/sh
# The host's user space, and then the host, starts anew while a user's own services are stopped for a VM and DCGM has let the driver go: what is enabled has the GPU again, what is not is named, and it is home.
# lab: --persist --timeout 1500
# tier: full
. /usr/local/lib/lab-home.sh
told() { journalctl -q -b -o cat -u gpu-handoff-recover.service; }
named() { journalctl -q -b -o cat -u gpu-handoff-stopped.service | grep -q "$1 was stopped for VM 111 before the host went down, and $2"; }
his() { setpriv --reuid=1000 --regid=1000 --clear-groups env -i XDG_RUNTIME_DIR=/run/user/1000 systemctl --user "$@"; }
has() { [ -n "$(find "/proc/$1/fd" -lname /dev/nvidia0 2>/dev/null)" ]; }
uses() { has "$(his show -P MainPID ollama)"; }
by_hand() { has "$(his show -P MainPID by-hand)"; }
engine() { systemctl show -P MainPID nvidia-dcgm; }
watches() { has "$(engine)"; }
let_go() { ! watches; }
release() { grep -q " 590.48.01 " /proc/driver/nvidia/version || fail "it is not 590.48.01"; }
enabled_use() { uses && watches; }
all_use() { enabled_use && by_hand; }
lends() { within 120 0 qm start 111; said "let the driver go"; away "$1"; for _unit in ollama by-hand; do is "$(his show -P ActiveState $_unit)" inactive "his $_unit, $1"; done
	let_go || fail "DCGM has the GPU still, $1"; is "$(systemctl is-active nvidia-dcgm)" active "DCGM, $1"; }

case $LAB_BOOT in
1)
	printf 'options %s\n' "nvidia version=590.48.01" "nvidia_drm modeset_ref=0" >/etc/modprobe.d/own.conf
	unload_nvidia || fail "unload"; modprobe -a nvidia nvidia_uvm nvidia_drm || fail "load"; release
	# The systemd of a user, without the PAM that this guest has not, from the boot on, as with a lingering user.
	useradd -u 1000 -M lab 2>/dev/null; mkdir -p /etc/systemd/system/user@.service.d /etc/systemd/user/default.target.wants
	printf '[Service]\nPAMName=\nEnvironment=XDG_RUNTIME_DIR=/run/user/%%i\n' >/etc/systemd/system/user@.service.d/lab.conf
	printf '[Service]\nExecStartPre=/usr/bin/timeout 60 sh -c "until [ -e /dev/nvidia0 ]; do sleep 0.2; done"\nExecStart=/usr/local/bin/hold /dev/nvidia0 /dev/nvidiactl\n' >/etc/systemd/user/ollama.service
	cp /etc/systemd/user/ollama.service /etc/systemd/user/by-hand.service
	ln -sf /etc/systemd/user/ollama.service /etc/systemd/user/default.target.wants/ollama.service
	ln -sf /usr/lib/systemd/system/user@.service /etc/systemd/system/multi-user.target.wants/user@1000.service
	systemctl daemon-reload; systemctl -q enable nvidia-dcgm; systemctl start user@1000 nvidia-dcgm; wait_for 60 enabled_use; his start by-hand; wait_for 60 all_use
	card_vm; setting 'services = "user-1000/ollama user-1000/by-hand"'; before=$(host)
	lends "with the VM"; echo "$before" >/root/before; sync; systemctl soft-reboot; sleep 300 ;;
2)
	before=$(cat /root/before); told; wait_for 120 enabled_use; comes_home 60 "after a soft reboot"
	told | grep -q "is home after" || fail "it was not brought home at boot"
	say "what nothing starts at boot runs again where his systemd was there by then, or is named"
	is_known() { by_hand || told | grep -q "by-hand.service of user 1000 was stopped for the handoff and "; }
	wait_for 30 is_known; his start by-hand; wait_for 60 all_use
	lends "once more"; sync; systemctl reboot; sleep 300 ;;
3)
	before=$(cat /root/before); release; wait_for 120 enabled_use; comes_home 60 "after a reboot"
	is "$(his show -P ActiveState by-hand)" inactive "what nothing starts at boot"
	wait_for 120 named "by-hand.service of user 1000" "does not run. Hint: systemctl --user --machine=1000@.host start by-hand.service"
	named "ollama.service of user 1000" "" && fail "what runs is named"
	his start by-hand; wait_for 60 all_use
	lends "at the end"; within 120 0 qm stop 111; wait_for 60 all_use; comes_home 60 "at the end"
	rm /etc/modprobe.d/own.conf /etc/systemd/system/multi-user.target.wants/user@1000.service; systemctl -q disable nvidia-dcgm; systemctl stop nvidia-dcgm user@1000 ;;
esac
