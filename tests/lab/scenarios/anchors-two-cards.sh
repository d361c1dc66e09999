#!/bin/sh
# The peers' situations with two cards (tests/lab/ANCHORS.md): all right.
# lab: --cards 2
# tier: full
exec /usr/local/lib/lab-situations --strict --hook gpu-handoff \
	--out 'gpu-handoff to_vfio --gpu {gpu}' --home 'gpu-handoff to_nvidia --gpu {gpu}' \
	K K2
