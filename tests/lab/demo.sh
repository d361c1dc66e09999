#!/bin/bash
# The main job, step by step, as somebody at the prompt of a Proxmox VE host
# would do it: each command is shown, then run for real. Stops at the first
# command that fails.
set -eu
export DEBIAN_FRONTEND=noninteractive # there is no terminal to ask at
card=01:00
show() { # COMMAND: print it as typed at a root prompt, run it
    printf '\n# %s\n' "$1"
    eval "$1"
}

# A VM with the card as its PCI device, as Proxmox's own dialog would make it.
cat > /etc/pve/qemu-server/111.conf <<CONF
name: gaming
memory: 512
machine: q35
hostpci0: 0000:$card,pcie=1
CONF

show "lspci -nnk -s $card"
show 'apt install ./gpu-handoff_*.deb'
show 'qm config 111'
show 'qm set 111 --hookscript local:snippets/gpu-handoff'
show 'qm start 111'
show "lspci -nnk -s $card"
group=$(basename "$(readlink /sys/bus/pci/devices/0000:$card.0/iommu_group)")
show "fuser -v /dev/vfio/$group"
show 'gpu-handoff status'
show 'qm stop 111'
show "lspci -nnk -s $card"
show "cat /sys/bus/pci/devices/0000:$card.?/driver_override"

# What was shown must be so, or the demo has failed.
for function in 0=nvidia 1=snd_hda_intel; do
    driver=$(basename "$(readlink "/sys/bus/pci/devices/0000:$card.${function%=*}/driver")")
    [ "$driver" = "${function#*=}" ] || { echo "FAILED: $card.${function%=*} is on $driver"; exit 1; }
done
[ "$(sort -u /sys/bus/pci/devices/0000:$card.?/driver_override)" = "(null)" ] || { echo "FAILED: an override is left"; exit 1; }
