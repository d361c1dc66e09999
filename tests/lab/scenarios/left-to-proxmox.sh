#!/bin/sh
# Whole starts and stops in which the config is not what it seems: mdev, driver=keep, snapshot sections, changes that are pending.
# tier: full
# lab: --cards 2
. /usr/local/lib/lab.sh
first=$(gpus | sed -n 1p) second=$(gpus | sed -n 2p) conf=/etc/pve/qemu-server/111.conf
at() { is "$(driver_of "$first") $(driver_of "$second")" "$1" "$2"; }
mkdir -p /etc/lab; mkvm 111; qm set 111 --hookscript local:snippets/gpu-handoff >/dev/null
hostpci() { sed -i '/^hostpci/d' $conf; sed -i "1i hostpci0: $1" $conf; }
untouched() { # DRIVERS: through a start and a stop nothing of ours moves
	expect_text "left to Proxmox" qm start 111; qemu=$(cat /run/qemu-server/111.pid); is "$(qm status 111)" "status: running" "the VM"
	at "$1" "while it runs"; is "$(records)" "" "records"
	expect_rc 0 qm stop 111; wait_for 30 test ! -e "/proc/$qemu"; at "$1" "after it"; }

say "mdev: the physical card stays on its driver"
hostpci "$first,mdev=nvidia-63"; untouched "nvidia nvidia"

say "driver=keep: a card that the host itself has put on vfio-pci stays there"
modprobe -r nvidia_uvm nvidia_drm nvidia_modeset; modprobe vfio-pci
for f in "$second" "$(audio_of "$second")"; do
	echo vfio-pci >"$devices/$f/driver_override"; echo "$f" >"$devices/$f/driver/unbind"; echo "$f" >/sys/bus/pci/drivers_probe; done
hostpci "${second%.*},driver=keep"; untouched "nvidia vfio-pci"
is "$(override_of "$second")" vfio-pci "its override, the host's own"
for f in "$second" "$(audio_of "$second")"; do
	echo >"$devices/$f/driver_override"; echo "$f" >"$devices/$f/driver/unbind"; echo "$f" >/sys/bus/pci/drivers_probe; done
modprobe -a nvidia_uvm nvidia_drm; at "nvidia nvidia" "both at home"

for mechanism in new old; do
	echo $mechanism >/etc/lab/cleanup-mechanism
	say "$mechanism: a snapshot names the second card; the VM has the first"
	hostpci "${first%.*}"; printf '\n[before]\nhostpci0: %s\nsnaptime: 1\n' "${second%.*}" >>$conf
	expect_rc 0 qm start 111; at "vfio-pci nvidia" "the VM runs"
	say "$mechanism: what is set while it runs is pending, and in force before post-stop reads the config"
	qm set 111 --hostpci0 "${second%.*}" >/dev/null; grep -q '^\[PENDING\]' $conf || fail "nothing is pending"
	expect_rc 0 qm stop 111; wait_for 60 test ! -e /run/gpu-handoff/vm-111.json
	is "$(sed -n '1,/^\[/s/^hostpci0: //p' $conf)" "${second%.*}" "hostpci0 by now"; at "nvidia nvidia" "home"
	say "$mechanism: pending when it starts, it is in force before pre-start reads the config"
	sed -i "/^\[before\]/,\$d" $conf; printf '\n[PENDING]\nhostpci0: %s\n' "${first%.*}" >>$conf
	expect_rc 0 qm start 111; at "vfio-pci nvidia" "the VM runs with what was pending"
	expect_rc 0 qm stop 111; wait_for 60 test ! -e /run/gpu-handoff/vm-111.json; at "nvidia nvidia" "home"
done
is "$(cat $devices/*/driver_override | sort -u)" "(null)" "overrides"
