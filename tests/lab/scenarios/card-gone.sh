#!/bin/sh
# A card that falls off the bus, before, during and after the way out: nothing waits a minute for it, and recover brings it home.
# lab: --driver stub
. /usr/local/lib/lab-card.sh
gone="does not answer any more"
is "$(INJECT card0 dead)" ok "a card that is dead before"
before=$(both)
within 10 3 gpu-handoff to_vfio; said "$gone"; said "Hint: "
is "$(both)" "$before" "after the refusal"; is "$(records)" "" "records"
is "$(INJECT card0 alive)" ok "alive"; at_home "alive again"

say "it dies while it is away"
within 60 0 gpu-handoff to_vfio; away "by hand"
is "$(INJECT card0 dead)" ok "dead"
within 15 4 gpu-handoff to_nvidia; said "$gone"; said "power cycle"; grep "load the module" /root/said && fail "its modules have no card"
[ "$(records)" ] || fail "no record is left"
within 10 3 gpu-handoff to_vfio; said "$gone"
within 15 4 gpu-handoff recover; said "$gone"
is "$(INJECT card0 alive)" ok "alive"
within 90 0 gpu-handoff recover; at_home "recovered"

say "it dies on the way out, while its driver lets it go"
setting 'way = "unbind"'; stub delay_remove_ms 3000
gpu-handoff to_vfio >/root/said 2>&1 & run=$!
wait_for 60 has_driver "$gpu" none
is "$(INJECT card0 dead)" ok "dead"; from=$(date +%s)
wait $run; is $? 4 "exit status"; cat /root/said; said "$gone"
took=$(($(date +%s) - from)); [ $took -le 25 ] || fail "it took $took s"
stub delay_remove_ms 0
is "$(INJECT card0 alive)" ok "alive"
within 90 0 gpu-handoff recover; at_home "recovered"

say "a card whose function-level reset does nothing"
is "$(INJECT card0 noflr)" ok "noflr"
card_vm
within 60 0 qm start 111; away "with a guest"
within 90 0 qm stop 111; at_home "after the guest"
