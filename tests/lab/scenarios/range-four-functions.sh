#!/bin/sh
# Four cards of four functions: one group each, with all four in it.
# tier: full
# lab: --cards 4 --functions 4
. /usr/local/lib/lab.sh
lspci -nnk | grep -A3 10de:
for gpu in $(gpus); do
    group=/sys/kernel/iommu_groups/$(group_of "$gpu")/devices
    is "$(ls "$group" | cut -d. -f1 | sort -u)" "${gpu%.*}" "cards in the group"
    is "$(ls "$group" | wc -l)" 4 "functions in the group"
    is "$(cat "$devices/${gpu%.*}.2/class")" 0x0c0330 "class of .2"
    is "$(cat "$devices/${gpu%.*}.3/class")" 0x0c8000 "class of .3"
done
