#!/bin/sh
# A card that fell off the bus: it reads ffff, and a reset of it blocks for 70 seconds.
# tier: full
# lab: --driver stub
. /usr/local/lib/lab.sh
gpu=$(gpus | head -1)
unload_nvidia || fail "unload"
expect_text ok INJECT card0 dead
is "$(od -An -tx1 -N4 "$devices/$gpu/config" | tr -d ' ')" ffffffff "the first bytes of its config space"
begun=$(date +%s)
echo 1 >"$devices/$gpu/reset" && fail "the reset succeeded"
took=$(($(date +%s) - begun))
[ $took -ge 55 ] || fail "the reset took $took s"
say "the reset took $took s"; dmesg | grep -i "$gpu.*\(not ready\|FLR\)" | tail -3
