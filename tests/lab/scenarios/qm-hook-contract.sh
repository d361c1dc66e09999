#!/bin/sh
# The stand-in for qm calls a hookscript as Proxmox VE does: arguments, environment, order, locks, both ways to post-stop.
. /usr/local/lib/lab.sh
gpu=$(gpus | head -1)
mkhook contract <<'HOOK'
#!/bin/sh
{
	echo "$0 $* LC_ALL=$LC_ALL from=[${PVE_MIGRATED_FROM-unset}] stdin=[$(cat)]"
	flock -n /var/lock/qemu-server/lock-111.conf true && echo "$2: lock free" || echo "$2: lock held"
	[ -s /run/qemu-server/111.pid ] && kill -0 "$(cat /run/qemu-server/111.pid)" 2>/dev/null && echo "$2: QEMU lives"
} >>/root/calls
case $2 in
pre-start)
	modprobe -r nvidia_uvm nvidia_drm nvidia_modeset nvidia
	[ -e /root/refuse ] && { echo "not today" >&2; exit 7; }
	[ -e /root/linger ] && sleep 4 &
	;;
esac
exit 0
HOOK
phases() { grep -o 'contract 111 [a-z-]*' /root/calls | sed 's/.* //' | tr '\n' ' '; }
qm create 111 --machine q35 --hostpci0 "${gpu%.*},pcie=1" >/dev/null
expect_text "does not exist" qm set 111 --hookscript local:snippets/absent
touch /var/lib/vz/snippets/plain; expect_text "is not executable" qm set 111 --hookscript local:snippets/plain
expect_rc 0 qm set 111 --hookscript local:snippets/contract

for mechanism in new old; do
	say "post-stop by the $mechanism mechanism"
	mkdir -p /etc/lab; echo $mechanism >/etc/lab/cleanup-mechanism; : >/root/calls
	expect_rc 0 qm start 111
	is "$(ls -l "/proc/$(cat /run/qemu-server/111.pid)/fd" | grep -c "/dev/vfio/$(group_of "$gpu")$")" 1 "descriptors of the group in QEMU"
	grep -q "^$gpu 111 pid:" /run/qemu-server/pci-id-reservations || fail "no reservation"
	expect_rc 0 qm stop 111
	[ $mechanism = old ] || is "$(phases)" "pre-start post-start pre-stop post-stop " "phases when qm stop returns"
	wait_for 20 grep -q "post-stop: lock held" /root/calls
	is "$(phases)" "pre-start post-start pre-stop post-stop " "phases"
	cat /root/calls
	is "$(grep -c 'lock free' /root/calls)" 0 "phases without the lock"
	is "$(grep -c 'LC_ALL=C from=\[\] stdin=\[\]' /root/calls)" 2 "phases of the start with an empty PVE_MIGRATED_FROM"
	wait_for 5 flock -n /var/lock/qemu-server/lock-111.conf true
done

say "a hook that refuses"
touch /root/refuse; : >/root/calls
expect_text "hookscript error for 111 on pre-start: command '/var/lib/vz/snippets/contract 111 pre-start' failed: exit code 7" qm start 111
is "$(phases)" "pre-start " "phases"
rm /root/refuse

for point in before-reserve before-prepare qemu; do
	: >/root/calls; expect_rc 255 env LAB_FAIL=$point qm start 111
	is "$(phases)" "pre-start " "phases of a start that failed at $point"
done
qm set 111 --args --no-such-option >/dev/null; : >/root/calls
expect_text "start failed: QEMU exited with code 1" qm start 111
is "$(phases)" "pre-start " "phases of a start whose QEMU failed"
is "$(grep -c . /run/qemu-server/pci-id-reservations)" 0 "reservations left"
qm set 111 --delete args

say "a child that keeps the hook's output open keeps the start waiting"
touch /root/linger; begun=$(date +%s); expect_rc 0 qm start 111
[ $(($(date +%s) - begun)) -ge 4 ] || fail "the start did not wait"
