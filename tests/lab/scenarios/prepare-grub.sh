#!/bin/sh
# A guest that boots by GRUB from its own disk: check fails, prepare changes its configuration, and after a reboot a handoff works; all is taken back to the byte.
# lab: --persist --boot-disk --iommu amd --timeout 2400
# tier: full
# GRUB, grub-mkconfig and grub-install are Debian's. Two things are not as on a Proxmox VE host: the root is an overlay, which
# grub-probe does not understand (it is told the disk below), and the initrd is the lab's (update-initramfs is a stand-in).
. /usr/local/lib/lab-card.sh
conf=/etc/modprobe.d/scenario-prepare.conf
said() { # TEXT: it is said, however the lines were broken
	tr -s ' \n' '  ' </root/said | grep -qF -- "$1" || fail "it does not say: $1"; }
disk() { readlink -f "/dev/disk/by-id/virtio-$1"; }
boot_dir() { mount "$(disk boot-part1)" /boot || fail "no /boot"; }
files() { find /etc /boot \( -path /etc/pve -o -path /etc/mtab \) -prune -o -type f -exec sha256sum {} + -exec stat -c '%a %u:%g %n' {} + | sort
	find /etc /boot -path /etc/pve -prune -o -type l -printf '%p -> %l\n' | sort; }
reboot_now() { sync; systemctl reboot; sleep 300; }
case $LAB_BOOT in
1)	say "GRUB is installed on the disk, with words that guides have left"
	echo 'start=2048, type=83, bootable' | sfdisk -q "$(disk boot)" && udevadm settle || fail sfdisk
	mke2fs -q -t ext4 "$(disk boot-part1)" || fail mke2fs
	cp /boot/vmlinuz /root/vmlinuz; boot_dir
	cp /root/vmlinuz "/boot/vmlinuz-$(uname -r)"; cp /lab/initrd "/boot/initrd.img-$(uname -r)"
	mv /usr/sbin/grub-probe /usr/sbin/grub-probe.real
	cat >/usr/sbin/grub-probe <<-'END'
		#!/bin/sh
		# Stand-in: asked for the root, it answers for the disk on top of the overlay.
		for word; do shift; [ "$word" = / ] && set -- "$@" --device "$(readlink -f /dev/disk/by-id/virtio-top)" || set -- "$@" "$word"; done
		exec /usr/sbin/grub-probe.real "$@"
	END
	printf '#!/bin/sh\necho "update-initramfs $*" >>/root/ran\n' >/usr/sbin/update-initramfs
	chmod 755 /usr/sbin/grub-probe /usr/sbin/update-initramfs; mkdir -p /etc/default /boot/grub
	words=$(tr ' ' '\n' </proc/cmdline | grep -v -e ^iommu= -e ^initrd= | tr '\n' ' ')
	printf 'GRUB_DEFAULT=0\nGRUB_TIMEOUT=0\nGRUB_DISTRIBUTOR=Debian\nGRUB_TERMINAL=serial\nGRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"\nGRUB_CMDLINE_LINUX_DEFAULT="%s"\nGRUB_CMDLINE_LINUX="%s"\n' \
		"amd_iommu=off loglevel=4" "$words" >/etc/default/grub
	printf 'options vfio-pci ids=10de:%s\nblacklist nvidia\n' "$(cut -c3- $devices/"$gpu"/device)" >$conf
	grub-install --target=i386-pc "$(disk boot)" || fail grub-install
	update-grub || fail update-grub; grep -q amd_iommu=off /boot/grub/grub.cfg || fail "not in the menu"
	reboot_now ;;
2)	boot_dir; say "$(cat /proc/cmdline)"
	grep -q '^BOOT_IMAGE=.*amd_iommu=off' /proc/cmdline || fail "not booted by GRUB with these words"
	files >/root/before
	within 30 3 gpu-handoff check; for text in "FAIL: iommu: " "/etc/default/grub:6" "FAIL: vfio-ids: $conf:1: " "FAIL: blacklist: $conf:2: "; do said "$text"; done
	within 30 0 gpu-handoff prepare; for text in amd_iommu=off update-grub "blacklist nvidia" rebooted; do said "$text"; done
	files >/root/now; diff /root/before /root/now || fail "a look has changed something"
	within 240 0 gpu-handoff prepare --apply; said "Reboot"; cat /root/ran
	! grep -q amd_iommu=off /boot/grub/grub.cfg || fail "still in the menu"
	reboot_now ;;
esac
boot_dir; say "$(cat /proc/cmdline)"; is "$LAB_BOOT" 3 boot
! grep -q amd_iommu=off /proc/cmdline || fail "the word is still there"
within 30 0 gpu-handoff check; said "FAILURES: 0"; at_home "after a boot by GRUB"
card_vm; within 90 0 qm start 111; away "a handoff"; within 90 0 qm stop 111; at_home "after it"
within 240 0 gpu-handoff prepare --revert; said "Reboot"
rm -rf /etc/gpu-handoff/conf.d/scenario.toml; files >/root/now; diff /root/before /root/now || fail "not as it was"
say "every file of /etc and /boot is as it was, GRUB's menu among them: $(wc -l </root/now) lines alike"
