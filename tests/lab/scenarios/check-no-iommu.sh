#!/bin/sh
# Without an IOMMU `check` fails, and says what turns it on.
# lab: --iommu none
. /usr/local/lib/lab.sh
expect_rc 3 gpu-handoff check
expect_text "FAIL: iommu: the IOMMU is off" gpu-handoff check
for text in "FAIL: iommu-firmware: the firmware describes no IOMMU" "VT-d" "SKIP: gpu-group: the IOMMU is off"; do
	expect_text "$text" gpu-handoff check
done
expect_text '"level": "fail"' gpu-handoff check --json
expect_rc 0 gpu-handoff check --skip iommu iommu-firmware
