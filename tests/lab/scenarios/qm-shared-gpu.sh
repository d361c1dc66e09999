#!/bin/sh
# Two VMs and one GPU, resource mappings, a backup of a stopped VM: what Proxmox VE does around the hook.
# tier: full
# lab: --cards 2
. /usr/local/lib/lab.sh
first=$(gpus | sed -n 1p) second=$(gpus | sed -n 2p)
mkhook note <<'HOOK'
#!/bin/sh
echo "$1 $2 $(sed -n 's/^lock: //p' "/etc/pve/qemu-server/$1.conf")" >>/root/calls
HOOK
unload_nvidia || fail "unload"
for vm in 111 112; do mkvm $vm "${first%.*},pcie=1"; qm set $vm --hookscript local:snippets/note >/dev/null; done
expect_rc 0 qm start 111
expect_text "already in use by VMID '111'" qm start 112
is "$(tr '\n' ';' </root/calls)" "111 pre-start ;111 post-start ;112 pre-start ;" "hook calls"
expect_rc 0 qm stop 111
say "a reservation of a VM that does not run is taken over"
echo "$first 111 pid:1" >>/run/qemu-server/pci-id-reservations
expect_text "leftover PCI reservation found for $first" qm start 112

say "a mapping gives the first alternative that is free"
mkmapping gpu "$first" "$second"
qm set 111 --hostpci0 mapping=gpu,pcie=1 >/dev/null
expect_rc 0 qm start 111
grep -q "^$second 111 pid:" /run/qemu-server/pci-id-reservations || fail "not the second card"
qm stop 112; qm stop 111

say "a backup takes the GPU, with lock: backup at pre-start"
: >/root/calls; expect_rc 0 vzdump 112
is "$(tr '\n' ';' </root/calls)" "112 pre-start backup;112 post-start backup;112 pre-stop backup;112 post-stop backup;" "hook calls"
qm set 112 --lock backup >/dev/null; expect_text "VM is locked (backup)" qm start 112
qm set 112 --delete lock >/dev/null; qm set 112 --template 1 >/dev/null; expect_text "if it's a template" qm start 112
