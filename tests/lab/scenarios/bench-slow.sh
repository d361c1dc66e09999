#!/bin/sh
# How much of a handoff is ours where the driver takes 2 s for each act.
# lab: --clock instructions --peers --stub version=590.48.01 --stub nvidia-drm.modeset_ref=0 --stub nvidia-drm.fbdev=0 --timeout 14400
# tier: named
exec /usr/local/lib/lab-bench slow
