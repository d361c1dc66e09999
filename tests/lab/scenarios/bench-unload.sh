#!/bin/sh
# What it costs to unload the driver, and to load it again: the bare calls, ours.
# lab: --clock instructions --peers --stub version=590.48.01 --stub nvidia-drm.modeset_ref=0 --stub nvidia-drm.fbdev=0 --timeout 14400
# tier: named
exec /usr/local/lib/lab-bench tools unload
