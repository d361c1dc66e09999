# What the two-vms scenarios do: `. /usr/local/lib/lab-two-vms.sh`, with $mechanism, by which post-stop is called: new or old.
. /usr/local/lib/lab-card.sh
first=$(gpus | sed -n 1p) second=$(gpus | sed -n 2p)
mkdir -p /etc/lab; dmesg -C; setting 'deadlines.holder-wait = 1' # a guest does not let go
echo $mechanism >/etc/lab/cleanup-mechanism
for vm in 111 112; do mkvm $vm "${first%.*},pcie=1"; qm set $vm --hookscript local:snippets/gpu-handoff >/dev/null; done
expect_rc 0 qm start 111
qemu=$(cat /run/qemu-server/111.pid)
say "$mechanism: the second VM is refused, the first is undisturbed"
expect_text "111" qm start 112
expect_rc 3 gpu-handoff 112 pre-start
expect_text "nothing to bring home" gpu-handoff 112 post-stop
expect_rc 3 gpu-handoff to_nvidia --gpu "$first"
kill -0 "$qemu" || fail "the first VM's QEMU has ended"
is "$(driver_of "$first") $(driver_of "$(audio_of "$first")")" "vfio-pci vfio-pci" "the first VM's card"
dmesg | grep -q "Relaying device request" && fail "the running VM was asked to give the device up"
expect_rc 0 qm stop 111
wait_for 60 test ! -e /run/gpu-handoff/vm-111.json
is "$(driver_of "$first")" nvidia "home"
expect_rc 0 qm start 112; expect_rc 0 qm stop 112; wait_for 60 test ! -e /run/gpu-handoff/vm-112.json

say "$mechanism: Proxmox has it reserved for a VM without this hook when post-stop comes"
expect_rc 0 qm start 111
echo "$first 113 time:$(($(date +%s) + 30))" >>/run/qemu-server/pci-id-reservations
qm stop 111
wait_for 60 sh -c 'journalctl -b -q -t gpu-handoff | grep -q "reserved for VM 113, which is starting"'
is "$(driver_of "$first")" vfio-pci "what is reserved for another VM"
wait_for 240 test ! -e /run/gpu-handoff/vm-111.json
is "$(driver_of "$first")" nvidia "home, when the reservation is over"

say "$mechanism: one mapping of two same-model cards, two VMs at the same moment"
mkmapping gpu "$first" "$second"
for vm in 111 112; do qm set $vm --hostpci0 mapping=gpu,pcie=1 >/dev/null; done
expect_text "Proxmox's choice" gpu-handoff plan --vm 111
qm start 111 >/root/start-111 2>&1 & one=$!
qm start 112 >/root/start-112 2>&1 & two=$!
wait $one; one=$?; wait $two; two=$?
cat /root/start-111 /root/start-112
# Both may be after the same card; then one of them is refused by name, which Proxmox alone would do as well.
[ $((one + two)) -lt 2 ] || [ $one = 0 ] || [ $two = 0 ] || fail "neither has started"
for vm in 111 112; do qm status $vm | grep -q running || qm start $vm || fail "VM $vm does not start"; done
is "$(driver_of "$first") $(driver_of "$second")" "vfio-pci vfio-pci" "both cards"
for vm in 111 112; do expect_rc 0 qm stop $vm; wait_for 60 test ! -e /run/gpu-handoff/vm-$vm.json; done
is "$(driver_of "$first") $(driver_of "$second")" "nvidia nvidia" "both cards"
