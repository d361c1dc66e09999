#!/bin/sh
# Without an IOMMU nothing is touched, and the message says what turns it on.
# lab: --iommu none
. /usr/local/lib/lab.sh
gpu=$(gpus | head -n 1)
before=$(cat /proc/driver/nvidia/gpus/*/information; ls /sys/module)
for text in "the IOMMU is off" "intel_iommu=on" "VT-d" "AMD-Vi" "nothing was changed"; do
	expect_text "$text" gpu-handoff to_vfio
done
expect_rc 3 gpu-handoff to_vfio
mkvm 111 "${gpu%.*}"; qm set 111 --hookscript local:snippets/gpu-handoff >/dev/null || fail "qm set"
expect_text "the IOMMU is off" qm start 111
expect_rc 3 gpu-handoff 111 pre-start
is "$(driver_of "$gpu") $(driver_of "$(audio_of "$gpu")")" "nvidia snd_hda_intel" "drivers"
is "$(override_of "$gpu")" "(null)" "override"
is "$(cat /proc/driver/nvidia/gpus/*/information; ls /sys/module)" "$before" "modules and GPUs"
is "$(left)" "" "records"
