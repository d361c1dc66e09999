#!/bin/sh
# Two cards in one IOMMU group, as on boards whose ports lack ACS.
# tier: full
# lab: --cards 2 --group shared
. /usr/local/lib/lab.sh
is "$(gpus | wc -l)" 2 "GPUs"
is "$(group_of 0000:01:00.0)" "$(group_of 0000:02:00.0)" "group of both"
