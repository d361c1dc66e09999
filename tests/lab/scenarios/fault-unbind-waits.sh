#!/bin/sh
# Up to driver 590: the unbind of a GPU in use sits in D state, deaf to SIGKILL, and goes on when the user lets go.
# lab: --driver stub
. /usr/local/lib/lab.sh
gpu=$(gpus | head -1)
modprobe -r nvidia_drm || fail "unload nvidia_drm"
hold_open /dev/nvidia0
echo "$gpu" >/sys/bus/pci/drivers/nvidia/unbind & writer=$!
wait_for 5 stuck $writer
kill -KILL $writer; sleep 2
is_stuck $writer "the writer after SIGKILL"
is "$(driver_of "$gpu")" none "the driver link meanwhile"
[ -e "/proc/driver/nvidia/gpus/$gpu" ] || fail "the /proc entry is gone"
dmesg | grep "NVRM: Attempting to remove device $gpu with non-zero usage count!" || fail "no line in the log"
kill $holder; wait_for 5 test ! -e /proc/$writer
wait_for 2 test ! -e "/proc/driver/nvidia/gpus/$gpu"
dmesg | grep "NVRM: Continuing with GPU removal for device $gpu" || fail "no line in the log"
