#!/bin/sh
# Ansible's role, run by Ansible itself on this node: installed, settings written, attached, checked; a second play changes nothing, and a node that is not ready fails it.
# lab: --no-install --timeout 1200
# tier: full
. /usr/local/lib/lab.sh
export HOME=/root ANSIBLE_NOCOLOR=1 ANSIBLE_LOCALHOST_WARNING=false DEBIAN_FRONTEND=noninteractive
gpu=$(gpus | head -n 1) audio=$(audio_of "$gpu")
deb=$(echo /root/gpu-handoff_*_amd64.deb); mkdir -p /root/play/roles; cd /root/play || fail "no folder for the play"
# The role as the package's documentation has it.
dpkg-deb --fsys-tarfile "$deb" | tar -x --strip-components=6 -C roles ./usr/share/doc/gpu-handoff/ansible || fail "the package has no role"
mkvm 111 "${gpu%.*},pcie=1"; qm create 112 --name other >/dev/null || fail "qm create"
# play WANTED-EXIT CHANGED SETTINGS: a VM that is not on this node is none of its business
play() {
	printf -- '- hosts: all\n  become: false\n  roles:\n    - role: gpu_handoff\n      vars:\n        gpu_handoff_deb: %s\n        gpu_handoff_vms: [111, 4711]\n        gpu_handoff_settings: |\n          %s\n' "$deb" "$3" >site.yml
	ansible-playbook -i localhost, -c local site.yml >/root/said 2>&1; is $? "$1" "exit status of the play, $3"
	grep -E '^(TASK|changed|ok|fatal|localhost)' /root/said; grep -qE "changed=$2 " /root/said || { cat /root/said; fail "not changed=$2"; }; }
hook() { qm config "$1" | sed -n 's/^hookscript: //p'; }
command -v gpu-handoff && fail "it is installed already"
say "a node that has nothing"; play 0 4 'way = "unbind"'
is "$(hook 111) $(hook 112)" "local:snippets/gpu-handoff " "hooks"
say "once more"; play 0 0 'way = "unbind"'
expect_text "unbind" gpu-handoff plan --vm 111
expect_rc 0 qm start 111; is "$(driver_of "$gpu") $(driver_of "$audio")" "vfio-pci vfio-pci" "while it runs"
expect_rc 0 qm stop 111; wait_for 60 test ! -e /run/gpu-handoff/vm-111.json
is "$(driver_of "$gpu") $(driver_of "$audio")" "nvidia snd_hda_intel" "afterwards"
say "settings that nobody understands: the play says so"; play 2 1 'way = "sideways"'; grep -qF 'ansible.toml:1: way: it must be' /root/said || fail "not said why"
play 0 1 'way = "unload"'
DEBIAN_FRONTEND=noninteractive apt-get -qq purge gpu-handoff >/dev/null || fail "purge"; is "$(hook 111)" "" "after the purge"
