#!/bin/sh
# Proxmox chooses another card of a mapping than pre-start handed over: that one comes home at post-start, its choice at post-stop.
# tier: full
# lab: --cards 2
. /usr/local/lib/lab.sh
first=$(gpus | sed -n 1p) second=$(gpus | sed -n 2p)
hook=/var/lib/vz/snippets/gpu-handoff reserved=/run/qemu-server/pci-id-reservations
at() { is "$(for f in "$first" "$second"; do driver_of "$f"; driver_of "$(audio_of "$f")"; done | tr '\n' ' ')" "$1 " "$2"; }
home="nvidia snd_hda_intel" away="vfio-pci vfio-pci"
all_home() {
	wait_for 60 test ! -e /run/gpu-handoff/vm-111.json; at "$home $home" "$1"
	is "$(cat $devices/*/driver_override | sort -u)" "(null)" "overrides"
	is "$(records)" "" "records"
}
said() { for text; do grep -qF "$text" /root/said || fail "'$text' was not said: $(cat /root/said)"; say "said: $text"; done; }
# What Proxmox does to a card that it has chosen. With nvidia_drm loaded its unbind would never end.
prepare() { modprobe -r nvidia_uvm nvidia_drm nvidia_modeset
	python3 -c 'import sys; sys.path.insert(0, "/usr/local/lib"); from labpve import prepare; prepare.prepare(sys.argv[1])' "$1" || fail "prepare $1"; }
mkmapping gpu "$first" "$second"; mkvm 111 mapping=gpu,pcie=1; at "$home $home" "before"

say "by hand: another VM had the first card for a moment, so that Proxmox chose the second"
ln -sf /usr/sbin/gpu-handoff $hook
expect_rc 0 $hook 111 pre-start; at "$away $home" "pre-start took the first"
prepare "$second"; at "$away $away" "Proxmox has taken the second"
for f in "$second" "$(audio_of "$second")"; do echo "$f 111 time:$(($(date +%s) + 60))"; done >$reserved
$hook 111 post-start >/root/said 2>&1 || fail "post-start: $(cat /root/said)"; cat /root/said
said "Proxmox took $second off the host itself" "Proxmox chose another card than $first, which goes home"
at "$home $away" "after post-start"
expect_text "lent to: VM 111 (away)" gpu-handoff status
say "once more: nothing is left to correct"
$hook 111 post-start >/root/said 2>&1 || fail "post-start: $(cat /root/said)"; cat /root/said
is "$(grep -c -e 'off the host itself' -e 'another card' /root/said)" 0 "corrections"; at "$home $away" "after the second post-start"
rm $reserved; expect_rc 0 $hook 111 post-stop; all_home "after post-stop"

say "in a whole start: the first card is reserved while Proxmox chooses, and free again after that"
cat >/root/switch <<HOOK
#!/bin/sh
[ "\$2" != post-start ] || sed -i '/ 112 /d' $reserved
/usr/sbin/gpu-handoff "\$@" || exit
[ "\$2" != pre-start ] || { modprobe -r nvidia_uvm nvidia_drm nvidia_modeset; echo "$first 112 time:\$((\$(date +%s) + 60))" >>$reserved; }
HOOK
mkhook switch </root/switch; qm set 111 --hookscript local:snippets/switch >/dev/null || fail "qm set"
for mechanism in new old; do
	mkdir -p /etc/lab; echo $mechanism >/etc/lab/cleanup-mechanism
	qm start 111 >/root/said 2>&1 || fail "qm start: $(cat /root/said)"; cat /root/said
	said "Proxmox chose another card than $first, which goes home"; at "$home $away" "while the VM runs"
	fuser "/dev/vfio/$(group_of "$second")" >/dev/null 2>&1 || fail "no QEMU holds the second card"
	expect_rc 0 qm stop 111; all_home "after the VM, $mechanism mechanism"
done
