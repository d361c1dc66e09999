#!/bin/sh
# A start that fails after pre-start: nobody calls us back, and the GPU comes home by itself, at once, with times.
. /usr/local/lib/lab-home.sh
card_vm
say "QEMU does not know an argument"
qm set 111 --args --no-such-option >/dev/null
fails "bad argument" qm start 111; said "start failed: QEMU exited with code 1"
qm set 111 --delete args >/dev/null

say "the card is reserved for another VM by the time Proxmox chooses"
mkhook late <<HOOK
#!/bin/sh
/usr/sbin/gpu-handoff "\$@" || exit
[ "\$2" != pre-start ] || echo "$gpu 112 time:\$((\$(date +%s) + 20))" >>/run/qemu-server/pci-id-reservations
HOOK
qm set 111 --hookscript local:snippets/late >/dev/null
# VM 112 counts as one that is starting for as long as that stands, and the card waits for it.
may_begin=60000; fails "conflict" qm start 111; said "currently reserved for use by VMID '112'"; may_begin=5000
rm /run/qemu-server/pci-id-reservations; qm set 111 --hookscript local:snippets/gpu-handoff >/dev/null

say "pre-start itself refuses: nothing is to be brought home, and nobody waits for anything"
hold_open /dev/nvidia0; _last=$(begun)
within 60 255 qm start 111; said "in use by process $holder (hold"
comes_home 30 "refused"; is "$(begun)" "$_last" "ways home begun"
kill $holder; wait $holder 2>/dev/null; settled || fail "not as before"
