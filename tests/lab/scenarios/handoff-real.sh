#!/bin/sh
# NVIDIA's own open modules give the card up to a VM and take it back, three times; a holder is refused by name.
# lab: --driver real
# tier: full
. /usr/local/lib/lab.sh
gpu=$(gpus | head -n 1) audio=$(audio_of "$gpu")
modinfo -F license nvidia | grep -q MIT || fail "these are not NVIDIA's modules"
rm -f /usr/bin/nvidia-smi # a card without a GSP does not answer it
mkvm 111 "${gpu%.*},pcie=1"; qm set 111 --hookscript local:snippets/gpu-handoff >/dev/null
for round in 1 2 3; do
	expect_rc 0 qm start 111
	is "$(driver_of "$gpu") $(driver_of "$audio")" "vfio-pci vfio-pci" "round $round"
	expect_rc 0 qm stop 111
	is "$(driver_of "$gpu") $(driver_of "$audio") $(override_of "$gpu")" "nvidia snd_hda_intel (null)" "round $round, back"
	[ -e "/proc/driver/nvidia/gpus/$gpu/information" ] || fail "the driver has no GPU"
	is "$(left)" "" "what is left, round $round"
done
[ -c /dev/nvidiactl ] || mknod /dev/nvidiactl c 195 255 # nobody runs nvidia-modprobe here
hold_open /dev/nvidiactl
expect_text "in use by process $holder (hold" gpu-handoff to_vfio
is "$(driver_of "$gpu")" nvidia "driver"
