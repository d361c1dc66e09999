#!/bin/sh
# A driver whose unbind may never end (595 on), and a GPU that stays on it: it is unloaded and loaded again, if nobody uses it; killed in between, both GPUs come home.
# lab: --cards 2 --driver stub --timeout 900
# tier: full
. /usr/local/lib/lab-card.sh
second=$(gpus | sed -n 2p)
stays() { # WHEN: the second card is as it was
	is "$(driver_of "$second") $(driver_of "$(audio_of "$second")") $(override_of "$second")" "nvidia snd_hda_intel (null)" "the second card, $1"; }
driver() { # OPTION...: release 595, loaded anew
	printf 'options nvidia version=595.58.03 remove_mode=forever %s\noptions nvidia_drm modeset_ref=0\n' "$*" >/etc/modprobe.d/scenario-driver.conf
	unload_nvidia || fail "unload"; modprobe -a nvidia nvidia_uvm nvidia_drm || fail "load"
	grep -q " 595.58.03 " /proc/driver/nvidia/version || fail "it is not 595.58.03"; at_home "driver 595"; stays "driver 595"
}
driver; card_vm
say "who uses what stays is in the way"
hold_open /dev/nvidia1
within 60 255 qm start 111; said "in use by process $holder"; said "nobody may use $second either"; at_home "refused"; stays "refused"
kill -0 $holder || fail "the holder has ended"; kill $holder; wait $holder 2>/dev/null
say "the plan says what happens to it"
within 30 0 gpu-handoff plan --vm 111; said "way: unload"; said "$second, which stays on it, is without it"
for round in 1 2; do
	systemctl start nvidia-persistenced; wait_for 20 test -S /run/nvidia-persistenced/socket
	within 90 0 qm start 111; away "round $round"; stays "round $round"
	systemctl -q is-active nvidia-persistenced || fail "the persistence daemon"
	lsmod | grep -q ^nvidia_uvm || fail "nvidia_uvm"; is "$(records | wc -l)" 1 "records"
	# The driver counts anew: what was its second GPU may be its first.
	minor=$(sed -n 's/^Device Minor:[[:space:]]*//p' "/proc/driver/nvidia/gpus/$second/information")
	hold --for 1 "/dev/nvidia$minor" >/dev/null || fail "the second card's node"
	within 90 0 qm stop 111; at_home "round $round, home"; stays "round $round, home"; is "$(records)" "" "records"
done
systemctl stop nvidia-persistenced
say "the other way round"
within 90 0 gpu-handoff to_vfio --gpu "$second"; is "$(both) $(driver_of "$second")" "nvidia snd_hda_intel (null) (null) vfio-pci" "the second is away"
within 90 0 gpu-handoff to_nvidia --gpu "$second"; at_home "the second is back"; stays "back"
# killed_at OPTION ACT COMMAND...: the hook, with a driver that takes its time over that act; the command brings everything home
killed_at() {
	driver "$1"; act=$2; shift 2
	$hook 111 pre-start >/root/hook 2>&1 & run=$!
	at_it() { gpu-handoff status | grep -q "at '$act'"; }
	wait_for 60 at_it; kill -KILL $run; wait $run 2>/dev/null
	within 30 0 gpu-handoff recover -n; grep -q "on nobody's record" /root/said && fail "what stays is on the run's"
	within 120 0 "$@"; at_home "recovered"; stays "recovered"; is "$(records)" "" "records"
}
say "killed while the driver is loaded again, and while it is unloaded"
killed_at delay_probe_ms=6000 "nvidia: load the module" $hook 111 post-stop
killed_at delay_remove_ms=4000 "nvidia: unload the module" gpu-handoff to_nvidia --gpu "$second"
