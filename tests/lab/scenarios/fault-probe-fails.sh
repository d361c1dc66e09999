#!/bin/sh
# The driver's probe fails, once or always; drivers_probe returns success all the same.
# lab: --driver stub
. /usr/local/lib/lab.sh
gpu=$(gpus | head -1)
modprobe -r nvidia_drm; echo "$gpu" >/sys/bus/pci/drivers/nvidia/unbind
stub probe_fail 1
expect_rc 0 sh -c "echo $gpu >/sys/bus/pci/drivers_probe"
is "$(driver_of "$gpu")" none "after drivers_probe with one failure"
echo "$gpu" >/sys/bus/pci/drivers_probe; is "$(driver_of "$gpu")" nvidia "at the second try"
echo "$gpu" >/sys/bus/pci/drivers/nvidia/unbind; stub probe_fail -1
for _ in 1 2 3; do echo "$gpu" >/sys/bus/pci/drivers_probe; done
is "$(driver_of "$gpu")" none "after three tries with probe_fail=-1"
expect_text "Operation not permitted" sh -c "echo $gpu | tee /sys/bus/pci/drivers/nvidia/bind"
unload_nvidia; expect_text "No such device" modprobe nvidia probe_fail=-1
