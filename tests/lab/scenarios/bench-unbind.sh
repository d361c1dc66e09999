#!/bin/sh
# What it costs to unbind a card and to bring it home: the bare calls, ours, driverctl, virsh.
# lab: --clock instructions --peers --stub version=590.48.01 --stub nvidia-drm.modeset_ref=0 --stub nvidia-drm.fbdev=0 --timeout 14400
# tier: named
exec /usr/local/lib/lab-bench tools unbind
