#!/bin/sh
# Users that let go in time or not, by old and new drivers; modules that come back; functions on vfio-pci already; a leftover new_id.
# tier: full
. /usr/local/lib/lab-card.sh
vfio=/sys/bus/pci/drivers/vfio-pci
# driver VERSION REMOVE_MODE MODESET_REF: the modules of another release, loaded anew
driver() {
	printf 'options %s\n' "nvidia version=$1 remove_mode=$2" "nvidia_drm modeset_ref=$3" >/etc/modprobe.d/scenario-driver.conf
	unload_nvidia || fail "unload"; modprobe -a nvidia nvidia_uvm nvidia_drm || fail "load"
	grep -q " $1 " /proc/driver/nvidia/version || fail "it is not $1"; at_home "driver $1"
}
for release in "580.95.05 wait 1" "595.58.03 forever 0"; do
	driver $release
	for way in unload unbind; do
		setting "way = \"$way\""
		if [ "$way ${release%%.*}" = "unbind 595" ]; then within 30 3 gpu-handoff to_vfio; said "never ends"; at_home refused; continue; fi
		setting "way = \"$way\"" 'deadlines.holder-wait = 60'
		hold --for 8 /dev/nvidia0 >/dev/null & wait_for 10 fuser /dev/nvidia0
		within 60 0 gpu-handoff to_vfio; said "to let go"; away "$way, a holder let go"
		setting "way = \"$way\""
		within 60 0 gpu-handoff to_nvidia; at_home "$way"
		hold_open /dev/nvidia0
		within 40 3 gpu-handoff to_vfio; said "in use by process $holder (hold"; at_home "$way, a holder stays"
		kill $holder; wait $holder 2>/dev/null
	done
done
rm /etc/modprobe.d/scenario-driver.conf; setting
say "somebody loads the modules again and again"
while :; do modprobe -a nvidia nvidia_drm; sleep 0.02; done 2>/dev/null & loop=$!
for n in 1 2 3 4 5; do
	gpu-handoff to_vfio; rc=$?
	case $rc in 0) away "in spite of it, $n" ;; 1 | 3) at_home "not this time ($rc), $n" ;; *) fail "exit status $rc, $(both)" ;; esac
	within 60 0 gpu-handoff to_nvidia; at_home "$n"
done
kill $loop; wait $loop 2>/dev/null

say "the host's own settings keep functions on vfio-pci: they stay there"
keep() { echo vfio-pci >"$devices/$1/driver_override"; echo "$1" >"$devices/$1/driver/unbind"; echo "$1" >/sys/bus/pci/drivers_probe; }
release() { printf '\n' >"$devices/$1/driver_override"; echo "$1" >$vfio/unbind; echo "$1" >/sys/bus/pci/drivers_probe; }
card_vm
keep "$audio"; before=$(both); is "$before" "nvidia vfio-pci (null) vfio-pci" "the audio function is kept"
within 60 0 qm start 111; within 90 0 qm stop 111; is "$(both)" "$before" "after the guest"; release "$audio"; at_home "audio"
unload_nvidia; keep "$gpu"; before=$(both); is "$before" "vfio-pci snd_hda_intel vfio-pci (null)" "the GPU is kept"
within 60 0 qm start 111; within 90 0 qm stop 111; is "$(both)" "$before" "after the guest"; is "$(records)" "" "records"
release "$gpu"; modprobe -a nvidia nvidia_uvm nvidia_drm; at_home "the GPU"
say "a dynamic id that somebody left in vfio-pci"
ids="$(cut -c3- "$devices/$gpu/vendor") $(cut -c3- "$devices/$gpu/device")"
within 60 0 gpu-handoff to_vfio; echo "$ids" >$vfio/new_id || fail "new_id"
within 60 0 gpu-handoff to_nvidia; at_home "with the leftover id"
within 60 0 gpu-handoff to_vfio; away "with the leftover id"; within 60 0 gpu-handoff to_nvidia; at_home "once more"
echo "$ids" >$vfio/remove_id
