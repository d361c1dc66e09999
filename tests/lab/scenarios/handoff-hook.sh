#!/bin/sh
# The main job: a VM's start takes the GPU to vfio-pci, its stop brings it home, by the new and the old way to post-stop.
. /usr/local/lib/lab.sh
gpu=$(gpus | head -n 1) audio=$(audio_of "$gpu")
at_home() {
	is "$(driver_of "$gpu") $(driver_of "$audio")" "nvidia snd_hda_intel" "drivers"
	is "$(override_of "$gpu") $(override_of "$audio")" "(null) (null)" "overrides"
	is "$(left)" "" "records"
	for m in nvidia nvidia_modeset nvidia_drm nvidia_uvm; do [ -d /sys/module/$m ] || fail "$m is not loaded"; done
	[ -c /dev/nvidia0 ] || fail "no /dev/nvidia0"
}
mkvm 111 "${gpu%.*},pcie=1"
qm set 111 --hookscript local:snippets/gpu-handoff || fail "qm set"
mkdir -p /etc/lab
for mechanism in new old; do
	echo $mechanism >/etc/lab/cleanup-mechanism
	at_home
	expect_rc 0 qm start 111
	is "$(driver_of "$gpu") $(driver_of "$audio")" "vfio-pci vfio-pci" "drivers"
	is "$(override_of "$gpu") $(override_of "$audio")" "(null) (null)" "overrides"
	is "$(cat /sys/bus/pci/drivers/vfio-pci/new_id 2>/dev/null)" "" "new_id"
	[ -d /sys/module/nvidia ] && say "udev has loaded nvidia again; it has no card"
	fuser "/dev/vfio/$(group_of "$gpu")" >/dev/null 2>&1 || fail "no QEMU holds the group"
	expect_text "lent to: VM 111 (away)" gpu-handoff status
	expect_rc 0 qm stop 111
	wait_for 60 test ! -e /run/gpu-handoff/vm-111.json
	at_home
done
say "Proxmox's unwanted help was not needed: the kernel knows no dynamic id"
journalctl -t gpu-handoff -o cat | grep -q "VM 111: ${gpu%.*} is home after" || fail "nothing in the journal"
journalctl -t gpu-handoff -o json | grep -q '"VMID":"111"' || fail "no VMID in the journal"
