#!/bin/sh
# The persistence daemon is stopped for the handoff and started again: at home, for the cards that stay, and after a refusal it runs on.
# tier: full
# lab: --cards 2
. /usr/local/lib/lab-card.sh
second=$(gpus | sed -n 2p)
holds() { # 0 or 1 for each card: whether the daemon has its node open
	pid=$(systemctl show -P MainPID nvidia-persistenced); [ "$pid" != 0 ] || { echo stopped; return; }
	for n in 0 1; do find "/proc/$pid/fd" -lname "/dev/nvidia$n" | wc -l; done | tr '\n' ' '; }
systemctl start nvidia-persistenced; wait_for 20 test -S /run/nvidia-persistenced/socket
is "$(holds)" "1 1 " "what the daemon holds"
pid=$(systemctl show -P MainPID nvidia-persistenced)
card_vm
say "refused for another reason: it runs on"
hold_open /dev/nvidia0; within 60 255 qm start 111; said "exit code 3"; kill $holder; wait $holder 2>/dev/null
is "$(systemctl show -P MainPID nvidia-persistenced)" "$pid" "its process"
say "one card leaves"
within 60 0 qm start 111; away "the first"
is "$(driver_of "$second")" nvidia "the second"
is "$(holds)" "0 1 " "what the daemon holds"
within 90 0 qm stop 111; at_home "the first"
is "$(holds)" "1 1 " "what the daemon holds"
say "both leave"
qm set 111 --hostpci1 "${second%.*},pcie=1" >/dev/null
within 60 0 qm start 111; away "the first"; is "$(driver_of "$second")" vfio-pci "the second"
is "$(holds)" stopped "the daemon"
within 90 0 qm stop 111; at_home "the first"; is "$(driver_of "$second") $(override_of "$second")" "nvidia (null)" "the second"
is "$(holds)" "1 1 " "what the daemon holds"
