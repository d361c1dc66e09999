#!/bin/sh
# A console on the only card: it is taken off, the ways in that remain are said, and it is back at home; by both ways out, and where the start is undone or killed before anything else was done.
# tier: full
# lab: --stub nvidia-drm.fbcon_pin=1
. /usr/local/lib/lab-home.sh
consoles() { grep -H . /sys/class/vtconsole/*/name /sys/class/vtconsole/*/bind; cat /proc/fb; }
fbcon_is_on() { for v in $(grep -l 'frame buffer' /sys/class/vtconsole/*/name); do grep -q 1 "${v%name}bind" && return; done; false; }
card_vm
drawn=$(consoles); echo "$drawn"
fbcon_is_on || fail "no framebuffer console before"
grep -q nvidia /proc/fb || fail "no framebuffer of the card"
[ "$(cat /sys/module/nvidia_drm/refcnt)" -gt 0 ] || fail "nothing keeps nvidia_drm loaded: this would show nothing"
for way in unload unbind; do
	setting "way = \"$way\""; at_home "before $way"
	within 60 0 qm start 111; said "the local console is dark until the GPU is home"; said "serial console ttyS0 and SSH"
	away "by $way"
	fbcon_is_on && fail "the framebuffer console is on while the card is away"
	is "$(cat /proc/fb)" "" "framebuffers while away"
	within 90 0 qm stop 111
	at_home "after $way"
	is "$(consoles)" "$drawn" "consoles and framebuffers"
	is_off() { ! fbcon_is_on; }
	undone "$way" is_off; is "$(consoles)" "$drawn" "consoles and framebuffers, undone"
	killed "$way" is_off; is "$(consoles)" "$drawn" "consoles and framebuffers, killed"
done
