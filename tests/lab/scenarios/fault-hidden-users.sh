#!/bin/sh
# Users of a GPU that have no descriptor of its node: a mapping, and GPUs attached through nvidiactl.
# lab: --driver stub
. /usr/local/lib/lab.sh
gpu=$(gpus | head -1)
for way in "--map /dev/nvidia0" "--attach /dev/nvidiactl"; do
	modprobe -r nvidia_drm
	# shellcheck disable=SC2086
	hold_open $way
	ls -l /proc/$holder/fd | grep nvidia
	! ls -l /proc/$holder/fd | grep -q /dev/nvidia0 || fail "it has a descriptor of the node"
	echo "$gpu" >/sys/bus/pci/drivers/nvidia/unbind & writer=$!
	sleep 1; is_stuck $writer "the unbind with a user by $way"
	kill $holder; wait_for 5 test ! -e /proc/$writer
	echo "$gpu" >/sys/bus/pci/drivers_probe; modprobe nvidia_drm
done
