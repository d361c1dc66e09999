#!/bin/sh
# attach and detach: shown, asked on a terminal, done by qm and pct; what uses the GPU is offered, and what was allowed is in force at a start; each refusal; a service of a container as it was allowed; in the end all is as before.
# lab: --timeout 1200
# tier: full
. /usr/local/lib/lab-home.sh
conf=/etc/pve/qemu-server/111.conf own=/etc/gpu-handoff/conf.d/111.toml slot=${gpu%.*}
says() { # TEXT: it is said, however the lines were broken
	tr -s ' \r\n' '   ' </root/said | grep -qF -- "$1" || fail "it does not say: $1"; }
# typed STATUS ANSWERS COMMAND...: on a terminal, with these answers
typed() { status=$1; printf '%b' "$2" >/root/answers; shift 2; within 60 "$status" script -qec "$*" /dev/null </root/answers; }
refused() { within 60 3 gpu-handoff "$@"; cmp -s $conf /root/as-it-was || fail "refused, and the config is another one"; }
service() { printf '[Service]\nExecStart=/usr/local/bin/hold /dev/nvidia0 /dev/nvidiactl\n' >/run/systemd/system/ollama.service
	systemctl daemon-reload; systemctl restart ollama; wait_for 20 uses; }
uses() { [ -n "$(find "/proc/$(systemctl show -P MainPID ollama)/fd" -lname /dev/nvidia0)" ]; }

say "a VM without hook and GPU: check says so, and what would be done is shown"
setting 'deadlines.grace = 3'; mkvm 111; cp $conf /root/before; cp $conf /root/as-it-was; service
within 60 3 gpu-handoff check --vm 111; says "VM 111 has no hostpci entry that means an NVIDIA GPU"
within 60 0 gpu-handoff attach 111 --gpu "$gpu" --dry-run
said "    qm set 111 --hookscript local:snippets/gpu-handoff --hostpci0 $slot,pcie=1"
says 'unit ollama.service; allowed by services = "ollama.service"'; says "Nothing was changed."
is "$(awk 'length > 80' /root/said | grep -vc '^    qm ')" 0 "lines wider than a terminal"
cmp $conf /root/before || fail "shown, and done"
refused attach 111 --gpu 0 </dev/null; says "this is no terminal. Hint: add --yes"

say "asked: no, then yes, with what may be stopped"
typed 3 'n\nn\n' gpu-handoff attach 111 --gpu 0; says "Nothing was changed."; cmp $conf /root/before || fail "no, and done"
typed 0 'y\ny\n' gpu-handoff attach 111 --gpu 0
says "unit ollama.service: stop it while VM 111 runs, start it again? [y/N]"; says "VM 111 is attached."
is "$(grep -c -e "^hookscript: local:snippets/gpu-handoff$" -e "^hostpci0: $slot,pcie=1$" $conf)" 2 "lines in its config"
grep -qx 'services = "ollama.service"' $own || fail "$own: $(cat $own)"
within 60 0 gpu-handoff check --vm 111; says "VM 111 has $gpu"; cp $conf /root/as-it-was
within 60 0 gpu-handoff attach 111 --gpu 0 --yes; says "VM 111 is attached already: there is nothing to do."
cmp $conf /root/as-it-was || fail "twice is not as once"

say "what was allowed is in force"
within 60 0 gpu-handoff plan --vm 111; says "($own:5)"
within 60 0 qm start 111; away "with the policy"; is "$(systemctl is-active ollama)" inactive ollama
within 90 0 qm stop 111; comes_home 60 "with the policy"; wait_for 20 uses

say "a line that Proxmox ignores is named by file and line"
echo "hostpci3: 0000:FF:00" >>$conf; cp $conf /root/as-it-was; line=$(grep -n ^hostpci3 $conf | cut -d: -f1)
refused attach 111 --yes; says "$conf:$line: Proxmox ignores 'hostpci3: 0000:FF:00'"
sed -i '/^hostpci3/d' $conf

say "each other refusal"
refusal() { # TEXT LINE: with this line in the config
	printf '%s\n' "$2" >>$conf; cp $conf /root/as-it-was; refused attach 111 --yes; says "$1"; sed -i '$d' $conf; }
cp $conf /root/attached
refusal "VM 111 is a template" "template: 1"
refusal "VM 111 is locked (backup)" "lock: backup"
sed -i '/^hookscript/d' $conf; mkhook another <<-'END'
	#!/bin/sh
END
refusal "VM 111 has another hookscript, local:snippets/another" "hookscript: local:snippets/another"
printf '\n[PENDING]\nhookscript: local:snippets/another\n' >>$conf; cp $conf /root/as-it-was
refused attach 111 --yes; says "VM 111 has changes of hookscript that wait for its next start"
cp /root/attached $conf; cp $conf /root/as-it-was
refused attach 999 --yes; says "there is no VM or container 999 on this host"
refused attach 111 --gpu 00:00.0 --yes; says "0000:00:00.0 is no GPU of NVIDIA's"
refused attach 111 --gpu 9 --yes; says "there is no NVIDIA GPU '9'"
mkdir -p /etc/pve/nodes/elsewhere/qemu-server; echo "memory: 512" >/etc/pve/nodes/elsewhere/qemu-server/120.conf
refused attach 120 --yes; says "VM 120 is on the node elsewhere"; rm -r /etc/pve/nodes/elsewhere
mv $hook /root/link; sed -i '/^hookscript/d' $conf; cp $conf /root/as-it-was
refused attach 111 --yes; says "no storage has gpu-handoff among its snippets. Hint: ln -s /usr/sbin/gpu-handoff $hook"
mv /root/link $hook; cp /root/attached $conf

say "detached while it has the GPU: it comes home by the watcher"
within 60 0 qm start 111; away "attached"
within 60 0 gpu-handoff detach 111 --yes; says "the watcher brings that home when VM 111 has ended"
[ ! -e $own ] || fail "$own is there still"; ! grep -q ^hookscript $conf || fail "it has the hookscript still"
within 90 0 qm stop 111; comes_home 90 "detached"; wait_for 20 uses; systemctl stop ollama
within 60 0 gpu-handoff detach 111 --gpu all --yes; says "VM 111 is detached."
cmp $conf /root/before || fail "not as before: $(cat $conf)"
within 60 0 gpu-handoff detach 111 --gpu all --yes; says "VM 111 has no hookscript."

say "a mapping, where the cluster has one and more than one node"
mkmapping card "$gpu"; mkdir -p /etc/pve/nodes/elsewhere/qemu-server
within 60 0 gpu-handoff attach 111 --gpu 0 --yes; grep -qx "hostpci0: mapping=card,pcie=1" $conf || fail "$(cat $conf)"
within 60 0 qm start 111; away "mapped"; within 90 0 qm stop 111; comes_home 60 "mapped"
within 60 0 gpu-handoff detach --all --gpu all --yes; cmp $conf /root/before || fail "not as before: $(cat $conf)"
rm -r /etc/pve/mapping/pci.cfg /etc/pve/nodes/elsewhere

say "a file of somebody's own is neither written over nor removed"
service; echo 'way = "unload"' >$own; cp $own /root/own; cp $conf /root/as-it-was
refused attach 111 --gpu 0 --accept-policies --yes; says "$own is somebody's own. Hint: add this to it: services = \"ollama.service\""
within 60 0 gpu-handoff attach 111 --gpu 0 --yes; within 60 0 gpu-handoff detach 111 --gpu 0 --yes; says "$own is not as attach wrote it, and stays"
cmp $own /root/own || fail "it is another one"; rm $own; systemctl stop ollama

say "Proxmox refuses: that is said, and nothing was changed"
{ flock -x 9; sleep 30; } 9>$lock & locked=$!
within 60 1 gpu-handoff attach 111 --gpu 0 --yes; says "got timeout"; cmp $conf /root/before || fail "not as before"
kill $locked; wait $locked 2>/dev/null

say "a container"
ct=/etc/pve/lxc/104.conf; printf 'arch: amd64\nhostname: cuda\nlxc.init.cmd: hold /dev/nvidia0 /dev/nvidiactl\n' >$ct; cp $ct /root/ct
within 60 0 gpu-handoff attach 104 --gpu 0 --yes
for line in "hookscript: local:snippets/gpu-handoff" "dev0: /dev/nvidia0" "dev1: /dev/nvidiactl" "dev2: /dev/nvidia-uvm" "dev3: /dev/nvidia-uvm-tools"; do
	grep -qx "$line" $ct || fail "no '$line': $(cat $ct)"; done
within 60 0 gpu-handoff attach 104 --gpu 0 --yes; says "container 104 is attached already"
within 60 0 gpu-handoff detach --all --gpu all --yes; says "container 104 is detached."
cmp $ct /root/ct || fail "not as before: $(cat $ct)"; rm $ct
say "a line that attach has not set stays, and is named; what was removed by hand leaves its settings to detach --all"
echo "hostpci0: $slot,pcie=1,rombar=0" >>$conf; service; cp $conf /root/as-it-was
within 60 0 gpu-handoff attach 111 --accept-policies --yes; grep -qx 'services = "ollama.service"' $own || fail "$own: $(cat $own)"
within 60 0 gpu-handoff detach 111 --gpu all --dry-run; says "'qm set 111 --delete hostpci0' takes it out"
qm set 111 --delete hookscript >/dev/null; within 60 0 gpu-handoff detach --all --yes; says "This would be removed: $own"
[ ! -e $own ] || fail "$own is there still"; is "$(sort $conf)" "$(sort /root/as-it-was)" "its lines, which qm has put in order"
cp /root/before $conf; systemctl stop ollama

say "a service of a container, as attach has allowed it, is stopped while the VM runs, and started again"
mkdir -p /etc/lab/ct/104
printf '[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/usr/local/bin/hold /dev/nvidia0 /dev/nvidiactl\n' >/etc/lab/ct/104/ollama.service
printf 'arch: amd64\nhostname: cuda\ndev0: /dev/nvidia0\ndev1: /dev/nvidiactl\nlxc.init.cmd: systemd\n' >$ct
of() { cat /sys/fs/cgroup/lxc/104/ns/system.slice/ollama.service/cgroup.procs 2>/dev/null; }
inside() { [ -n "$(find "/proc/$(of | head -n 1)/fd" -lname '*/nvidia0' 2>/dev/null)" ]; }
within 60 0 pct start 104; wait_for 60 inside
within 60 0 gpu-handoff attach 111 --gpu 0 --accept-policies --yes; says 'container 104, unit ollama.service; allowed by containers = "release"'
grep -qx 'containers = "release"' $own || fail "$own: $(cat $own)"
within 60 0 qm start 111; away "with a container's policy"; is "$(of)" "" "the service inside"
within 90 0 qm stop 111; comes_home 60 "with a container's policy"; wait_for 20 inside
within 60 0 gpu-handoff detach 111 --gpu all --yes; [ ! -e $own ] || fail "$own is there still"
cmp $conf /root/before || fail "not as before: $(cat $conf)"; expect_rc 0 pct stop 104; rm $ct
at_home "in the end"
