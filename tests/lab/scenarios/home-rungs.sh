#!/bin/sh
# A driver that does not take the card back: once, then another way is found; never, then the rest is home and the record stays.
# lab: --fault-points
# tier: full
. /usr/local/lib/lab-card.sh
card_vm
for try in 1:unbind 2:unbind 3:unbind 1:unload; do
	n=${try%:*} way=${try#*:}
	say "the driver refuses, times: $n, way $way"; setting "way = \"$way\""
	within 60 0 qm start 111; away "away"
	# With the module unloaded it is the load that fails, because no GPU lets itself be bound.
	echo "install nvidia f=0; rm /root/once && f=1; modprobe --ignore-install nvidia probe_fail=\$f" >/etc/modprobe.d/scenario-once.conf
	if [ $way = unbind ]; then stub probe_fail $n; else : >/root/once; fi
	within 120 0 qm stop 111; said "instead: "
	case $n in 2) grep -q "instead: .* reset  " /root/said || fail "it does not say: instead: .* reset  " ;; 3) grep -q "instead: .* look for it again" /root/said || fail "it does not say: instead: .* find again" ;; esac
	[ ! -e /root/once ] || fail "the module was not loaded"
	rm /etc/modprobe.d/scenario-once.conf
	at_home "after a refusal"
done
say "killed between the card's removal and its return: it is found again"; setting 'way = "unbind"'
for round in 15 16 17 18 19; do # whichever it is: the rungs before it are acts, too
	within 60 0 qm start 111; stub probe_fail 3
	within 120 0 env GPU_HANDOFF_TEST_KILL=$round:after qm stop 111; wait_for 90 test ! -e /run/gpu-handoff/vm-111.json; stub probe_fail 0
	journalctl -t gpu-handoff -o cat | grep "broken off at '$gpu: remove from the bus'" && break
	[ $round -lt 19 ] || fail "it was killed elsewhere"
done
at_home "found again"
say "the driver refuses for ever"; setting 'way = "unbind"'
within 60 0 qm start 111; stub probe_fail -1
kill -KILL "$(cat /run/qemu-server/111.pid)"
wait_for 120 journalctl -t gpu-handoff --grep 'not restored' -q
within 120 4 $hook 111 post-stop; said "Hint: "
is "$(driver_of "$audio") $(override_of "$audio") $(driver_of "$gpu")" "snd_hda_intel (null) none" "the audio function is home"
is "$(records)" vm-111.json "the record"
stub probe_fail 0
within 60 0 gpu-handoff recover; at_home "after the recovery"
