#!/bin/sh
# `check` on a host that is ready: no FAIL, and exit 0. Then with what guides leave behind: exit 3, each finding with file and line.
. /usr/local/lib/lab.sh
gpu=$(gpus | head -n 1)
before=$(cat /proc/modules | cut -d' ' -f1,4 | sort; cat $devices/*/driver_override | sort | uniq -c; ls /run/gpu-handoff /etc/modprobe.d)
check() { gpu-handoff check "$@" >/root/said 2>/root/said.err; echo $? >/root/rc; }
said() { # TEXT: it is said, however the lines were broken
	tr -s ' \n' '  ' </root/said | grep -qF -- "$1" || { cat /root/said /root/said.err; fail "not said: $1"; }; }
rc() { is "$(cat /root/rc)" "$1" "exit status"; }

say "a host that is ready"
mkvm 111 "${gpu%.*},pcie=1"; qm set 111 --hookscript local:snippets/gpu-handoff >/dev/null || fail "qm set"
check; [ "$(cat /root/rc)" = 0 ] || { cat /root/said /root/said.err; fail "exit status $(cat /root/rc)"; }
said "PASS: iommu: the IOMMU is on"; said "PASS: driver-installed: "; said "PASS: hook-link: "; said "FAILURES: 0"
is "$(awk 'length > 80' /root/said | wc -l)" 0 "lines wider than a terminal"
check --vm 111 --full; rc 0; said "VM 111 has $gpu"
check --json; rc 0; python3 -c 'import json; d = json.load(open("/root/said")); assert d["version"] == 1 and not d["summary"]["failures"]' || fail JSON
check --vm 999; rc 3; said "there is no VM 999"
check --list; rc 0; [ "$(wc -l </root/said)" -ge 60 ] || fail "few checks"
check --skip iomu; rc 2; grep -q "did you mean iommu" /root/said.err || fail "no close name"
is "$(cat /proc/modules | cut -d' ' -f1,4 | sort; cat $devices/*/driver_override | sort | uniq -c; ls /run/gpu-handoff /etc/modprobe.d)" "$before" "nothing is touched"

say "what guides leave behind"
printf '# for a VM\noptions vfio-pci ids=10de:2204\n' >/etc/modprobe.d/scenario-vfio.conf
printf 'blacklist nouveau\nblacklist nvidia\n' >/etc/modprobe.d/scenario-blacklist.conf
mkvm 112 "${gpu%.*},pcie=1"
for vm in 111 112; do qm set $vm --onboot 1 >/dev/null || fail "onboot"; done
line() { grep -n "$1" "$2" | tail -n 1 | cut -d: -f1; } # TEXT FILE: the number of the line
check; rc 3; grep -q "FAIL" /root/said.err || fail "stderr says nothing"
said "FAIL: vfio-ids: /etc/modprobe.d/scenario-vfio.conf:2: "; said "gives 10de:2204 to vfio-pci at boot"
said "FAIL: blacklist: /etc/modprobe.d/scenario-blacklist.conf:2: "
said "FAIL: vm-same-gpu: /etc/pve/qemu-server/111.conf:$(line ^hostpci0 /etc/pve/qemu-server/111.conf): VM 111 and VM 112"
check --skip vfio-ids blacklist vm-same-gpu; rc 0; said "SKIP: blacklist: left out, as asked"
rm /etc/modprobe.d/scenario-*; qm set 112 --onboot 0 >/dev/null
check; rc 0; said "NOTICE: vm-same-gpu: "

say "a module for the running kernel is missing"
file=$(modinfo -n nvidia_uvm); mv "$file" /root/kept.ko
check; rc 3; said "FAIL: driver-installed: nvidia_uvm cannot be loaded for kernel $(uname -r)"; mv /root/kept.ko "$file"

say "another version of the driver's library in a container"
printf 'arch: amd64\nhostname: cuda\ndev0: /dev/nvidia0\nlxc.init.cmd: hold /dev/null\n' >/etc/pve/lxc/107.conf
expect_rc 0 pct start 107
check --ct 107; rc 0; said "container 107 is given a GPU"
expect_rc 0 pct exec 107 -- mkdir -p /usr/lib/x86_64-linux-gnu
expect_rc 0 pct exec 107 -- touch /usr/lib/x86_64-linux-gnu/libcuda.so.470.256.02
check; rc 3; said "FAIL: ct-driver: /etc/pve/lxc/107.conf: container 107 has the driver's libraries of 470.256.02"
expect_rc 0 pct stop 107; rm /etc/pve/lxc/107.conf
check; rc 0
