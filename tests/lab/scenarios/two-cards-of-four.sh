#!/bin/sh
# Two cards of four functions, one of which leaves, or both: holders, a hanging remove(), a driver that refuses, a card that dies.
# tier: full
# lab: --cards 2 --functions 4 --timeout 1200
. /usr/local/lib/lab-card.sh
second=$(gpus | sed -n 2p)
# The drivers and overrides of a card's functions, those of no driver among them
card() { for f in 0 1 2 3; do printf '%s %s, ' "$(driver_of "${1%.*}.$f")" "$(override_of "${1%.*}.$f")"; done; }
out=$(for f in 0 1 2 3; do printf 'vfio-pci (null), '; done)
first_home=$(card "$gpu") second_home=$(card "$second"); say "at home: $first_home"
home() { is "$(card "$gpu")" "$first_home" "the first card $1"; is "$(card "$second")" "$second_home" "the second card $1"; at_home "$1"; }
# vm N: a VM with N of the cards
vm() { rm -f /etc/pve/qemu-server/111.conf; mkvm 111 "${gpu%.*},pcie=1"; [ "$1" = 1 ] || qm set 111 --hostpci1 "${second%.*},pcie=1" >/dev/null || fail "qm set"
	qm set 111 --hookscript local:snippets/gpu-handoff >/dev/null || fail "qm set"; }
gone() { is "$(card "$gpu")" "$out" "the first card"; if [ $cards = 2 ]; then is "$(card "$second")" "$out" "the second card"
	else is "$(card "$second")" "$second_home" "the second card"; fi; }

for try in 1:auto 2:auto 2:unbind; do
	cards=${try%:*} way=${try#*:}; vm $cards; setting "way = \"$way\"" 'deadlines.holder-wait = 60'
	say "$cards of the cards, way $way"
	within 60 0 qm start 111; gone; within 90 0 qm stop 111; home "after the guest"
	hold --for 15 /dev/nvidia0 >/dev/null & wait_for 10 fuser /dev/nvidia0
	within 60 0 qm start 111; grep -q "to let go" /root/said || fail "nobody was waited for"; gone
	within 90 0 qm stop 111; home "after a holder that let go"
	setting "way = \"$way\""; hold_open /dev/nvidia0; within 40 255 qm start 111; said "in use by process $holder (hold"; home "while a holder stays"
	kill $holder; wait $holder 2>/dev/null
done

say "remove() hangs: the other card is not kept by it, and everything is home when the kernel lets go"
setting 'way = "unbind"' 'deadlines.bind = 3'; stub delay_remove_ms 25000
within 25 255 qm start 111; said "exit code 4"; said "no answer within 3000 ms"
within 15 255 qm start 111; said "is stuck in the kernel"
wait_for 90 test ! -e /run/gpu-handoff/vm-111.json; stub delay_remove_ms 0; home "by itself"

say "the driver refuses one of them, once and for ever"; setting 'way = "unbind"'
within 60 0 qm start 111; gone; stub probe_fail 1; within 120 0 qm stop 111; said "instead: "; home "after a refusal"
gpu-handoff to_vfio --vm 111 >/root/said 2>&1 || { cat /root/said; fail "to_vfio"; }; gone
stub probe_fail -1; within 120 4 gpu-handoff to_nvidia --vm 111; said "not restored"
is "$(driver_of "${gpu%.*}.1") $(driver_of "${second%.*}.1")" "snd_hda_intel snd_hda_intel" "the audio functions are home"
stub probe_fail 0; within 90 0 gpu-handoff recover; home "after the recovery"

say "one of them dies under its guest: the kernel itself waits a minute for it, and then the other comes home by itself"
setting 'deadlines.grace = 2'; within 60 0 qm start 111; gone; is "$(INJECT card1 dead)" ok "dead"
qm stop 111 >/root/said 2>&1; cat /root/said
wait_for 300 has_driver "$gpu" nvidia; wait_for 120 journalctl -q -t gpu-handoff --grep "does not answer any more"
wait_for 60 journalctl -q -t gpu-handoff --grep "way home failed"; is "$(card "$gpu")" "$first_home" "the first card"
is "$(records)" vm-111.json "the record"
is "$(INJECT card1 alive)" ok "alive"; within 90 0 gpu-handoff recover; home "after the recovery"

say "the audio function of one is on vfio-pci already, and stays there"
kept=${second%.*}.1; echo vfio-pci >"$devices/$kept/driver_override"; echo "$kept" >"$devices/$kept/driver/unbind"
echo "$kept" >/sys/bus/pci/drivers_probe; before=$(card "$second")
within 60 0 qm start 111; is "$(driver_of "$second")" vfio-pci "the second card"; within 90 0 qm stop 111
is "$(card "$second")" "$before" "the second card"; is "$(card "$gpu")" "$first_home" "the first card"; is "$(records)" "" "records"
