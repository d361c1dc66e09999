#!/bin/sh
# The situations in which the peers hang, lose the card or keep silent (tests/lab/ANCHORS.md), one after the other.
# tier: full
. /usr/local/lib/lab.sh
. /usr/local/lib/lab-anchors
modules() { lsmod | grep -o '^nvidia[a-z_]*' | sort | tr '\n' ' '; }
modprobe -r vfio_pci 2>/dev/null; before=$(modules); [ -d /sys/bus/pci/drivers/vfio-pci ] && fail "vfio-pci is loaded"
gpu-handoff to_vfio || fail "A"; away A; row N "vfio-pci not loaded before" "loaded, handed over"
gpu-handoff to_vfio || fail "A'"; away "A'"; gpu-handoff to_nvidia || fail "A home"; at_home "A home"
is "$(modules)" "$before" "modules"; gpu-handoff to_nvidia || fail "A' home"; at_home "A' home"
row "A, A'" "round trip, each call twice" "done; overrides clear both ways, the same modules loaded again"

hold_open /dev/nvidia0; refused "B(a)" "/dev/nvidia0 held" "in use by process $holder" gpu-handoff to_vfio; end_holder
mknod /root/elsewhere c 195 0; hold_open /root/elsewhere
refused "B(b)" "the same device by another node" "in use by process $holder" gpu-handoff to_vfio; end_holder
gpu-handoff to_vfio && gpu-handoff to_nvidia || fail "after B"; at_home "after B"
systemctl start nvidia-persistenced; wait_for 10 test -S /run/nvidia-persistenced/socket
gpu-handoff to_vfio || fail C; away C; systemctl is-active -q nvidia-persistenced && fail "C: it runs"
gpu-handoff to_nvidia || fail "C home"; systemctl is-active -q nvidia-persistenced || fail "C: it does not run again"
row C "persistence daemon" "stopped, and started again at home"; systemctl stop nvidia-persistenced
console() { grep -h . /sys/class/vtconsole/*/bind /proc/fb | tr '\n' ' '; }
drawn=$(console); gpu-handoff to_vfio || fail D; is "$(cat /proc/fb)" "" "framebuffers"
gpu-handoff to_nvidia || fail "D home"; is "$(console)" "$drawn" "D: console and framebuffer"
row D "console on the card's framebuffer" "taken off, and back"
hold_open /dev/snd/controlC0; refused E "/dev/snd held" "in use by process $holder" gpu-handoff to_vfio; end_holder
[ -c /dev/nvidiactl ] || fail "no nvidiactl"; hold_open /dev/nvidiactl
refused M "/dev/nvidiactl held" "in use by process $holder" gpu-handoff to_vfio; end_holder

for ms in 50 150 250 350 450 550 650 750; do
	gpu-handoff to_vfio >/dev/null 2>&1 & run=$!
	sleep 0.$(printf %03d $ms); kill -KILL $run 2>/dev/null; wait $run 2>/dev/null
	gpu-handoff recover --all || fail "G: recover after a kill at $ms ms"; at_home "G: killed at $ms ms"
done
row G "SIGKILL at eight moments of the way out" "recover: home each time"
gpu-handoff to_vfio; INJECT card0 dead; start=$(date +%s); expect_rc 4 gpu-handoff to_nvidia
[ $(($(date +%s) - start)) -lt 30 ] || fail "H took too long"
INJECT card0 alive; gpu-handoff recover --all || fail "H: recover"; at_home H
row H "card dead on the way home" "exit 4 at once, says so; home when it answers again"
gpu-handoff to_vfio; echo 'options nvidia probe_fail=-1' >/etc/modprobe.d/scenario-fail.conf
udevadm control --reload # or it loads the module, at the rescan, with the options it knew before
expect_rc 4 gpu-handoff to_nvidia; is "$(driver_of "$audio")" snd_hda_intel "J: audio"
rm /etc/modprobe.d/scenario-fail.conf; udevadm control --reload; modprobe -r nvidia 2>/dev/null; gpu-handoff recover --all || fail "J: recover"; at_home J
row J "nvidia's probe fails on the way home" "reset and rescan tried, exit 4, audio home; home when the cause is gone"
gpu-handoff to_vfio; echo "10de 2204" >/sys/bus/pci/drivers/vfio-pci/new_id
gpu-handoff to_nvidia || fail K3; at_home K3; row K3 "a leftover new_id" "home on nvidia all the same"
mkvm 111 "${gpu%.*},pcie=1"; qm set 111 --args --no-such-option --hookscript local:snippets/gpu-handoff >/dev/null
expect_rc 255 qm start 111; wait_for 60 test ! -e /run/gpu-handoff/vm-111.json; at_home L
row L "the start fails after pre-start" "home by itself"
cat /root/table
