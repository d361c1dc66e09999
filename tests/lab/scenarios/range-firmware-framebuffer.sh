#!/bin/sh
# The firmware's framebuffer is on a second display card: the kernel's own driver for it holds the card's memory.
# tier: full
# lab: --display firmware
. /usr/local/lib/lab.sh
cat /proc/fb
grep -qiE 'simple|vesa' /proc/fb || fail "no framebuffer of the firmware"
grep -iE 'BOOTFB|simple|vesa' /proc/iomem || fail "its memory is nobody's"
is "$(driver_of 0000:00:02.0)" none "driver of the display card"
