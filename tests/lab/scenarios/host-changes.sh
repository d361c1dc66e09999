#!/bin/sh
# The host changes under a plan, as at boot, where udev may still be binding drivers: it is planned once more, and no more than that.
# tier: fast
. /usr/local/lib/lab-card.sh
drop_in=/run/systemd/system/nvidia-persistenced.service.d/scenario.conf
# when_stopped SCRIPT: what happens between our look and the acts, since the daemon is stopped first
when_stopped() { mkdir -p "${drop_in%/*}"; printf '[Service]\nExecStop=/bin/sh -c "%s"\n' "$1" >$drop_in; systemctl daemon-reload; }
probe="echo $audio >/sys/bus/pci/drivers_probe" unbind="echo $audio >$devices/$audio/driver/unbind"
sh -c "$unbind"; is "$(driver_of "$audio")" none "the audio function"
systemctl start nvidia-persistenced; card_vm
say "a driver comes"
when_stopped "$probe"
within 60 0 qm start 111; said "($audio: no driver then, snd_hda_intel now): planning once more"
is "$(grep -c 'planning once more' /root/said)" 1 "how often"
away "after the second plan"
within 90 0 qm stop 111; at_home "as the second plan has found it"
say "a driver goes and comes each time"
when_stopped "[ -e $devices/$audio/driver ] && $unbind || $probe"
sh -c "$unbind"
qm start 111 >/root/said 2>&1; rc=$?; cat /root/said
is "$(grep -c 'planning once more' /root/said)" 1 "how often"
case $rc in 0) away "all the same"; within 90 0 qm stop 111 ;; *) is "$(records)" "" "records" ;; esac
systemctl stop nvidia-persistenced; rm $drop_in; systemctl daemon-reload
[ "$(driver_of "$audio")" = snd_hda_intel ] || sh -c "$probe"; at_home "in the end"
