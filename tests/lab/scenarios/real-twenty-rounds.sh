#!/bin/sh
# NVIDIA's own open modules: there and back twenty times in one boot by unload, twenty times by unbind.
# lab: --driver real --timeout 1800
# tier: full
. /usr/local/lib/lab.sh
gpu=$(gpus | head -n 1) audio=$(audio_of "$gpu")
modinfo -F license nvidia | grep -q MIT || fail "these are not NVIDIA's modules"
rm -f /usr/bin/nvidia-smi # a card without a GSP does not answer it
mkdir -p /etc/gpu-handoff/conf.d
for way in unload unbind; do
	echo "way = \"$way\"" >/etc/gpu-handoff/conf.d/way.toml
	for round in $(seq 20); do
		gpu-handoff -q to_vfio || fail "$way, round $round: away"
		[ "$(driver_of "$gpu") $(driver_of "$audio")" = "vfio-pci vfio-pci" ] || fail "$way, round $round: not away"
		gpu-handoff -q to_nvidia || fail "$way, round $round: home"
		is "$(driver_of "$gpu") $(driver_of "$audio") $(override_of "$gpu") $(override_of "$audio")" \
			"nvidia snd_hda_intel (null) (null)" "$way, round $round"
		[ -e "/proc/driver/nvidia/gpus/$gpu/information" ] || fail "the driver has no GPU"
	done
done
is "$(left)" "" "what is left"
