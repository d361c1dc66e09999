#!/bin/sh
# The host's user space, and then the host, starts anew while a container of HA's is stopped for a VM and ignored by HA: after the first it runs and is HA's again, after the second it is named with what gives it back to HA.
# lab: --persist --timeout 1500
# tier: full
. /usr/local/lib/lab-home.sh
told() { journalctl -q -b -o cat -u gpu-handoff-recover.service; }
named() { journalctl -q -b -o cat -u gpu-handoff-stopped.service | grep -q "$1 was stopped for VM 111 before the host went down, and $2"; }
uses() { for _p in $(find /sys/fs/cgroup/lxc/104 -name cgroup.procs -exec cat {} + 2>/dev/null); do
	[ -n "$(find "/proc/$_p/fd" -lname '*/nvidia0' 2>/dev/null)" ] && return 0; done; return 1; }
# has STATE: what HA's manager says of it, none where it has let go of it
has() { [ "$(python3 -c 'import json; print(json.load(open("/etc/pve/ha/manager_status"))["service_status"].get("ct:104", {}).get("state", "none"))')" = "$1" ]; }
# back WHEN: it runs with the GPU, and is HA's again, whose file is as it was
back() { wait_for 90 uses; [ "$(cat /etc/pve/ha/resources.cfg)" = "$(cat /root/of-ha)" ] || fail "$1: not as before: $(cat /etc/pve/ha/resources.cfg)"; wait_for 60 has started; say "it is HA's again: $1"; }
ignored() { is "$(pct status 104)" "status: stopped" "the container, $1"; is "$(sed -n 's/^\tstate //p' /etc/pve/ha/resources.cfg)" ignored "what HA is to do, $1"; has none || fail "HA has a state for it, $1"; }
lends() { within 180 0 qm start 111; away "$1"; ignored "$1"; }

case $LAB_BOOT in
1)
	mkdir -p /etc/pve/lxc /etc/pve/ha
	printf 'arch: amd64\nhostname: cuda\nhookscript: local:snippets/gpu-handoff\ndev0: /dev/nvidia0\ndev1: /dev/nvidiactl\nlxc.init.cmd: hold /dev/nvidia0 /dev/nvidiactl\n' >/etc/pve/lxc/104.conf
	printf 'ct: 104\n\tstate started\n\tgroup lab\n' | tee /root/of-ha >/etc/pve/ha/resources.cfg
	printf '[Service]\nExecStart=/usr/sbin/ha-manager run\n[Install]\nWantedBy=multi-user.target\n' >/etc/systemd/system/lab-ha.service
	systemctl daemon-reload; systemctl -q enable --now lab-ha; back "before"; card_vm
	setting 'containers = "shutdown"' 'ha-containers = "stop"'; lends "with the VM"
	echo "$before" >/root/before; sync; systemctl soft-reboot; sleep 300 ;;
2)
	before=$(cat /root/before); told
	wait_for 120 uses; comes_home 90 "after a soft reboot"; told | grep -q "is home after" || fail "it was not brought home at boot"
	back "after a soft reboot"; lends "once more"; sync; systemctl reboot; sleep 300 ;;
3)
	before=$(cat /root/before); comes_home 90 "after a reboot"
	wait_for 120 named "container 104" "HA ignores it still, so that it does not run. Hint: ha-manager set ct:104 --state started"
	ignored "after a reboot"; [ -z "$(ls /var/lib/gpu-handoff/stopped-* 2>/dev/null)" ] || fail "it is kept still"
	ha-manager set ct:104 --state started || fail "ha-manager set"; back "as it was told"
	lends "at the end"; within 180 0 qm stop 111; comes_home 120 "at the end"; back "at the end"
	systemctl disable -q --now lab-ha; rm -r /etc/pve/ha; within 60 0 pct stop 104 ;;
esac
