#!/bin/sh
# Somebody else's unbind hangs: it is named, nothing goes near it, and recover lets it out, or says who keeps it and then
# brings the card home.
# lab: --driver stub
# tier: full
. /usr/local/lib/lab-card.sh
card_vm
# Not the stuck function's override: kernel 6.1 takes the device's lock to read it.
drivers() { echo "$(driver_of "$gpu") $(driver_of "$audio") $(override_of "$audio")"; }
unbind() { sh -c "echo $gpu >/sys/bus/pci/drivers/nvidia/unbind" & writer=$!; wait_for 5 stuck $writer; is "$(drivers)" "none snd_hda_intel (null)" "drivers"; }
# refused TEXT: whoever asks is told who hangs in what, and that it waits for TEXT
refused() {
	who="process $writer (sh" what="hangs in an unbind of $gpu from nvidia"
	within 5 0 gpu-handoff status; said "in use:  $who"; said "$what"; said "it waits for $1"
	grep -q 'in use:  no' /root/said && fail "in use: no"
	within 5 3 gpu-handoff plan --vm 111; said "$what"
	within 5 3 gpu-handoff to_nvidia; said "$who"; said "$what"; said "it waits for $1"; said "Hint: "
	within 5 3 gpu-handoff to_vfio; said "$who"; said "$what"; said "it waits for $1"
	within 8 255 qm start 111; said "exit code 3"; said "$what"
	is "$(drivers)" "none snd_hda_intel (null)" "drivers"; is "$(records)" "" "records"
	is_stuck $writer "the writer"; [ -d /sys/module/nvidia ] || fail "nvidia is not loaded"
}

say "nvidia_drm keeps it"; at_home "before"
unbind; refused "nvidia_drm"
within 60 0 gpu-handoff recover; said "$gpu is home"
wait_for 1 test ! -e /proc/$writer; at_home "after recover"

say "a process keeps it"
modprobe -r nvidia_drm || fail "unload nvidia_drm"
hold_open /dev/nvidia0
unbind; refused "process $holder ("
within 5 3 gpu-handoff recover; said "it waits for process $holder ("
is "$(drivers)" "none snd_hda_intel (null)" "drivers"; is "$(records)" "" "records"
kill $holder; wait_for 5 test ! -e /proc/$writer
within 60 0 gpu-handoff recover; said "$gpu is home"
modprobe nvidia_drm; at_home "after recover"

say "what is meant for another driver is left to it"
modprobe -r nvidia_drm || fail "unload nvidia_drm"
echo vfio-pci >$devices/$gpu/driver_override
echo "$gpu" >/sys/bus/pci/drivers/nvidia/unbind
within 10 0 gpu-handoff recover; said "means it for vfio-pci"; is "$(driver_of "$gpu")" none "its driver"
