#!/bin/sh
# nvidia_drm with modeset=1: up to 580 it holds its GPU until it is unloaded; later drivers let it drop the GPU.
# lab: --driver stub
. /usr/local/lib/lab.sh
gpu=$(gpus | head -1)
is "$(cat /proc/fb)" "0 nvidia-drmdrmfb" "/proc/fb"
echo "$gpu" >/sys/bus/pci/drivers/nvidia/unbind & writer=$!
sleep 1; is_stuck $writer "the unbind while nvidia_drm is loaded"
rmmod nvidia_drm; wait_for 5 test ! -e /proc/$writer; say "it ended with rmmod nvidia_drm"

echo "$gpu" >/sys/bus/pci/drivers_probe; modprobe nvidia_drm modeset_ref=0
[ -e /dev/dri/card0 ] || ls /dev/dri
echo "$gpu" >/sys/bus/pci/drivers/nvidia/unbind; is "$(driver_of "$gpu")" none "with modeset_ref=0 the unbind returns"
is "$(ls /sys/class/drm | grep -c '^card[0-9]*$')" 0 "DRM devices"
echo "$gpu" >/sys/bus/pci/drivers_probe
is "$(ls /sys/class/drm | grep -c '^card[0-9]*$')" 1 "DRM devices after the GPU came back"
dmesg | grep -E 'BUG|Oops|WARNING|use-after-free' && fail "the kernel complains"
exit 0
