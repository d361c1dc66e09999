#!/bin/sh
# The host shuts down while the VM runs, without our package and with it: we touch nothing, and it takes as long.
# lab: --persist --timeout 1500
# tier: full
. /usr/local/lib/lab-home.sh
echo $(($(date +%s%3N) - $(ticks) * 10)) >/root/began-$LAB_BOOT # when this boot's kernel was started
shut_down() {
	systemctl start pve-guests; is "$(qm status 111)" "status: running" "the VM of boot $LAB_BOOT"; away "with the GPU"
	[ $LAB_BOOT = 1 ] || wait_for 20 systemctl -q is-active $watch
	ticks >/root/down-$LAB_BOOT; date +%s%3N >/root/asked-$LAB_BOOT; sync; systemctl reboot; sleep 300; }
case $LAB_BOOT in
1)	# Proxmox's own way: its unbind from nvidia with the DRM module loaded would never end.
	DEBIAN_FRONTEND=noninteractive dpkg -P gpu-handoff >/dev/null 2>&1 || fail "dpkg -P"
	mkvm 111 "${gpu%.*},pcie=1"; qm set 111 --onboot 1 >/dev/null; unload_nvidia; shut_down ;;
2)	DEBIAN_FRONTEND=noninteractive dpkg -i /root/gpu-handoff_*_amd64.deb >/dev/null 2>&1 || fail "dpkg -i"
	qm set 111 --hookscript local:snippets/gpu-handoff >/dev/null; shut_down ;;
esac
# Both are over: boot 1 shut down without us, boot 2 with us.
since() { _boot=$1; shift # since BOOT ARGUMENTS...: its journal from the moment the shutdown was asked for
	journalctl -q -b $((_boot - 3)) -o short-monotonic "$@" |
		awk -v from="$(cat /root/down-$_boot)" '{ at = $0; gsub(/^\[ */, "", at); if (at * 100 >= from) print }'; }
say "what the journal has of us after the shutdown was asked for:"; since 2 -t gpu-handoff | tee /root/ours
grep -q "the host is shutting down, nothing is brought home" /root/ours || fail "it does not say so"
is "$(grep -c -F -e ' steps, ' -e '/19] ' -e 'is home' /root/ours)" 0 "acts of ours"
is "$(since 2 -t systemd | grep -c 'Starting gpu-handoff')" 0 "units of ours that were started"
since 2 -k >/root/kernel; is "$(grep -c -i -e nvrm -e nvidia -e snd_hda /root/kernel)" 0 "lines of the host's drivers in the kernel's log"
length() { # BOOT: ms to the journal's end, and to the start of the next kernel (in steps of a second: the clock's)
	_end=$(since "$1" | tail -n 1 | sed 's/^\[ *\([0-9]*\)\.\([0-9][0-9]\).*/\1\2/')
	echo $(((_end - $(cat /root/down-$1)) * 10)) $(($(cat /root/began-$(($1 + 1))) - $(cat /root/asked-$1))); }
set -- $(length 1) $(length 2)
say "without us: $1 ms to the journal's end, $2 ms to the next kernel"
say "with us:    $3 ms to the journal's end, $4 ms to the next kernel"
say "the difference: $(($3 - $1)) ms and $(($4 - $2)) ms"
# Two seconds are wanted; a busy machine and a clock of whole seconds get five.
[ $(($3 - $1)) -lt 5000 ] && [ $(($4 - $2)) -lt 6000 ] || fail "the shutdown takes longer with us"
