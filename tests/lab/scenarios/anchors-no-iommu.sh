#!/bin/sh
# The peers' situation without an IOMMU (tests/lab/ANCHORS.md): right.
# lab: --iommu none
# tier: full
exec /usr/local/lib/lab-situations --strict --hook gpu-handoff \
	--out 'gpu-handoff to_vfio --gpu {gpu}' --home 'gpu-handoff to_nvidia --gpu {gpu}' \
	I
