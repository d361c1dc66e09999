#!/bin/sh
# The /proc entry outlives the unbind's wait; without nodes in /dev somebody has to make them.
# lab: --driver stub
. /usr/local/lib/lab.sh
gpu=$(gpus | head -1)
modprobe -r nvidia_drm
stub proc_late_ms 3000
echo "$gpu" >/sys/bus/pci/drivers/nvidia/unbind & writer=$!
sleep 1; [ -e "/proc/driver/nvidia/gpus/$gpu" ] || fail "the entry has gone already"
wait_for 5 test ! -e "/proc/driver/nvidia/gpus/$gpu"
wait "$writer" # until then a probe binds nothing
stub no_nodes 1
echo "$gpu" >/sys/bus/pci/drivers_probe
is "$(driver_of "$gpu")" nvidia driver
[ ! -e /dev/nvidia0 ] || fail "there is a node"
expect_rc 0 nvidia-modprobe -c 0
hold_open /dev/nvidia0; kill $holder
