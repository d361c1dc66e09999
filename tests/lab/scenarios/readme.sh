#!/bin/sh
# From the README to a running handoff by copy and paste: each block that it has for the Proxmox VE host, as it stands there.
# lab: --no-install
# tier: full
. /usr/local/lib/lab.sh
export DEBIAN_FRONTEND=noninteractive
gpu=$(gpus | head -n 1) audio=$(audio_of "$gpu")
[ "${gpu%.*}" = 0000:01:00 ] || fail "the README's address is not this card's"
cd /root || fail "no /root"
# All that the reader has beside the README is the package, and a VM without the GPU.
dpkg-deb --fsys-tarfile gpu-handoff_*_amd64.deb | tar -xO ./usr/share/doc/gpu-handoff/README.md >/root/README.md || fail "the package has no README"
qm create 111 --name gaming --memory 512 >/dev/null || fail "qm create"
awk '/^```sh$/ { n++; inside = 1; next } /^```/ { inside = 0 } inside { print > ("/root/block-" n) }' /root/README.md
is "$(ls /root/block-* | wc -l)" 4 "blocks"
state() { echo "$(driver_of "$gpu") $(driver_of "$audio")"; }
paste() { say "block $1"; cat "/root/block-$1"; sh -eu "/root/block-$1" >/root/said 2>&1 </dev/null || { cat /root/said; fail "block $1"; }; cat /root/said; }
paste 1; command -v gpu-handoff >/dev/null || fail "it is not installed"
is "$(state)" "nvidia snd_hda_intel" "before"
paste 2; qm config 111 | grep -q '^hookscript: local:snippets/gpu-handoff$' || fail "the hook is not attached"
paste 3; is "$(state)" "vfio-pci vfio-pci" "while it runs"; grep -q "lent to: VM 111" /root/said || fail "status does not say so"
paste 4; wait_for 60 test ! -e /run/gpu-handoff/vm-111.json; is "$(state)" "nvidia snd_hda_intel" "afterwards"
is "$(override_of "$gpu") $(override_of "$audio")" "(null) (null)" "overrides"
