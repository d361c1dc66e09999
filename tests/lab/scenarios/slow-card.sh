#!/bin/sh
# A card in the middle of a reset that takes a minute: another one leaves and comes home meanwhile, and status says which does not answer.
# lab: --cards 3 --driver stub
# tier: full
. /usr/local/lib/lab-card.sh
second=$(gpus | sed -n 2p) home=$(both)
# The third stays: a load of NVIDIA's module would try every card of NVIDIA's, and wait for the lock of this one.
within 60 0 gpu-handoff to_vfio --gpu "$second"
is "$(INJECT card1 dead)" ok "the second card is dead"
echo 1 >"$devices/$second/reset" & reset=$!
waits() { dmesg | grep -q "$second: not ready"; }
wait_for 30 waits
within 60 0 gpu-handoff to_vfio --gpu "$gpu"; away "the first card"
within 30 0 gpu-handoff status; is "$(grep -c "does not answer" /root/said) $(grep "$second.*does not answer" /root/said | wc -l)" "2 1" "functions that do not answer"
within 60 0 gpu-handoff to_nvidia --gpu "$gpu"; is "$(both)" "$home" "the first card is home"
within 30 3 gpu-handoff to_nvidia --gpu "$second"; said "the kernel gives no answer about $second"; said "Hint: "
kill -0 $reset 2>/dev/null || fail "the reset was over before"
wait $reset; is "$(INJECT card1 alive)" ok "it answers again"
within 90 0 gpu-handoff to_nvidia --gpu "$second"; at_home "all of them"
is "$(driver_of "$second") $(driver_of "$(audio_of "$second")")" "nvidia snd_hda_intel" "the second card"
