#!/bin/sh
# A driver that takes the card back after a reset of the bus only: through the bridge, where the kernel offers that.
# lab: --kernel newest
# tier: full
. /usr/local/lib/lab-card.sh
card_vm; setting 'way = "unbind"'
bridge=$(basename "$(dirname "$(readlink -f $devices/$gpu)")")
[ -e $devices/$bridge/reset_subordinate ] || fail "the bridge $bridge has no reset_subordinate"
within 60 0 qm start 111; away "away"; stub probe_fail 3
within 120 0 qm stop 111; said "instead: "; grep -q "instead: .*reset with all below" /root/said || fail "no reset of the bus"
at_home "after it"
