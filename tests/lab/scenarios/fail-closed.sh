#!/bin/sh
# What is not understood and may mean a GPU is refused, unless the settings ignore it; an mdev that is false is the whole card.
# tier: full
. /usr/local/lib/lab-card.sh
card_vm
conf=/etc/pve/qemu-server/111.conf
cp $conf /root/conf
for key in iommufd=1 driver=iommufd; do
	say "a key of another Proxmox's: $key"; cp /root/conf $conf; sed -i "s/^hostpci0: .*/&,$key/" $conf
	within 60 3 $hook 111 pre-start; said "hostpci0 is not understood"; said "'unknown-keys' to \"ignore\""
	within 60 3 gpu-handoff plan --vm 111; at_home "after the refusal"
	setting 'unknown-keys = "ignore"'; within 60 0 $hook 111 pre-start; at_home "where it is ignored"; setting
done
for mdev in 0 nvidia-0; do
	say "mdev=$mdev: the whole card"; cp /root/conf $conf; sed -i "s/^hostpci0: .*/hostpci0: 0000:01:00.0,mdev=$mdev/" $conf
	within 60 0 gpu-handoff plan --vm 111
	case $mdev in 0) said "unload the module" ;; *) said "is a mediated device" ;; esac
	[ $mdev = 0 ] || continue
	cp /root/conf $conf; sed -i "s/^hostpci0: .*/&,mdev=$mdev/" $conf
	within 90 0 qm start 111; away "mdev=$mdev, the VM runs"; within 90 0 qm stop 111; at_home "mdev=$mdev, in the end"
done
cp /root/conf $conf; within 60 0 $hook 111 pre-start; away "as before"; within 60 0 $hook 111 post-stop; at_home "in the end"
