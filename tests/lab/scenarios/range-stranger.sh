#!/bin/sh
# A stranger, a USB controller with its driver, in the card's IOMMU group.
# tier: full
# lab: --group stranger
. /usr/local/lib/lab.sh
lspci -nnk
is "$(group_of 0000:01:00.0)" "$(group_of 0000:02:00.0)" "group of both"
is "$(driver_of 0000:02:00.0)" xhci_hcd "the stranger's driver"
