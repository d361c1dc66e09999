#!/bin/sh
# There and back by hand, without our program: unload, VM with Proxmox VE's own binding, load; on every kernel and IOMMU.
# tier: full
# lab: --driver stub
. /usr/local/lib/lab.sh
gpu=$(gpus | head -1) audio=$(audio_of "$gpu")
for round in 1 2; do
	unload_nvidia || fail "unload"
	[ $round = 1 ] && mkvm 111 "${gpu%.*},pcie=1"
	expect_rc 0 qm start 111
	is "$(driver_of "$gpu") $(driver_of "$audio")" "vfio-pci vfio-pci" "with the VM, round $round"
	expect_rc 0 qm stop 111
	for function in "$gpu" "$audio"; do echo "$function" >/sys/bus/pci/drivers/vfio-pci/unbind; done
	ids="$(cut -c3- "$devices/$gpu/vendor") $(cut -c3- "$devices/$gpu/device")"
	echo "$ids" >/sys/bus/pci/drivers/vfio-pci/remove_id	# what Proxmox VE has left behind
	modprobe -a nvidia nvidia_uvm nvidia_drm || fail "load"
	echo "$audio" >/sys/bus/pci/drivers/snd_hda_intel/bind
	is "$(driver_of "$gpu") $(driver_of "$audio")" "nvidia snd_hda_intel" "home, round $round"
done
dmesg | grep -E 'BUG:|Oops|WARNING:|general protection' && fail "the kernel complains"
exit 0
