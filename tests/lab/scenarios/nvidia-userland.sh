#!/bin/sh
# The stand-ins for NVIDIA's userland hold, answer, hang and fail as the real programs do.
# tier: full
# lab: --driver stub
. /usr/local/lib/lab.sh
holders() { fuser "$1" 2>/dev/null | wc -w; }
is "$(nvidia-smi --query-gpu=index,pci.bus_id,driver_version --format=csv,noheader)" "0, 00000000:01:00.0, 580.95.05" query
expect_text "NVIDIA GeForce RTX 3090 (UUID: GPU-" nvidia-smi -L

say "the persistence daemon holds the node, and nvidia-smi -pm lets go of it"
systemctl start nvidia-persistenced; wait_for 10 test -S /run/nvidia-persistenced/socket
is "$(holders /dev/nvidia0)" 1 "processes with /dev/nvidia0"
is "$(nvidia-smi --query-gpu=persistence_mode --format=csv,noheader)" Enabled "persistence mode"
expect_rc 0 nvidia-smi -pm 0 -i 00000000:01:00.0
is "$(holders /dev/nvidia0)" 0 "processes with /dev/nvidia0"
systemctl stop nvidia-persistenced; [ ! -e /run/nvidia-persistenced ] || fail "its folder is left"

say "the MPS control daemon's server holds nvidia0 and nvidia-uvm"
nvidia-cuda-mps-control -d; sleep 1
is "$(holders /dev/nvidia0)" 1 "processes with /dev/nvidia0"; is "$(holders /dev/nvidia-uvm)" 1 "processes with /dev/nvidia-uvm"
echo quit | nvidia-cuda-mps-control
free() { [ "$(holders /dev/nvidia0)" = 0 ]; }
wait_for 5 free

say "nvidia-smi hangs, fails, and brings the module back"
mkdir -p /etc/lab; echo 30 >/etc/lab/nvidia-smi-hang
expect_rc 124 timeout 2 nvidia-smi; rm /etc/lab/nvidia-smi-hang
echo "15 GPU is lost" >/etc/lab/nvidia-smi-exit; expect_rc 15 nvidia-smi; rm /etc/lab/nvidia-smi-exit
unload_nvidia || fail unload
expect_rc 0 nvidia-smi -L; [ -e /sys/module/nvidia ] || fail "nvidia is not loaded"
unload_nvidia; for gpu in $(gpus); do echo vfio-pci >"$devices/$gpu/driver_override"; done
expect_rc 9 nvidia-smi
