#!/bin/sh
# The card's faults, made from a script: dead and alive, FLR, slow, no FLR.
. /usr/local/lib/lab.sh
gpu=0000:01:00.0
resets() { INJECT card0 stat | sed 's/.*"card0.0": {"resets": \([0-9]*\).*/\1/'; }
vendor() { setpci -s "$gpu" VENDOR_ID; }

is "$(INJECT card0 nonsense | cut -c1-5)" error "a fault that does not exist"
is "$(INJECT card7 dead | cut -c1-5)" error "a card that does not exist"

is "$(vendor)" 10de "vendor of a card that is well"
is "$(INJECT card0 dead)" ok "INJECT card0 dead"
is "$(vendor)" ffff "vendor of a dead card"
is "$(INJECT card0 alive)" ok "INJECT card0 alive"
is "$(vendor)" 10de "vendor of a card that is alive again"

INJECT card0 slow 300
before=$(date +%s%3N)
vendor
took=$(($(date +%s%3N) - before))
[ $took -ge 300 ] || fail "a slow read took $took ms"
say "a read of a slow card took $took ms"
INJECT card0 well

# A reset is asked for on a card without a driver.
unload_nvidia
echo flr > $devices/$gpu/reset_method || fail "no FLR to ask for"
before=$(resets)
echo 1 > $devices/$gpu/reset
is "$(resets)" $((before + 1)) "resets after one"
INJECT card0 noflr
echo 1 > $devices/$gpu/reset
is "$(resets)" $((before + 1)) "resets after one without effect"
INJECT card0 well
echo 1 > $devices/$gpu/reset
is "$(resets)" $((before + 2)) "resets after one with effect again"
