#!/bin/sh
# Phases twice, out of order and at the wrong time; a config that changes meanwhile; a template, driver=keep, mdev; by both ways to post-stop.
# tier: full
# lab: --cards 2
. /usr/local/lib/lab.sh
first=$(gpus | sed -n 1p) second=$(gpus | sed -n 2p)
conf=/etc/pve/qemu-server/111.conf hook=/var/lib/vz/snippets/gpu-handoff
at() { is "$(driver_of "$first") $(driver_of "$second")" "$1" "$2"; }
home() { wait_for 60 test ! -e /run/gpu-handoff/vm-111.json; at "nvidia nvidia" "$1"; }
mkdir -p /etc/lab
for mechanism in new old; do
say "by the $mechanism way to post-stop"; echo $mechanism >/etc/lab/cleanup-mechanism
mkvm 111 "${first%.*},pcie=1"; qm set 111 --hookscript local:snippets/gpu-handoff >/dev/null
say "twice, and without each other"
expect_rc 0 $hook 111 pre-start; expect_text "already" $hook 111 pre-start; at "vfio-pci nvidia" "pre-start twice"
expect_rc 0 $hook 111 post-stop; expect_text "nothing to bring home" $hook 111 post-stop; at "nvidia nvidia" "post-stop twice"
say "the config names another card, and a snapshot section a third, by the time the VM stops"
expect_rc 0 qm start 111
sed -i "s/^hostpci0:.*/hostpci0: ${second%.*},pcie=1/" $conf
printf '\n[before]\nhostpci0: 00:02.0\nsnaptime: 1\n' >>$conf
expect_rc 0 qm stop 111; home "what was taken came home"
is "$(override_of "$first") $(override_of "$second")" "(null) (null)" "overrides"
sed -i '/^\[before\]/,$d' $conf
say "the config has gone by then"
expect_rc 0 $hook 111 pre-start; at "nvidia vfio-pci" "pre-start"; mv $conf /root/111.conf
expect_rc 0 $hook 111 post-stop; at "nvidia nvidia" "post-stop without a config"; mv /root/111.conf $conf
say "post-stop while QEMU still holds the group: it waits for the end"
expect_rc 0 qm start 111; qemu=$(cat /run/qemu-server/111.pid)
$hook 111 post-stop >/root/early 2>&1 & early=$!
wait_for 20 grep -q "waiting for process $qemu" /root/early; at "nvidia vfio-pci" "meanwhile"
kill -KILL "$qemu"; wait $early || fail "post-stop failed: $(cat /root/early)"; at "nvidia nvidia" "QEMU has gone"
qm stop 111 >/dev/null 2>&1; rm -f /run/qemu-server/*
say "what is left to Proxmox, with one line each"
for line in "${first%.*},driver=keep" "$first,mdev=nvidia-63" "00:1f.7"; do
	sed -i "s/^hostpci0:.*/hostpci0: $line/" $conf; expect_text "left to Proxmox" $hook 111 pre-start; expect_rc 0 $hook 111 pre-start
done
echo "hostpci0: ${first%.*}" >>$conf; echo "template: 1" >>$conf
expect_text "it is a template" $hook 111 pre-start; at "nvidia nvidia" "after all of them"
sed -i '/^template/d; /mdev\|keep\|1f.7/d' $conf
rm -f /etc/pve/qemu-server/111.conf
done
