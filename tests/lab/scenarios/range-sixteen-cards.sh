#!/bin/sh
# Sixteen cards, each in a group of its own, all functions bound.
# tier: full
# lab: --cards 16
. /usr/local/lib/lab.sh
say "boot time: $(cut -d. -f1 /proc/uptime) s"
lspci -nn | grep 10de:
is "$(gpus | wc -l)" 16 "GPUs"
groups=$(for gpu in $(gpus); do group_of "$gpu"; done | sort -u | wc -l)
is "$groups" 16 "groups"
for gpu in $(gpus); do
    is "$(driver_of "$gpu")" nvidia "$gpu"
    is "$(driver_of "$(audio_of "$gpu")")" snd_hda_intel "audio of $gpu"
    is "$(group_of "$(audio_of "$gpu")")" "$(group_of "$gpu")" "its group"
done
is "$(ls /dev/nvidia[0-9]* | wc -l)" 16 "nodes"
