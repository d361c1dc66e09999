#!/bin/sh
# Another display card is the boot VGA; the GPU has a console of its own.
# tier: full
# lab: --display bochs
. /usr/local/lib/lab.sh
is "$(cat $devices/0000:00:02.0/boot_vga)" 1 "boot VGA of bochs"
is "$(cat $devices/0000:01:00.0/boot_vga)" 0 "boot VGA of the GPU"
cat /proc/fb
expect_text bochs cat /proc/fb
