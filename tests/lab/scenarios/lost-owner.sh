#!/bin/sh
# A VM that is started anew without its GPU while post-stop was lost, and what a VM has left that is gone: it is home, or the next VM's.
# lab: --cards 2 --timeout 1500
# tier: full
. /usr/local/lib/lab-home.sh
second=$(gpus | sed -n 2p) conf=/etc/pve/qemu-server/111.conf
mkdir -p /etc/lab; echo old >/etc/lab/cleanup-mechanism; nobody_listens
card_vm; mkvm 112 "${gpu%.*},pcie=1"; qm set 112 --hookscript local:snippets/gpu-handoff >/dev/null
drivers() { echo "$(driver_of "$gpu") $(driver_of "$audio") $(driver_of "$second")"; }
names() { qm set 111 --hostpci0 "${1%.*},pcie=1" >/dev/null || fail "qm set"; }
lost() { names "$gpu"; within 90 0 qm start 111; away "the VM runs"; qemu=$(cat /run/qemu-server/111.pid); within 90 0 qm stop 111; wait_for 60 test ! -e "/proc/$qemu"; is "$(records) $(drivers)" "vm-111.json vfio-pci vfio-pci nvidia" "post-stop is lost"; }
anew() { within 150 0 qm start 111; said "of an earlier handoff, is not in its config any more: home first"; said "is home after"; is "$(drivers)" "nvidia snd_hda_intel $1" "while the VM runs"; is "$(records)" "$2" "records"; within 90 0 qm stop 111; }
none() { anew nvidia ""; comes_home 30 "$1"; }

say "hostpci0 is deleted"; lost; qm set 111 --delete hostpci0 >/dev/null; cp $conf /root/snapshot; none deleted
say "the config is rolled back to one without it"; lost; cp /root/snapshot $conf; none "rolled back"
say "the config names another GPU"; lost; names "$second"; anew vfio-pci vm-111.json
$hook 111 post-stop || fail "post-stop"; comes_home 30 "another GPU"

say "started anew without us, and another run has the lock: the way home is tried again beside the VM"
lost; qm set 111 --delete hostpci0,hookscript >/dev/null; since=$(date +%s)
flock /run/gpu-handoff/lock sleep 150 & other=$! # longer than the time for post-stop, and for the lock
within 90 0 qm start 111; wait $other
journalctl -q -b --since "@$since" -u $watch -o cat | tee /root/said; said "the way home did not end well"; said "it is tried again in"
wait_for 120 unrecorded; is "$(drivers)" "nvidia snd_hda_intel nvidia" "beside the VM"; qm status 111 | grep -q running || fail "the VM does not run any more"
within 90 0 qm stop 111; qm set 111 --hookscript local:snippets/gpu-handoff >/dev/null; comes_home 30 "tried again"

say "another VM wants what this one has left"
lost; expect_text "First VM 111: " gpu-handoff plan --vm 112
within 30 3 gpu-handoff to_vfio --vm 112 -n; said "is taken already (VM 111)" # by hand nothing comes home first
within 150 0 qm start 112; said "VM 111 neither runs nor is starting, and has"; is "$(records)" vm-112.json "records"; away "VM 112 has it"
within 60 3 gpu-handoff to_nvidia --gpu "$gpu"; said "VM 112 runs with it"; within 60 3 gpu-handoff to_vfio --vm 112 -n; said "VM 112 runs with it"; within 60 0 gpu-handoff recover; said "VM 112 runs with it"
within 150 255 qm start 111; said "is in use by VM 112"
within 90 0 qm stop 112; $hook 112 post-stop || fail "post-stop"; comes_home 30 "another VM"
say "what the driver does not take back the next VM takes over"
lost; stub probe_fail -1; within 300 0 qm start 112; said "are taken over from VM 111, which is gone"; is "$(records)" vm-112.json "records"; away "VM 112 has it"
within 90 0 qm stop 112; stub probe_fail 0; $hook 112 post-stop || fail "post-stop"; comes_home 60 "taken over"

say "a service that does not start again"
drop=/run/systemd/system/nvidia-persistenced.service.d
systemctl start nvidia-persistenced; wait_for 20 test -S /run/nvidia-persistenced/socket; lost
mkdir -p $drop; printf '[Service]\nExecStart=\nExecStart=/bin/false\n' >$drop/fails.conf; systemctl daemon-reload
within 120 0 $hook 111 post-stop; said "nvidia-persistenced.service was stopped for the handoff and does not start again"
rm -r $drop; systemctl daemon-reload; systemctl reset-failed nvidia-persistenced; comes_home 30 "a service"

say "by hand: a caller that lives, and one that is the shell itself"
sh -c "$hook 111 pre-start; sleep 60" >/root/called 2>&1 & caller=$!
wait_for 60 grep -q "on vfio-pci after" /root/called
within 60 3 gpu-handoff to_nvidia --gpu "$gpu"; said "called by hand, and process $caller"; within 60 0 gpu-handoff recover; said "called by hand"
within 60 255 qm start 112; said "called by hand, and process $caller"
kill $caller; wait $caller; comes_home 60 "the caller has ended"
$hook 111 pre-start || fail "pre-start"; within 60 0 gpu-handoff to_nvidia --gpu "$gpu"; comes_home 30 "by hand"
say "by hand: a reservation, and a VM that is starting"
echo "$gpu 113 time:$(($(date +%s) + 600))" >/run/qemu-server/pci-id-reservations
within 60 3 gpu-handoff to_vfio --gpu "$gpu"; said "it is reserved for VM 113, which is starting"; rm /run/qemu-server/pci-id-reservations
within 60 0 gpu-handoff to_vfio --gpu "$gpu"
qm set 112 --args "-chardev socket,id=late,path=/run/late,server=on,wait=on" >/dev/null
qm start 112 >/root/starts 2>&1 & task=$!; wait_for 90 test -S /run/late
within 60 3 gpu-handoff to_nvidia --gpu "$gpu"; said "VM 112 is starting or stopping"; away "the VM starts"
within 60 0 gpu-handoff recover --all; said "reserved for VM 112"; away "the VM starts, recover"
qm-task kill 112 KILL; wait $task; kill -KILL "$(cat /run/qemu-server/112.pid)"; wait_for 20 test ! -e "/proc/$task"
within 60 3 gpu-handoff to_nvidia --gpu "$gpu"; said "it is reserved for VM 112"
within 60 0 gpu-handoff recover --all; said "reserved for VM 112"; away "reserved, recover"; rm /run/qemu-server/pci-id-reservations # as if its time were over
within 60 0 gpu-handoff to_nvidia --gpu "$gpu"; comes_home 30 "in the end"
