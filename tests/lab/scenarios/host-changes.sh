#!/bin/sh
# The host changes under a plan: a driver comes to a function, a module is loaded. It is planned once more, and no more than that.
# tier: full
. /usr/local/lib/lab-card.sh
drop_in=/run/systemd/system/nvidia-persistenced.service.d/scenario.conf stops=/run/scenario-stops
probe() { echo "$1" >/sys/bus/pci/drivers_probe; }
leave() { echo "$1" >"$devices/$1/driver/unbind"; }
# when_stopped SCRIPT: what happens between our look and the acts on the card, since the daemon is stopped first; $n counts
when_stopped() {
	echo 0 >$stops; printf '%s\n' '#!/bin/sh' "n=\$((\$(cat $stops) + 1)); echo \$n >$stops" "$1" >/root/on-stop; chmod 755 /root/on-stop; }
mkdir -p "${drop_in%/*}"; printf '[Service]\nExecStop=/root/on-stop\n' >$drop_in; systemctl daemon-reload
again() { is "$(grep -c 'planning once more' /root/said) $(cat $stops)" "1 2" "how often it was planned again, and the daemon stopped"; }
card_vm; systemctl start nvidia-persistenced
say "a driver comes"
leave "$audio"; when_stopped "echo $audio >/sys/bus/pci/drivers_probe"
within 60 0 qm start 111; said "$audio: no driver then, snd_hda_intel now): planning once more"; again
away "by the second plan"; within 90 0 qm stop 111; at_home "as the second plan has found it"
say "a driver comes, and what it is used by stays"
leave "$audio"; when_stopped "[ \$n -eq 1 ] && echo $audio >/sys/bus/pci/drivers_probe && systemd-run -q -u scenario-sound hold /dev/snd/controlC0 && sleep 1"
within 60 255 qm start 111; said "planning once more"; said "a sound node of $audio is in use by process"; said "the host is as it was before"
systemctl stop scenario-sound; at_home "with the driver that came"
say "a module comes"
rmmod nvidia_uvm || fail "rmmod"; when_stopped "modprobe nvidia_uvm"
within 60 0 qm start 111; said "nvidia_uvm: not loaded then): planning once more"; again
away "by the second plan"; within 90 0 qm stop 111; at_home "as the second plan has found it"
say "the driver comes and goes, and a user with it: twice it fails, and that is all"
leave "$audio"
when_stopped "case \$n in 1) echo $audio >/sys/bus/pci/drivers_probe ;; 2) echo $audio >$devices/$audio/driver/unbind; modprobe -r nvidia_uvm
systemd-run -q -u scenario-cuda hold /dev/nvidia0; sleep 1 ;; esac"
within 60 255 qm start 111; again; said "the host is as it was before"
systemctl stop scenario-cuda; probe "$audio"; modprobe nvidia_uvm
systemctl stop nvidia-persistenced; rm $drop_in; systemctl daemon-reload; at_home "in the end"
