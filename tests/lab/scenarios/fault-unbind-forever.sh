#!/bin/sh
# From driver 595 on: the unbind of a GPU in use never ends, whatever becomes of the user.
# lab: --driver stub
. /usr/local/lib/lab.sh
gpu=$(gpus | head -1)
modprobe -r nvidia_drm || fail "unload nvidia_drm"
stub remove_mode forever
hold_open /dev/nvidia0
echo "$gpu" >/sys/bus/pci/drivers/nvidia/unbind & writer=$!
sleep 1
kill $holder; wait $holder 2>/dev/null
sleep 5
is_stuck $writer "the writer, five seconds after the user has gone"
expect_rc 1 hold --for 1 /dev/nvidia0
stub remove_mode none		# the lab's way out; a real host has none
wait_for 5 test ! -e /proc/$writer
