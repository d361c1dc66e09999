#!/bin/sh
# Another VM's QEMU that cannot finish its exit keeps nothing of ours away, and our GPU comes and goes; what it still holds is said to be held, and comes home when it is over.
# lab: --cards 2 --timeout 1200
# tier: full
. /usr/local/lib/lab-home.sh
second=$(gpus | sed -n 2p); nobody_listens
card_vm; mkvm 112 "${second%.*},pcie=1"; qm set 112 --hookscript local:snippets/gpu-handoff >/dev/null
modprobe fuse; mkdir -p /run/dead; never-closes /run/dead >/run/dead.out & server=$!
wait_for 10 grep -q there /run/dead.out
qm set 112 --args "-S -chardev file,id=dead,path=/run/dead/file" >/dev/null
for way in auto unbind; do
	setting "way = \"$way\"" 'deadlines.grace = 2'
	within 90 0 qm start 111; away "VM 111 runs"
	within 90 0 qm start 112; qemu=$(cat /run/qemu-server/112.pid)
	kill -KILL "$qemu"; stuck() { [ "$(state_of "$qemu")" = D ] || [ "$(state_of "$qemu")" = Z ]; }
	wait_for 20 stuck; is "$(ls /proc/"$qemu"/fd 2>/dev/null | wc -l)" 0 "descriptors of it that are to be seen"
	say "$way: ours comes home beside it, and leaves"
	within 90 0 qm stop 111; $hook 111 post-stop || fail "post-stop"
	is "$(both)" "nvidia snd_hda_intel (null) (null)" "VM 111 has stopped"
	within 90 0 qm start 111; away "beside it"
	say "$way: what it has is not taken from it"
	within 150 3 gpu-handoff to_nvidia --gpu "$second"; said "Hint: "; is "$(driver_of "$second")" vfio-pci "the second card"
	kill -KILL $server; umount -l /run/dead; wait_for 20 test ! -e "/proc/$qemu"
	within 90 0 qm stop 111; $hook 111 post-stop || fail "post-stop"
	comes_home 90 "it has ended"
	never-closes /run/dead >/run/dead.out & server=$!; wait_for 10 grep -q there /run/dead.out
done
kill -KILL $server; umount -l /run/dead
