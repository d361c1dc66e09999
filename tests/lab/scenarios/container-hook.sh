#!/bin/sh
# A container with this hook, which is given the GPU: its nodes are made, what is stranded comes home first, and where a VM has the GPU it is refused by the VM's name, or starts without; while a VM is starting it is waited for, but no way home that waits for it; and what its own container is owed keeps no GPU away.
# lab: --timeout 900
# tier: full
. /usr/local/lib/lab-home.sh
conf=/etc/pve/lxc/104.conf; mkdir -p /etc/pve/lxc; card_vm
container() { printf 'arch: amd64\nhostname: cuda\nhookscript: local:snippets/gpu-handoff\nlxc.init.cmd: hold /dev/nvidia0 /dev/nvidiactl\n'; printf '%s\n' "$@"; }
container 'dev0: /dev/nvidia0' 'dev1: /dev/nvidiactl' 'dev2: /dev/nvidia-uvm' >$conf
runs() { is "$(pct status 104)" "status: running" "$1"; wait_for 20 fuser_sees; expect_rc 0 pct stop 104; }
fuser_sees() { ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q '/dev/nvidia0'; }

say "home, and its nodes have been removed"
rm -f /dev/nvidia0 /dev/nvidiactl /dev/nvidia-uvm
within 60 0 pct start 104; said "container 104 pre-start: /dev/nvidia0, /dev/nvidiactl, /dev/nvidia-uvm are there"; runs "without nodes"
say "home, and a node has another number than the driver's: it is made anew"
rm -f /dev/nvidia-uvm; mknod /dev/nvidia-uvm c 7 77; within 60 0 pct start 104; is "$(stat -c %Hr /dev/nvidia-uvm)" "$(awk '$2 == "nvidia-uvm" { print $1 }' /proc/devices)" "its major number"; runs "with another number"
say "home, and the driver is not loaded"
unload_nvidia; within 60 0 pct start 104; runs "without the driver"; modprobe -a nvidia_uvm nvidia_drm; wait_for 20 settled
say "with a VM: refused by its name"
within 60 0 qm start 111; away "with a VM"
within 60 255 pct start 104; said "container 104 is given /dev/nvidia0, /dev/nvidiactl, /dev/nvidia-uvm, which are not there: $gpu is with VM 111"; away "and it stays"
is "$(pct status 104)" "status: stopped" "the container"
say "with a VM, and it may start without"
container 'lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file' | sed 's/hold.*/sleep 1000/' >$conf; setting 'container-start = "go-on"'
within 60 0 pct start 104; said "$gpu is with VM 111; nothing is done about it"; expect_rc 0 pct stop 104
setting '[vm.105]' 'container-start = "go-on"'; within 60 255 pct start 104; said "$gpu is with VM 111"
setting '[vm.104]' 'container-start = "go-on"'; within 60 0 pct start 104; said "$gpu is with VM 111; nothing is done about it"; expect_rc 0 pct stop 104
setting 'container-start = "go-on"'
say "and another run takes its time"
{ flock -x 9; sleep 40; } 9>/run/gpu-handoff/lock & held=$!
sleep 1; within 60 0 pct start 104; said "container 104 pre-start: "; said "; nothing is done"; expect_rc 0 pct stop 104; wait $held; setting
within 90 0 qm stop 111; comes_home 60 "from the VM"
container 'dev0: /dev/nvidia0' 'dev1: /dev/nvidiactl' >$conf
say "stranded: it comes home first"
gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!; wait_for 30 test -e $record; wait_for 20 has_driver "$gpu" vfio-pci; kill -KILL $run 2>/dev/null; wait $run 2>/dev/null
systemctl stop "$watch"; within 90 0 pct start 104; said "is home after"; runs stranded; at_home stranded
say "stranded, and it is what was shut down for that: it comes home first, and waits for nothing of its own"
setting 'containers = "shutdown"'; within 60 0 pct start 104; wait_for 20 fuser_sees; first=$(lxc-info -n 104 -pH)
gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!; wait_for 120 has_driver "$gpu" vfio-pci; kill -KILL $run 2>/dev/null; wait $run 2>/dev/null
systemctl stop "$watch"; is "$(pct status 104)" "status: stopped" "the container"
within 120 0 pct start 104; said "is home after"; [ "$(lxc-info -n 104 -pH)" != "$first" ] || fail "it was not stopped"; runs "owed to itself"; comes_home 60 "owed to itself"; setting
say "the same, and the driver does not take it back: whatever comes of its start, it stays on record, and it runs when the GPU is home"
setting 'containers = "shutdown"' 'way = "unbind"'; within 60 0 pct start 104; wait_for 20 fuser_sees; stub probe_fail -1
gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!; wait_for 120 has_driver "$gpu" vfio-pci; kill -KILL $run 2>/dev/null; wait $run 2>/dev/null
systemctl stop "$watch"; timeout 200 pct start 104 >/root/said 2>&1; cat /root/said; said "the way home failed"
for file in $record /var/lib/gpu-handoff/stopped-*; do grep -qE '"container": ?"?104' "$file" || { cat "$file"; fail "it is not in $file"; }; done
stub probe_fail 0; within 200 0 gpu-handoff recover; wait_for 60 fuser_sees; comes_home 60 "by recover"; runs "by recover"; setting
say "a VM that is starting with it"
{ flock -x 9; sleep 12; } 9>$lock & within 60 0 gpu-handoff 111 pre-start; away starting
within 60 255 pct start 104; said "$gpu is with VM 111"; wait; within 90 0 gpu-handoff 111 post-stop; comes_home 60 starting
say "in the middle of a VM's start, which has the lock: it is waited for, and the container is refused by the VM's name"
hooks() { pgrep -f "gpu-handoff 111 pre-start"; }
asks() { pgrep -f "gpu-handoff 104 pre-start" >/dev/null; }
qm start 111 >/root/vm 2>&1 & start=$!; wait_for 30 hooks; first=$(hooks | head -n 1)
until [ ! -e /sys/module/nvidia ] || [ ! -e "/proc/$first" ]; do :; done; kill -STOP $first || { cat /root/vm; fail "the start was not halted"; }
pct start 104 >/root/said 2>&1 & run=$!; wait_for 20 asks; stays 3; asks || fail "it did not wait: $(cat /root/said)"
kill -CONT $first; wait $start; is $? 0 "the VM's start"; away "the VM's start"; wait $run; is $? 255 "the container's start"; cat /root/said
said "container 104 is given /dev/nvidia0, /dev/nvidiactl, which are not there: $gpu is with VM 111"; within 90 0 qm stop 111; comes_home 60 "with a container that was refused"
say "somebody starts it in the middle of the way home, which has the lock and is to start it as well: neither waits for the other"
setting 'containers = "shutdown"'; within 60 0 pct start 104; wait_for 20 fuser_sees; within 120 0 qm start 111; away "with it shut down"; is "$(pct status 104)" "status: stopped" "the container"
homes() { pgrep -f "gpu-handoff 111 post-stop"; }
qm stop 111 >/root/vm 2>&1 & stop=$!; wait_for 30 homes; first=$(homes | head -n 1)
until [ ! -e "/sys/bus/pci/devices/$gpu/driver" ] || [ ! -e "/proc/$first" ]; do :; done; kill -STOP $first || { cat /root/vm; fail "the way home was not halted"; }
pct start 104 >/root/said 2>&1 & run=$!; wait_for 20 asks; stays 3; asks || fail "it did not wait: $(cat /root/said)"
begun=$(date +%s); kill -CONT $first; wait $run; is $? 0 "its start"; cat /root/said; said "container 104 pre-start: it is started by the handoff for VM 111, which goes on; nothing is done"
[ $(($(date +%s) - begun)) -lt 20 ] || fail "it took $(($(date +%s) - begun)) s"; wait $stop; comes_home 60 "with a container that somebody has started"; wait_for 20 fuser_sees; runs "by somebody"; setting
say "its other phases do nothing, and neither does one that is given no GPU"
for phase in post-start pre-stop post-stop; do within 20 0 gpu-handoff 104 $phase; done
container | sed 's/hold.*/sleep 1000/' >$conf; within 60 0 pct start 104; said "it is given no node of NVIDIA's, nothing to do"; expect_rc 0 pct stop 104
rm $conf; at_home "in the end"
