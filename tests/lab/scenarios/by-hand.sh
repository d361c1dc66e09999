#!/bin/sh
# Handoffs by hand: both spellings, twice, without a record; a VM that starts on such a GPU leaves it so.
. /usr/local/lib/lab.sh
gpu=$(gpus | head -n 1) audio=$(audio_of "$gpu")
both() { is "$(driver_of "$gpu") $(driver_of "$audio") $(override_of "$gpu") $(override_of "$audio")" "$1 (null) (null)" "$2"; }
away="vfio-pci vfio-pci" home="nvidia snd_hda_intel"
expect_text "12. " gpu-handoff to_vfio -n
expect_text '"text": "unload the module"' gpu-handoff plan --json
both "$home" "after a dry run"
expect_rc 0 gpu-handoff to-vfio --gpu 0; both "$away" to-vfio
expect_text "already" gpu-handoff handoff vfio --gpu "${gpu#0000:}"; both "$away" "handoff vfio"
expect_rc 0 gpu-handoff handoff nvidia; both "$home" "handoff nvidia"
expect_text "already" gpu-handoff to_nvidia
expect_text "there is no NVIDIA GPU '7'" gpu-handoff to_vfio --gpu 7

say "a VM on a GPU that was taken by hand"
mkvm 111 "${gpu%.*}"; qm set 111 --hookscript local:snippets/gpu-handoff >/dev/null
expect_rc 0 gpu-handoff to_vfio --vm 111; both "$away" "to_vfio --vm"
expect_text "stays so when the VM stops" qm start 111
expect_text "in use by process" gpu-handoff to_nvidia
expect_rc 3 gpu-handoff to_nvidia
expect_rc 0 qm stop 111; both "$away" "after the VM"
expect_rc 0 gpu-handoff to_nvidia; both "$home" "home"

say "without a record the drivers are inferred, and the line says so"
expect_rc 0 gpu-handoff -q to_vfio
rm /run/gpu-handoff/by-hand-*
expect_text "its drivers are inferred" gpu-handoff to_nvidia; both "$home" "home without a record"
say "the script's variable: containers are restarted when the GPU is home"
printf 'arch: amd64\nhostname: cuda\nlxc.init.cmd: hold /dev/null\n' >/etc/pve/lxc/104.conf; expect_rc 0 pct start 104
first() { head -n 1 /sys/fs/cgroup/lxc/104/ns/cgroup.procs; }
expect_rc 0 gpu-handoff -q to_vfio; pid=$(first)
LXC_RESTART_IDS="104 x" expect_text "'x', which is no container's number" gpu-handoff to_nvidia; both "$away" "a wrong list"; is "$(first)" "$pid" "its first process"
LXC_RESTART_IDS="104,999" expect_text "container 104 was restarted" gpu-handoff to_nvidia; both "$home" "with a list"
is "$(pct status 104)" "status: running" "CT 104"; [ "$(first)" != "$pid" ] || fail "it was not restarted"
case $_out in *"container 999 was not restarted"*) ;; *) fail "999 is not named" ;; esac
expect_rc 0 pct stop 104; rm /etc/pve/lxc/104.conf
say "the hook killed in the middle: the next call finishes, either way"
for part in 0.8; do
	timeout -s KILL $part gpu-handoff to_vfio; expect_rc 0 gpu-handoff to_nvidia; both "$home" "home after a kill at $part s"
	timeout -s KILL $part gpu-handoff to_vfio; expect_rc 0 gpu-handoff to_vfio; both "$away" "away after a kill at $part s"
	timeout -s KILL $part gpu-handoff to_nvidia; expect_rc 0 gpu-handoff to_nvidia; both "$home" "home, killed on the way at $part s"
done
