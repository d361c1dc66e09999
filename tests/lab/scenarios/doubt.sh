#!/bin/sh
# Two GPUs, and a service and a process that use the one that stays, with nvidiactl open as nearly all have: refused with the setting that takes the risk; with that set the other one goes and comes, and they notice nothing.
# lab: --cards 2
# tier: full
. /usr/local/lib/lab-card.sh
second=$(gpus | sed -n 2p); card_vm
printf '[Service]\nExecStart=/usr/local/bin/hold /dev/nvidia1 /dev/nvidiactl\n' >/run/systemd/system/other.service
systemctl daemon-reload; systemctl start other; hold_open /dev/nvidia1 /dev/nvidiactl; other=$(systemctl show -P MainPID other)
uses() { [ "$(find "/proc/$1/fd" -lname /dev/nvidia1 2>/dev/null | wc -l)" = 1 ]; }
wait_for 20 uses "$other"
undisturbed() { kill -0 "$holder" || fail "$1: the process has ended"; is "$(systemctl show -P MainPID other)" "$other" "$1: the service"
	is "$(driver_of "$second") $(driver_of "$(audio_of "$second")")" "nvidia snd_hda_intel" "$1: the second card"; }
say "refused, with the setting"
setting 'way = "unbind"' 'deadlines.holder-wait = 1'; within 60 255 qm start 111
for who in "process $other (" "process $holder (hold"; do said "$who"; done
said "it uses $second, and may use this GPU as well"; said 'doubt = "go-on" in /etc/gpu-handoff/config.toml'
grep -q 'services = "other' /root/said && fail "a service that uses the other GPU is offered to be stopped"
at_home refused; undisturbed refused
for round in 1 2; do
	setting 'way = "unbind"' 'doubt = "go-on"'; within 60 0 qm start 111; away "round $round"; undisturbed "round $round, away"
	within 90 0 qm stop 111; at_home "round $round"; undisturbed "round $round, home"
done
say "one that is kept to no GPU is offered to be stopped as well"
hold_open /dev/nvidiactl; setting 'way = "unbind"' 'deadlines.holder-wait = 1'; within 60 255 qm start 111
said "nothing shows that it uses another GPU"; said "; or take the risk with doubt = "; at_home "refused again"
