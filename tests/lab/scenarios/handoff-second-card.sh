#!/bin/sh
# One of two GPUs leaves: the other stays on nvidia all the time, and a process that holds it is not disturbed.
# lab: --cards 2
. /usr/local/lib/lab.sh
first=$(gpus | sed -n 1p) second=$(gpus | sed -n 2p)
hold_open /dev/nvidia0
minor=$(sed -n 's/^Device Minor:[[:space:]]*//p' "/proc/driver/nvidia/gpus/$first/information")
is "$minor" 0 "minor of $first"
( while sleep 0.05; do [ "$(driver_of "$first")" = nvidia ] || echo gone; done ) >/root/watch & watch=$!
mkvm 111 "${second%.*},pcie=1"
qm set 111 --hookscript local:snippets/gpu-handoff >/dev/null || fail "qm set"
expect_text "by hand" gpu-handoff plan --gpu "$second"
for round in 1 2; do
	expect_rc 0 qm start 111
	is "$(driver_of "$second") $(driver_of "$(audio_of "$second")")" "vfio-pci vfio-pci" "round $round, the second card"
	is "$(driver_of "$first") $(driver_of "$(audio_of "$first")")" "nvidia snd_hda_intel" "round $round, the first card"
	kill -0 "$holder" || fail "the holder has ended"
	expect_rc 0 qm stop 111
	is "$(driver_of "$second") $(driver_of "$(audio_of "$second")")" "nvidia snd_hda_intel" "round $round, back"
	is "$(override_of "$second")" "(null)" "override"
done
kill $watch
is "$(cat /root/watch)" "" "times the first card was without nvidia"
say "without a name nobody guesses which card is meant"
expect_text "there are 2 GPUs and none was named" gpu-handoff to_vfio
expect_rc 3 gpu-handoff to_vfio
say "the first card is in use: refused, with the holder's name"
expect_text "in use by process $holder" gpu-handoff to_vfio --gpu "$first"
is "$(driver_of "$first") $(override_of "$first")" "nvidia (null)" "the first card"
