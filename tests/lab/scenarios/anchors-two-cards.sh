#!/bin/sh
# The peers' situations with two VMs and with two cards (tests/lab/ANCHORS.md).
# tier: full
# lab: --cards 2
. /usr/local/lib/lab.sh
. /usr/local/lib/lab-anchors
second=$(gpus | sed -n 2p)
for vm in 111 112; do mkvm $vm "${gpu%.*},pcie=1"; qm set $vm --hookscript local:snippets/gpu-handoff >/dev/null; done
expect_rc 0 qm start 111; qemu=$(cat /run/qemu-server/111.pid); dmesg -C
refused F1 "second VM's hook on a running VM's card" "VM 111" gpu-handoff 112 pre-start
expect_text "VM 111" qm start 112; is "$(qm status 112)" "status: stopped" "F2"
row F2 "second VM starts" "its start fails with that sentence"
expect_rc 0 gpu-handoff 112 post-stop
refused F3 "somebody brings a running VM's card home" "VM 111" gpu-handoff to_nvidia --gpu "$gpu"
dmesg | grep -q "Relaying device request" && fail "the running VM was asked to give the device up"
kill -0 "$qemu" || fail "F: QEMU has ended"
expect_rc 0 qm stop 111; wait_for 60 test ! -e /run/gpu-handoff/vm-111.json; at_home F4
row F4 "first VM then stops" "home"
gpu-handoff to_vfio --gpu "$second" || fail K
is "$(driver_of "$second") $(driver_of "$(audio_of "$second")")" "vfio-pci vfio-pci" "K: the second card"; at_home "K: the first card"
row K "two same-model cards, the second wanted" "only the second moves"
echo "$audio" >/sys/bus/pci/drivers/snd_hda_intel/unbind; echo "$audio" >/sys/bus/pci/drivers_probe
at_home K2; row K2 "the first card's audio unbound meanwhile" "no id is left behind to grab it"
gpu-handoff to_nvidia --gpu "$second" || fail "K home"; is "$(driver_of "$second")" nvidia "K home"
cat /root/table
