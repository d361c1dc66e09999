#!/bin/sh
# One card beside all sixteen, by unbind, with a driver that takes 1 s for each.
# lab: --clock instructions --cards 16 --stub version=590.48.01 --stub nvidia-drm.modeset_ref=0 --stub nvidia-drm.fbdev=0 --timeout 14400
# tier: named
exec /usr/local/lib/lab-bench growth unbind
