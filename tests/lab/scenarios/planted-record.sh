#!/bin/sh
# Records of another boot, of another version, half of one: handled, at boot too; after a soft reboot the GPU comes home at boot.
# lab: --persist --timeout 1500
# tier: full
. /usr/local/lib/lab-home.sh
boot=gpu-handoff-recover.service
# sane STATUS COMMAND...: it ends with that status, with words for people
sane() { within 60 "$@"; grep -q -e panicked -e RUST_BACKTRACE /root/said && fail "it crashed"; return 0; }
plant() { cat >$record; say "planted: $(head -c 70 $record | tr -cd '[:graph:]')"; }
told() { journalctl -q -o cat "_SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID $boot)"; } # what the oneshot said in its last run
# at_boot: the oneshot has ended well, before the VMs of the boot were started
at_boot() {
	told; is "$(systemctl show -P Result $boot)" success "$boot"
	wait_for 120 systemctl -q is-active pve-guests
	_over=$(systemctl show -P ExecMainExitTimestampMonotonic $boot) _next=$(systemctl show -P ExecMainStartTimestampMonotonic pve-guests)
	[ "$_over" -gt 0 ] && [ "$_over" -lt "$_next" ] || fail "$boot ended at $_over, pve-guests started at $_next"
	is "$(qm status 111)" "status: running" "the VM of the boot"; away "with the GPU"; }

case $LAB_BOOT in
1)
	card_vm; mkvm 112; setting 'deadlines.grace = 2'
	within 90 0 qm start 111; cp $record /root/record; within 90 0 qm stop 111; settled || fail "not as before"
	say "half a record, another version, nothing, rubbish: each command says so and how to go on, and nothing is moved"
	for how in half version nothing rubbish; do
		case $how in
		half) head -c 300 /root/record ;; version) sed 's/"version": *[0-9]*/"version": 99/' /root/record ;;
		nothing) : ;; rubbish) head -c 4096 /dev/urandom ;;
		esac | plant
		sane 0 gpu-handoff status; sane 3 gpu-handoff recover; said "Hint: "; sane 3 gpu-handoff recover --vm 111
		sane 3 $hook 111 post-stop; sane 3 $hook 111 pre-start; said "Hint: "; sane 0 gpu-handoff 112 post-stop
		sane 3 gpu-handoff plan --vm 111; said "Hint: "; sane 0 gpu-handoff plan --vm 112
		systemctl start $boot; is "$(systemctl show -P ExecMainCode -P ExecMainStatus $boot | tr '\n' ' ')" "1 3 " "how $boot ended"
		systemctl reset-failed $boot; rm $record; settled || { explain; fail "not as before"; }
	done
	say "half a record while the GPU is away: the hint is followed"
	nobody_listens; within 90 0 qm start 111; head -c 300 /root/record | plant; end_qemu KILL; stays 5; away "nobody knows whose"
	wait_for 60 sh -c "journalctl -q -b -u gpu-handoff-watch@111 | grep -q 'nobody knows what is away'"
	sane 0 gpu-handoff to_nvidia; rm -f $record; comes_home 20 "by the hint"
	say "a record of another boot is forgotten by whoever comes first"
	for run in "gpu-handoff recover" "systemctl start $boot" "$hook 111 post-stop" "gpu-handoff to_nvidia"; do
		sed 's/"boot_id": *"[^"]*"/"boot_id": "5a5a5a5a-0000-4000-8000-5a5a5a5a5a5a"/' /root/record | plant
		sane 0 $run; [ "$run" = "$hook 111 post-stop" ] || is "$(records)" "" "records"; rm -f $record; comes_home 30 "$run"
	done
	say "a reboot, and the record of before it is there"
	echo "C $record 0600 root root - /root/record" >/etc/tmpfiles.d/scenario-planted.conf
	echo "$before" >/root/before; qm set 111 --onboot 1 >/dev/null; systemctl -q enable pve-guests
	sync; systemctl reboot; sleep 300 ;;
2)
	rm /etc/tmpfiles.d/scenario-planted.conf; before=$(cat /root/before)
	at_boot; told | grep -q "earlier boot is forgotten" || fail "it was not forgotten"
	say "a record of this boot, and nobody who watches: the oneshot brings the GPU home"
	nobody_listens; systemctl stop $watch; end_qemu KILL; stays 5; away "nobody watches"
	sane 0 systemctl start $boot; comes_home 30 "by the oneshot"; somebody_listens
	say "a soft reboot while the VM runs"
	within 90 0 qm start 111; away "the VM runs"; sync; systemctl soft-reboot; sleep 300 ;;
3)
	before=$(cat /root/before); at_boot; told | grep -q "is home after" || fail "it was not brought home"
	within 90 0 qm stop 111; comes_home 30 "at the end" ;;
esac
