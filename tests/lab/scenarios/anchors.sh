#!/bin/sh
# The situations in which the peers hang, lose the card or keep silent (tests/lab/ANCHORS.md), one after the other: all right.
# lab: --timeout 1800
# tier: full
exec /usr/local/lib/lab-situations --strict --hook gpu-handoff \
	--out 'gpu-handoff to_vfio --gpu {gpu}' --home 'gpu-handoff to_nvidia --gpu {gpu}' \
	N A "A'" 'B(a)' 'B(b)' C D E F G "G'" H J K3 L M
