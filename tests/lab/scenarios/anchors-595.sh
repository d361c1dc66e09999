#!/bin/sh
# The same situations with a driver whose unbind may never end, 595's: all right.
# lab: --stub version=595.58.03 --stub remove_mode=forever --stub nvidia-drm.modeset_ref=0 --timeout 1800
# tier: long
exec /usr/local/lib/lab-situations --strict --hook gpu-handoff \
	--out 'gpu-handoff to_vfio --gpu {gpu}' --home 'gpu-handoff to_nvidia --gpu {gpu}' \
	N A "A'" 'B(a)' 'B(b)' C D E F G "G'" H J K3 L M
