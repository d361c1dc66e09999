#!/bin/sh
# status: a watch sees a whole trip by its events and rests in between; the lines of the script, groups, history, and how a watch ends.
# tier: full
. /usr/local/lib/lab.sh
gpu=$(gpus | head -n 1) audio=$(audio_of "$gpu") group=$(group_of "$gpu")
last() { tail -n 1 /root/watched | grep -q "\"state\":\"$1\""; }
ticks() { awk '{print $14 + $15}' "/proc/$1/stat"; }
is "$(gpu-handoff status --plain | tr '\n' ' ')" "[gpu-handoff] $gpu driver=nvidia [gpu-handoff] $audio driver=snd_hda_intel " "the script's lines"
expect_text "IOMMU group $group" gpu-handoff status --groups
mkvm 111 "${gpu%.*},pcie=1"; qm set 111 --hookscript local:snippets/gpu-handoff || fail "qm set"

gpu-handoff status --watch --json >/root/watched & watch=$!
wait_for 20 last host
sleep 2; before=$(ticks $watch) lines=$(wc -l </root/watched); sleep 20 # nothing happens
[ $(($(ticks $watch) - before)) -lt 20 ] || fail "$(($(ticks $watch) - before)) ticks in 20 s in which nothing happens"
is "$(wc -l </root/watched)" "$lines" "lines of a watch in which nothing happens"
expect_rc 0 qm start 111
wait_for 20 last vm
say "who opens a node is an event, too: QEMU is among the users"
wait_for 20 sh -c "tail -n 1 /root/watched | grep -q '\"users\":\[\"VM 111\"\]'"
expect_rc 0 qm stop 111
wait_for 60 test ! -e /run/gpu-handoff/vm-111.json
wait_for 20 last host
grep -q '"state":"handing-over"' /root/watched || say "no look fell into the handoff itself"
kill -TERM $watch; wait $watch; is $? 143 "status of a watch that was ended by a signal"
say "its reader goes: it ends by itself"
bounded 20 sh -c 'gpu-handoff status --watch | head -n 1 >/dev/null' || fail "a watch goes on without a reader"

expect_text "last:    " gpu-handoff status --vm 111
expect_text "VM 111: ${gpu%.*} home" gpu-handoff history -v --vm 111 --since 1h
is "$(gpu-handoff history --vm 112)" "No handoff so far." "history of another VM"
expect_rc 3 gpu-handoff status --gpu 7
