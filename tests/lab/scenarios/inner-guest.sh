#!/bin/sh
# A guest of the second level really boots with the GPU and its lspci lists the card.
# tier: full
. /usr/local/lib/lab.sh
gpu=$(gpus | head -1)
unload_nvidia; modprobe kvm_amd
mkvm 111 "${gpu%.*},pcie=1,rombar=0"
qm set 111 --memory 256 --kvm 1 --args "-kernel /boot/vmlinuz -initrd /boot/initrd.inner -append console=ttyS0 -serial file:/root/inner.log" >/dev/null
expect_rc 0 qm start 111
wait_for 300 grep -q 'INNER:.*10de:2204' /root/inner.log
grep INNER: /root/inner.log
wait_for 60 sh -c 'qm status 111 | grep -q stopped'
say "the guest powered off; qmeventd's clean-up ran"
wait_for 20 test ! -e /run/qemu-server/111.cleanup
