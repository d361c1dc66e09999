#!/bin/sh
# udev brings the unloaded driver back at the next event; with driver_override set it cannot take the GPU, nor be loaded.
# lab: --driver stub
. /usr/local/lib/lab.sh
gpu=$(gpus | head -1)
unload_nvidia || fail "unload"
udevadm trigger --action=add --subsystem-match=pci; udevadm settle
home() { [ "$(driver_of "$gpu")" = nvidia ]; }
wait_for 10 home
say "back on nvidia through udev"
unload_nvidia || fail "unload"
autoload off; udevadm trigger --action=add --subsystem-match=pci; udevadm settle
[ ! -e /sys/module/nvidia ] || fail "loaded in spite of the blacklist"
autoload on
echo vfio-pci >"$devices/$gpu/driver_override"
udevadm trigger --action=add --subsystem-match=pci; udevadm settle
[ "$(driver_of "$gpu")" != nvidia ] || fail "nvidia took the GPU in spite of the override"
[ "$(gpus | wc -l)" -gt 1 ] || expect_text "No such device" modprobe nvidia
dmesg | grep "NVRM: No NVIDIA devices probed."
