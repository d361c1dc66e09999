#!/bin/sh
# The situations with two cards and 595's driver: all right.
# lab: --cards 2 --stub version=595.58.03 --stub remove_mode=forever --stub nvidia-drm.modeset_ref=0
# tier: full
exec /usr/local/lib/lab-situations --strict --hook gpu-handoff \
	--out 'gpu-handoff to_vfio --gpu {gpu}' --home 'gpu-handoff to_nvidia --gpu {gpu}' \
	K K2
