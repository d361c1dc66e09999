#!/bin/sh
# The hook is killed in every third act of a start and of a stop while the persistence daemon, a service, a service in a container and a whole container use the GPU: each time the GPU comes home by itself, and all of them have it again.
# lab: --fault-points --timeout 2400
# tier: named
stride=3
. /usr/local/lib/lab-home.sh
. /usr/local/lib/lab-crash.sh
mkdir -p /etc/lab/ct/104 /etc/pve/lxc
printf '[Service]\nExecStart=/usr/bin/python3 /usr/local/lib/lab-uses\n' >/run/systemd/system/lab-user.service
printf '[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/usr/local/bin/hold /dev/nvidia0 /dev/nvidiactl\n' >/etc/lab/ct/104/ollama.service
printf 'arch: amd64\nunprivileged: 1\ndev0: /dev/nvidia0\ndev1: /dev/nvidiactl\nlxc.init.cmd: systemd\n' >/etc/pve/lxc/104.conf
printf 'arch: amd64\nentrypoint: /usr/local/bin/hold /dev/nvidia0\nlxc.signal.halt: SIGINT\ndev0: /dev/nvidia0\n' >/etc/pve/lxc/105.conf
has_it() { for _p in $(cat "$@" 2>/dev/null); do [ -n "$(find "/proc/$_p/fd" -lname '*/nvidia0' 2>/dev/null)" ] && return 0; done; return 1; }
all_use() { has_it /sys/fs/cgroup/system.slice/lab-user.service/cgroup.procs && has_it /sys/fs/cgroup/system.slice/nvidia-persistenced.service/cgroup.procs &&
	has_it /sys/fs/cgroup/lxc/104/ns/system.slice/ollama.service/cgroup.procs && has_it $(find /sys/fs/cgroup/lxc/105 -name cgroup.procs); }
card_vm; setting 'deadlines.grace = 1' 'deadlines.look = 60' 'deadlines.verify = 90' 'containers = "shutdown"' 'services = "lab-user"' # a busy machine loses no GPU
systemctl daemon-reload; systemctl start lab-user nvidia-persistenced; within 60 0 pct start 104; within 60 0 pct start 105; wait_for 90 all_use; init=$(lxc-info -n 104 -pH)
survived() { wait_for 2 let_in; comes_home 200 "$1"; wait_for 60 all_use; is "$(lxc-info -n 104 -pH)" "$init" "container 104" >/dev/null; points=$((points + 1)); }
every qm_out in; away "a start that was not killed"; qm stop 111 >/dev/null 2>&1; comes_home 60 "after it"; wait_for 60 all_use
every qm_home in; comes_home 60 "a stop that was not killed"; wait_for 60 all_use
lost_none 10
systemctl stop lab-user nvidia-persistenced; for ctid in 104 105; do expect_rc 0 pct stop $ctid; rm /etc/pve/lxc/$ctid.conf; done
