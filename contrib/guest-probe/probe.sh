#!/bin/sh
# What a Linux guest makes of a GPU that was passed through. Run in the guest, as root for all of it; changes nothing.
# Each line is ok, note or wrong; the exit status is 1 if something is wrong.
set -u
sys=${SYS:-/sys} proc=${PROC:-/proc}
wrong=0
ok() { echo "ok:    $*"; }
note() { echo "note:  $*"; }
wrong() { echo "wrong: $*"; wrong=1; }

found=
for device in "$sys"/bus/pci/devices/*; do
	[ "$(cat "$device/vendor" 2>/dev/null)" = 0x10de ] || continue
	case $(cat "$device/class" 2>/dev/null) in 0x03*) ;; *) continue ;; esac
	found=yes addr=${device##*/}
	driver=none
	[ ! -e "$device/driver" ] || driver=$(basename "$(readlink "$device/driver")")
	case $driver in
	nvidia) ok "$addr is on nvidia" ;;
	none) wrong "$addr is on no driver: is NVIDIA's installed for this kernel? dmesg | grep NVRM" ;;
	nouveau) note "$addr is on nouveau: CUDA needs NVIDIA's driver" ;;
	*) note "$addr is on $driver" ;;
	esac
	# The first 64 bytes of config space are readable for everybody; all ones: it does not answer.
	[ "$(od -An -N2 -tx1 "$device/config" 2>/dev/null | tr -d ' ')" != ffff ] || wrong "$addr reads all ones: it does not answer; see the host's kernel log"
	# The largest memory region that is not behind the bridge's 32-bit window is the one of the card's memory.
	size=$(while read -r start end _; do echo $((end - start + 1)); done <"$device/resource" 2>/dev/null | sort -n | tail -n 1)
	[ -z "$size" ] || ok "$addr: its largest region has $((size / 1048576)) MiB (256: Resizable BAR is not used)"
	[ -e "$sys/bus/pci/devices/${addr%.*}.1" ] || note "$addr has no function 1: no sound at its port; give the VM the whole card"
done
[ -n "$found" ] || wrong "no NVIDIA GPU is on this guest's bus: see 'qm config' on the host"

if [ -r "$proc/driver/nvidia/version" ]; then
	version=$(head -n 1 "$proc/driver/nvidia/version")
	case $version in
	*"Open Kernel Module"*) ok "NVIDIA's open modules: $version" ;;
	*) note "NVIDIA's proprietary modules, which Blackwell cards do not work with: $version" ;;
	esac
fi
if command -v nvidia-smi >/dev/null; then
	# It may hang for ever where the card does.
	if said=$(timeout -s KILL 30 nvidia-smi --query-gpu=name,memory.total,pcie.link.width.current --format=csv,noheader 2>&1); then
		ok "nvidia-smi: $said"
	else
		wrong "nvidia-smi: $said"
	fi
else
	note "there is no nvidia-smi: the driver's user-space part is missing"
fi
for node in nvidia0 nvidiactl nvidia-uvm; do
	[ -e "/dev/$node" ] || note "there is no /dev/$node: made when something first uses the driver, or by 'nvidia-modprobe -c 0 -u'"
done
lines=$(dmesg 2>/dev/null | grep -E 'NVRM: (Xid|.*fail|GPU.*requires)|nvidia.*(Unknown symbol|Key was rejected)' | tail -n 5)
if [ -n "$lines" ]; then wrong "the kernel says:"; echo "$lines"; elif dmesg >/dev/null 2>&1; then ok "the kernel has no complaint of NVIDIA's driver"; else note "not root: the kernel's log was not read"; fi
exit $wrong
