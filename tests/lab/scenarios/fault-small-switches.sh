#!/bin/sh
# The stub's smaller switches: delays, a console that keeps nvidia_drm loaded, nvidia-uvm as a user, loading without a GPU.
# tier: full
# lab: --driver stub
. /usr/local/lib/lab.sh
gpu=$(gpus | head -1)
seconds() { begun=$(date +%s%N); "$@"; echo $((($(date +%s%N) - begun) / 1000000000)); }
at_least() { [ "$1" -ge 2 ] || fail "$2 took $1 s only"; say "$2: $1 s"; }
unbind() { echo "$gpu" >/sys/bus/pci/drivers/nvidia/unbind; }
probe() { echo "$gpu" >/sys/bus/pci/drivers_probe; }
modprobe -r nvidia_drm
stub delay_remove_ms 2000; at_least "$(seconds unbind)" remove
stub delay_probe_ms 2000; at_least "$(seconds probe)" probe
stub delay_exit_ms 2000; at_least "$(seconds unload_nvidia)" "module exit"
at_least "$(seconds modprobe nvidia delay_init_ms=2000)" "module init"

modprobe nvidia_drm fbcon_pin=1; sleep 1
expect_text "in use" rmmod nvidia_drm
for v in /sys/class/vtconsole/vtcon*; do grep -q 'frame buffer' "$v/name" && echo 0 >"$v/bind"; done
sleep 1; expect_rc 0 rmmod nvidia_drm; say "fbcon_pin: unloaded once the console was unbound"

modprobe nvidia_uvm; echo 1 >/sys/module/nvidia_uvm/parameters/uvm_ref; hold_open /dev/nvidia-uvm
unbind & writer=$!
sleep 1; is_stuck $writer "the unbind with nvidia-uvm open"
kill $holder; wait_for 5 test ! -e /proc/$writer

stub version 595.45.04; grep -q ' 595.45.04 ' /proc/driver/nvidia/version || fail "version"
unload_nvidia || fail unload; echo vfio-pci >"$devices/$gpu/driver_override"
expect_rc 0 modprobe nvidia need_gpu=0
