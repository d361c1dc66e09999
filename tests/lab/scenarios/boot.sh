#!/bin/sh
# The card is there, in a group of its own, its functions bound to drivers.
set -eu
lspci -nnk -s 01:00
group=$(readlink /sys/bus/pci/devices/0000:01:00.0/iommu_group)
[ "$(readlink /sys/bus/pci/devices/0000:01:00.1/iommu_group)" = "$group" ]
[ "$(ls "/sys/kernel/iommu_groups/${group##*/}/devices" | wc -l)" = 2 ]
driver() { basename "$(readlink "/sys/bus/pci/devices/0000:01:00.$1/driver")"; }
[ "$(driver 0)" = nvidia ]
[ "$(driver 1)" = snd_hda_intel ]
