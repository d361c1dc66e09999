#!/bin/sh
# A module that cannot be loaded when the card comes home: the run says which and why, and neither resets nor removes the card.
# tier: full
. /usr/local/lib/lab-card.sh
# What was removed and found again has another folder in sysfs.
same() { echo "$(INJECT card0 stat | sed 's/.*"card0.0": {"resets": \([0-9]*\).*/\1/') $(stat -Lc %i "$devices/$gpu" "$devices/$audio" | xargs)"; }
file=$(modinfo -n nvidia) line=/etc/modprobe.d/scenario-none.conf
setting 'way = "unload"'
for how in missing forbidden broken; do
	say "the module is $how while the card is away"
	within 60 0 gpu-handoff to_vfio; away "by hand"; before=$(same); cp "$file" /root/kept.ko
	case $how in
	missing) rm "$file"; why="its file $file is not there" ;;
	forbidden) echo "install nvidia /bin/false" >$line; why="a line of modprobe.d forbids it" ;;
	broken) echo broken >"$file"; why="could not insert 'nvidia'" ;;
	esac
	within 60 4 gpu-handoff to_nvidia
	said "nvidia: load the module: it cannot be loaded: "; said "$why"; said "not restored: $gpu. Hint: "; said "then run 'gpu-handoff recover'"
	grep -E "instead: .* (reset|remove)" /root/said && fail "the card is no cause of it"
	is "$(same)" "$before" "resets, and the folders of the functions"
	is "$(driver_of "$audio") $(driver_of "$gpu")" "snd_hda_intel none" "the audio function is home"
	[ "$(records)" ] || fail "no record is left"
	rm -f $line; cp /root/kept.ko "$file"
	within 90 0 gpu-handoff recover; at_home "with the module, which was $how"
done
