#!/bin/sh
# The host's user space, and then the host, starts anew while the persistence daemon, MPS, a service inside a container and a container of Podman's are stopped for a VM: what was owed runs again after the first where it can, what is enabled after both, and what is not is named; once more after a hook that was killed.
# lab: --persist --timeout 1500
# tier: named
. /usr/local/lib/lab-home.sh
told() { journalctl -q -b -o cat -u gpu-handoff-recover.service; }
named() { journalctl -q -b -o cat -u gpu-handoff-stopped.service | grep -q "$1 was stopped for VM 111 before the host went down, and $2"; }
holds() { [ -n "$(find "/proc/$(systemctl show -P MainPID "$1")/fd" -lname /dev/nvidia0 2>/dev/null)" ]; }
inside() { cat /sys/fs/cgroup/lxc/104/ns/system.slice/ollama.service/cgroup.procs 2>/dev/null; }
pod_pids() { find "/sys/fs/cgroup/machine.slice/libpod-$(cat /root/id).scope" -name cgroup.procs -exec cat {} + 2>/dev/null; }
one_has() { for _p in "$@"; do [ -n "$(find "/proc/$_p/fd" -lname '*/nvidia0' 2>/dev/null)" ] && return 0; done; return 1; }
inside_uses() { one_has $(inside); }
pod_uses() { one_has $(pod_pids); }
all_use() { holds nvidia-persistenced && holds mps && inside_uses && pod_uses; }
down() { is "$(systemctl is-active nvidia-persistenced mps | tr '\n' ' ')" "inactive inactive " "the services, $1"; is "$(inside)" "" "the one inside, $1"; is "$(pod_pids)" "" "Podman's, $1"; }
root=/run/lab-pod/root
rootfs() { mountpoint -q $root || { mkdir -p $root /run/lab-pod/upper /run/lab-pod/work
	mount -t overlay overlay -o lowerdir=/,upperdir=/run/lab-pod/upper,workdir=/run/lab-pod/work $root || fail "no overlay"; }; }
up() { rootfs; systemctl start nvidia-persistenced mps; [ "$(pct status 104)" = "status: running" ] || within 60 0 pct start 104
	pod_uses || if [ -s /root/id ]; then podman start "$(cat /root/id)"; else podman run -d --network none --log-driver none --security-opt seccomp=unconfined \
		--device /dev/nvidia0 --device /dev/nvidiactl --rootfs $root /usr/local/bin/hold /dev/nvidia0 /dev/nvidiactl >/root/id; fi
	wait_for 60 all_use; }

case $LAB_BOOT in
1)
	printf '[storage]\ndriver = "vfs"\nrunroot = "/run/containers/storage"\ngraphroot = "/var/lib/lab-pod"\n' >/etc/containers/storage.conf
	printf '[Service]\nExecStartPre=/usr/bin/timeout 60 sh -c "until [ -e /dev/nvidia0 ]; do sleep 0.2; done"\nExecStart=/usr/bin/python3 /usr/local/lib/lab-uses -\n[Install]\nWantedBy=multi-user.target\n' >/etc/systemd/system/mps.service
	systemctl daemon-reload; systemctl -q enable mps
	mkdir -p /etc/lab/ct/104 /etc/pve/lxc; printf '[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/usr/local/bin/hold /dev/nvidia0 /dev/nvidiactl\n' >/etc/lab/ct/104/ollama.service
	printf 'arch: amd64\ndev0: /dev/nvidia0\ndev1: /dev/nvidiactl\nlxc.init.cmd: systemd\n' >/etc/pve/lxc/104.conf
	up; card_vm; setting 'services = "mps"' 'containers = "release"'; before=$(host); echo "$before" >/root/before
	within 120 0 qm start 111; away "the VM runs"; down "with the VM"; is "$(pct status 104)" "status: running" "the container"
	sync; systemctl soft-reboot; sleep 300 ;;
2)
	before=$(cat /root/before); told
	wait_for 120 holds mps; wait_for 60 holds nvidia-persistenced; comes_home 90 "after a soft reboot"
	told | grep -q "is home after" || fail "it was not brought home at boot"
	say "the container has ended with the user space: what was stopped inside it is named"
	told | grep -q "ollama.service in container 104 was stopped for the handoff and does not start again" || fail "it is not named"
	is_known() { pod_uses || told | grep -q "Podman container .* was stopped for the handoff and does not start again"; }; wait_for 30 is_known
	up; rm -f /root/released
	say "killed before the host goes down"
	halfway "a start" sh -c '[ "$(systemctl is-active mps)" = inactive ]'; down "in the middle"; sync; kill -KILL $_hooks; systemctl reboot --force --force; sleep 300 ;;
3)
	before=$(cat /root/before); wait_for 90 holds mps; comes_home 90 "after a reboot"
	is "$(systemctl is-active nvidia-persistenced)" inactive "what nothing starts at boot"; is "$(pod_pids)" "" "Podman's, likewise"
	wait_for 120 named nvidia-persistenced.service "does not run. Hint: systemctl start nvidia-persistenced.service"
	named "Podman container $(cut -c-12 /root/id)" "does not run" || fail "Podman's is not named"
	named "ollama.service in container 104" "whether it runs is not known" || fail "what was inside is not named"
	named mps.service "" && fail "what runs is named"
	[ -z "$(ls /var/lib/gpu-handoff/stopped-* 2>/dev/null)" ] || fail "it is kept still"
	up; within 120 0 qm start 111; away "at the end"; within 120 0 qm stop 111; wait_for 60 all_use; comes_home 60 "at the end"
	within 60 0 pct stop 104; podman stop "$(cat /root/id)" >/dev/null; systemctl stop mps nvidia-persistenced ;;
esac
