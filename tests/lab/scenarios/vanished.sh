#!/bin/sh
# A card that somebody removes from the bus while it is away: a rescan finds it, and it comes home; also where its bridge has gone, too.
# tier: full
. /usr/local/lib/lab-card.sh
bridge=$(basename "$(dirname "$(readlink "$devices/$gpu")")")
remove() { for f; do echo 1 >"$devices/$f/remove" || fail "remove $f"; [ ! -e "$devices/$f" ] || fail "$f is still there"; done; }
for way in unload unbind; do
	setting "way = \"$way\""
	for gone in "$audio $gpu" "$gpu" "$audio"; do
		within 60 0 gpu-handoff to_vfio; away "by hand"; remove $gone
		within 90 0 gpu-handoff to_nvidia; said "look for it again below $bridge"; at_home "$gone removed, way $way"
	done
done
say "a record of an earlier version, which does not know the bridge"
within 60 0 gpu-handoff to_vfio; away "by hand"; remove "$audio" "$gpu"
sed -i 's/"parent": *"[^"]*"/"parent": null/' /run/gpu-handoff/by-hand-*.json
within 90 0 gpu-handoff to_nvidia --gpu "${gpu#0000:}"; said "look for it again on all buses"; at_home "without the bridge on record"
say "its bridge is gone, too"
within 60 0 gpu-handoff to_vfio; away "by hand"; remove "$audio" "$gpu" "$bridge"
within 10 3 gpu-handoff to_vfio
within 90 0 gpu-handoff to_nvidia; said "look for it again on all buses"; at_home "with its bridge"
