#!/bin/sh
# Whoever uses the GPU is found by device number and named; one that lets go in time is waited for.
. /usr/local/lib/lab-card.sh
setting 'deadlines.holder-wait = 1' # each of them stays
refused() { # WHAT: refused, by name, and nothing has changed
	within 60 3 gpu-handoff to_vfio; said "in use by process $holder (hold"
	is "$(driver_of "$gpu") $(driver_of "$audio") $(override_of "$gpu")" "nvidia snd_hda_intel (null)" "held by $1"
	kill "$holder"; wait "$holder" 2>/dev/null
}
hold_open /dev/nvidia0; refused "its node"
mknod /root/elsewhere c 195 0; hold_open /root/elsewhere; refused "a node of another name"
hold_open /dev/nvidiactl; refused "nvidiactl"
hold_open /dev/nvidia-uvm; refused "nvidia-uvm"
hold_open /dev/nvidia-modeset; refused "nvidia-modeset"
hold_open /dev/dri/by-path/pci-"$gpu"-card; refused "its DRM node"
hold_open /dev/snd/by-path/pci-"$audio"; refused "its sound node"
say "a name that a process has chosen for itself reaches no terminal as it is"
hold_open --comm "$(printf 'a\033[2J\nb')" /dev/nvidia0; within 60 3 gpu-handoff to_vfio; said "in use by process $holder (a\u{1b}[2J"
grep -q "$(printf '\033')" /root/said && fail "it reaches the terminal"; kill "$holder"; wait "$holder" 2>/dev/null
python3 -c '
import ctypes, os, time
libc = ctypes.CDLL(None); libc.mmap.restype = ctypes.c_void_p
fd = os.open("/dev/nvidia0", os.O_RDWR)
print(libc.mmap(None, 4096, 1, 1, fd, 0) not in (None, ctypes.c_void_p(-1).value), flush=True); os.close(fd); time.sleep(600)
' >/root/mapped & holder=$!
wait_for 10 test -s /root/mapped
if [ "$(cat /root/mapped)" = True ]; then
	expect_text "in use by process $holder (python3" gpu-handoff to_vfio
else
	say "the stub's node cannot be mapped: a mapping without a descriptor is not shown here"
fi
kill "$holder"; wait "$holder" 2>/dev/null
setting
say "a process that lets go within the wait is no reason to refuse"
hold --for 2 /dev/nvidia0 & wait_for 10 fuser /dev/nvidia0
expect_rc 0 gpu-handoff to_vfio
is "$(driver_of "$gpu")" vfio-pci "driver"
expect_rc 0 gpu-handoff to_nvidia
is "$(driver_of "$gpu") $(driver_of "$audio") $(override_of "$gpu")" "nvidia snd_hda_intel (null)" "back"
