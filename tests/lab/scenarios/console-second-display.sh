#!/bin/sh
# A second display card keeps its console all the time, whatever the GPU does.
# tier: full
# lab: --display bochs
. /usr/local/lib/lab-card.sh
bind=$(dirname "$(grep -l 'frame buffer' /sys/class/vtconsole/*/name)")/bind
card_vm
cat /proc/fb; before=$(cat /proc/fb)
is "$(cat "$bind")" 1 "the console"
while cat "$bind" || echo none; do sleep 0.05; done >/root/seen 2>/dev/null & watcher=$!
for way in unload unbind; do
	setting "way = \"$way\""
	within 60 0 qm start 111; away "by $way"
	grep -F "console is dark" /root/said && fail "the console is not dark"
	is "$(cat /proc/fb)" "$(echo "$before" | grep bochs)" "framebuffers while away"
	within 90 0 qm stop 111; at_home "after $way"
done
kill $watcher
is "$(sort -u /root/seen)" 1 "the console, looked at $(wc -l </root/seen) times"
is "$(cat /proc/fb)" "$before" "framebuffers"
