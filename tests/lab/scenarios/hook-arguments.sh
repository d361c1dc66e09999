#!/bin/sh
# Every wrong and every odd call of the hook: a sentence, the right exit code, nothing touched.
. /usr/local/lib/lab.sh
gpu=$(gpus | head -n 1)
mkvm 111 "${gpu%.*}"
hook=/var/lib/vz/snippets/gpu-handoff
state() { driver_of "$gpu"; driver_of "$(audio_of "$gpu")"; override_of "$gpu"; lsmod | cut -d' ' -f1 | grep -e nvidia -e vfio | sort; left; }
before=$(state)
for phase in post-start pre-stop post-stop some-future-phase; do
	for vm in 111 555; do
		expect_rc 0 $hook $vm $phase
		is "$($hook $vm $phase 2>&1 | wc -l)" 1 "lines of $vm $phase"
	done
done
expect_rc 2 $hook abc pre-start
expect_rc 2 $hook 99 pre-start
expect_rc 2 $hook 111
expect_rc 2 $hook 111 pre-start more
expect_rc 3 $hook 555 pre-start
expect_text "555.conf" $hook 555 pre-start
mkdir /etc/pve/qemu-server/556.conf
expect_text "Is a directory" $hook 556 pre-start
rmdir /etc/pve/qemu-server/556.conf
qm create 557 >/dev/null
expect_text "no hostpci entry" $hook 557 pre-start
expect_rc 0 $hook 557 pre-start
mkvm 558 00:02.0
expect_text "left to Proxmox" $hook 558 pre-start
expect_rc 0 $hook 558 pre-start
say "mappings: none for this node, stale, and a reservation that is half written"
mkvm 559; qm set 559 --hostpci0 mapping=gpu >/dev/null
printf 'gpu\n\tmap node=other,id=10de:2204,path=0000:01:00\n' >/etc/pve/mapping/pci.cfg
expect_text "hostpci0 cannot be resolved: the resource mapping 'gpu' has no device on this node" $hook 559 pre-start
expect_rc 0 $hook 559 pre-start
printf 'gpu\n\tmap node=%s,id=10de:2204,path=0000:09:00\n' "$(hostname -s)" >/etc/pve/mapping/pci.cfg
expect_text "the resource mapping is stale: the host has no PCI device '0000:09:00.0'" $hook 559 pre-start
expect_rc 0 $hook 559 pre-start
rm /etc/pve/mapping/pci.cfg
echo "$gpu 112 time:$(($(date +%s) + 60))" >/run/qemu-server/pci-id-reservations
expect_text "$gpu is reserved by VM 112, which is starting" $hook 111 pre-start; expect_rc 3 $hook 111 pre-start
printf '%s 112 ti' "$gpu" >/run/qemu-server/pci-id-reservations
expect_text "set driver_override to vfio-pci" gpu-handoff plan --vm 111; rm /run/qemu-server/pci-id-reservations
say "a config that cannot be read"
mkdir -p /etc/pve/qemu-server && ln -s 560.conf /etc/pve/qemu-server/560.conf
expect_text "560.conf: Too many levels of symbolic links" $hook 560 pre-start; expect_rc 3 $hook 560 pre-start
rm /etc/pve/qemu-server/560.conf
say "bad settings refuse the way out only"
mkdir -p /etc/gpu-handoff/conf.d
printf '\non-bakup = "refuse"\n' >/etc/gpu-handoff/conf.d/50-bad.toml
expect_text "50-bad.toml:2: there is no setting 'on-bakup'. Hint: the nearest one is 'on-backup'" $hook 111 pre-start
expect_rc 3 $hook 111 pre-start
expect_rc 0 $hook 111 post-stop
is "$(state)" "$before" "the host"
