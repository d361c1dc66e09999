#!/bin/sh
# The host's user space, and then the host, starts anew while what used the GPU is stopped for a VM: what was owed runs again after the first, what is enabled after both, what is not is named after the second, and the GPU is home.
# lab: --persist --timeout 1500
# tier: full
. /usr/local/lib/lab-home.sh
boot=gpu-handoff-recover.service
told() { journalctl -q -b -o cat -u $boot; }
named() { journalctl -q -b -o cat -u gpu-handoff-stopped.service | grep -q "$1 was stopped for VM 111 before the host went down, and $2"; }
holds() { [ -n "$(find "/proc/$(systemctl show -P MainPID "$1")/fd" -lname /dev/nvidia0 2>/dev/null)" ]; }
container() { for _p in $(find /sys/fs/cgroup/lxc/104 -name cgroup.procs -exec cat {} + 2>/dev/null); do
	[ -n "$(find "/proc/$_p/fd" -lname '*/nvidia0' 2>/dev/null)" ] && return 0; done; return 1; }
docker_pids() { cat "/sys/fs/cgroup/system.slice/docker-$(cat /root/id).scope/cgroup.procs" 2>/dev/null; }
docker_uses() { for _p in $(docker_pids); do [ -n "$(find "/proc/$_p/fd" -lname /dev/nvidia0 2>/dev/null)" ] && return 0; done; return 1; }
all_use() { for _unit in enabled by-hand lab-dm; do holds $_unit || return 1; done; container && docker_uses; }
down() { for _unit in enabled by-hand lab-dm; do is "$(systemctl is-active $_unit)" inactive "$_unit, $1"; done; is "$(pct status 104)" "status: stopped" "the container, $1"; is "$(docker_pids)" "" "Docker's, $1"; }
up() { systemctl start enabled by-hand lab-dm; [ "$(pct status 104)" = "status: running" ] || pct start 104
	docker_uses || if [ -s /root/id ]; then docker start "$(cat /root/id)"; else docker run /usr/local/bin/hold /dev/nvidia0 /dev/nvidiactl >/root/id; fi; wait_for 60 all_use; }

case $LAB_BOOT in
1)
	for unit in enabled by-hand lab-dm; do
		printf '[Service]\nExecStartPre=/usr/bin/timeout 60 sh -c "until [ -e /dev/nvidia0 ]; do sleep 0.2; done"\nExecStart=/usr/local/bin/hold /dev/nvidia0 /dev/nvidiactl\n[Install]\nWantedBy=multi-user.target\n' >/etc/systemd/system/$unit.service
	done
	ln -sf /etc/systemd/system/lab-dm.service /etc/systemd/system/display-manager.service; systemctl daemon-reload; systemctl -q enable enabled
	mkdir -p /etc/pve/lxc; printf 'arch: amd64\nhostname: cuda\ndev0: /dev/nvidia0\ndev1: /dev/nvidiactl\nlxc.init.cmd: hold /dev/nvidia0 /dev/nvidiactl\n' >/etc/pve/lxc/104.conf
	up; card_vm; setting 'services = "enabled by-hand"' 'containers = "shutdown"' 'display-manager = "stop"'
	within 120 0 qm start 111; away "the VM runs"; down "with the VM"
	echo "$before" >/root/before; sync; systemctl soft-reboot; sleep 300 ;;
2)
	before=$(cat /root/before); told
	wait_for 120 all_use; comes_home 60 "after a soft reboot"
	say "as after every boot, and what was owed: $(told | grep -c 'is home after')"
	told | grep -q "is home after" || fail "it was not brought home at boot"
	within 120 0 qm start 111; away "the VM runs"; down "with the VM, once more"
	sync; systemctl reboot; sleep 300 ;;
3)
	before=$(cat /root/before); wait_for 60 holds enabled; comes_home 60 "after a reboot"
	wait_for 60 holds lab-dm # the alias display-manager is what graphical.target wants
	is "$(systemctl is-active by-hand)" inactive "what nothing starts at boot"
	is "$(pct status 104)" "status: stopped" "the container, which nothing starts at boot"; is "$(docker_pids)" "" "Docker's, likewise"
	wait_for 120 named by-hand.service "does not run. Hint: systemctl start by-hand.service"
	named "container 104" "does not run. Hint: pct start 104" || fail "the container is not named"
	named "Docker container $(cut -c-12 /root/id)" "does not run. Hint: docker start $(cut -c-12 /root/id)" || fail "Docker's is not named"; named enabled.service "" && fail "what runs is named"
	up; within 120 0 qm start 111; away "at the end"; within 120 0 qm stop 111; wait_for 60 all_use; comes_home 60 "at the end"
	within 60 0 pct stop 104; docker stop "$(cat /root/id)" ;;
esac
