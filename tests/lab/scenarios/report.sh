#!/bin/sh
# report: one archive of the host, for root alone, with nothing of what is planted in it; elsewhere it says what the host said.
# tier: full
. /usr/local/lib/lab.sh
gpu=$(gpus | head -n 1); cd /root || fail cd
clean() { rm -rf /root/r /root/*.tar.gz /etc/modprobe.d/scenario-* /etc/udev/rules.d/99-scenario.rules; gpu-handoff recover --all >/dev/null 2>&1; }
trap clean EXIT
secrets='hunter2 550e8400-e29b-41d4-a716-446655440000 BC:24:11:AA:00:01 192.168.77.5 AAAAC3NzaC1lZDI1NTE5AAAAIPlanted secret-project
	192.168.77.254 255.255.255.0 192.168.77.9 bc-24-11-aa-00-01 bc:24:11:aa:00:01 bc2411aa0001 A50285BIplanted S6PUNX0Tplanted topicplanted
	bearerplanted wordplanted passplanted pskplanted pending-divorce 550e8400\x2de29b'
everything='nvidia ip=192.168.77.5::192.168.77.254:255.255.255.0::eth0:off addr:192.168.77.9 BOOTIF=01-bc-24-11-aa-00-01 pass=passplanted psk=pskplanted
nvidia eth0: BC:24:11:AA:00:01: link up mac:bc:24:11:aa:00:01 enxbc2411aa0001 /dev/disk/by-id/ata-Samsung_S6PUNX0Tplanted
nvidia curl -u me:hunter2 -H "Authorization: Bearer bearerplanted" https://ntfy.sh/topicplanted --password wordplanted
nvidia luks\x2d550e8400\x2de29b\x2d41d4\x2da716\x2d446655440000.service'
mkvm 111 "${gpu%.*},pcie=1"; qm set 111 --hookscript local:snippets/gpu-handoff >/dev/null || fail "qm set"
cat >>/etc/pve/qemu-server/111.conf <<-'END'
	cipassword: hunter2
	description: secret-project
	smbios1: uuid=550e8400-e29b-41d4-a716-446655440000
	net0: virtio=BC:24:11:AA:00:01,bridge=vmbr0
	sshkeys: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPlanted
	[pending-divorce]
	name: secret-project
	END
printf 'ATTRS{serial}=="A50285BIplanted", ENV{ID_SERIAL_SHORT}=="S6PUNX0Tplanted"\nRUN+="/usr/bin/curl -u me:hunter2 https://ntfy.sh/topicplanted"\n' \
	>/etc/udev/rules.d/99-scenario.rules
printf '%s\n' "$everything" >/etc/modprobe.d/scenario-everything.conf
printf '%s\n' "$everything" | while read -r line; do printf '%s\n' "$line" >/dev/kmsg; done
printf '# password=hunter2 of 192.168.77.5, %s\n' "$(hostname)" >/etc/modprobe.d/scenario-planted.conf
echo "nvidia: planted 550e8400-e29b-41d4-a716-446655440000 192.168.77.5 password=hunter2" >/dev/kmsg
words() { tr -s ' \n' '  ' <"$1" | sed "s/\b$(hostname)\b/HOST/g"; }

say "a report"
gpu-handoff plan --vm 111 >/root/plan 2>/dev/null
gpu-handoff report --list >/root/said 2>/root/said.err || { cat /root/said.err; fail "report --list"; }
grep -q "check.txt" /root/said || fail "the list"; is "$(ls /root/*.tar.gz 2>/dev/null)" "" "files of a list"
file=$(gpu-handoff report 2>/root/said.err) || { cat /root/said.err; fail report; }
cat /root/said.err; is "$(stat -c '%a %U' "$file")" "600 root" "its mode"
expect_rc 3 gpu-handoff report --output "$file"
mkdir r; tar xzf "$file" -C r || fail tar
for part in contents.txt check.txt check.json status.json plan-111.txt history.json uname.txt kernel-log.txt journal.txt; do
	[ -s r/*/$part ] || grep -q "$part" r/*/contents.txt || fail "no $part"; done
grep -q "vfio\|nvidia" r/*/kernel-log.txt || fail "the kernel's log"

say "what is planted is not in it"
for secret in $secrets; do ! grep -rqF -- "$secret" r || { grep -rF -- "$secret" r; fail "$secret is in it"; }; done
case $(hostname) in pve | proxmox | localhost | debian) ;; *) ! grep -rqw -- "$(hostname)" r || fail "the host's name is in it" ;; esac

say "elsewhere it says the same"
gpu-handoff report --replay "$file" check >/root/check.there 2>/dev/null
gpu-handoff report --replay "$file" --vm 111 plan 2>/dev/null | sed '/^$/d; /^== plan/d' >/root/plan.there
sed '/^$/d' /root/plan >/root/plan.here
cp r/*/check.txt /root/check.here # of the same moment: memory that is free is another one in the next
for what in check plan; do words /root/$what.here >/root/here; words /root/$what.there >/root/there
	cmp -s /root/here /root/there || { diff /root/$what.here /root/$what.there; fail "$what is another one"; }; done
trees() { ls -d /tmp/gpu-handoff-replay.* 2>/dev/null; }
is "$(trees)" "" "folders that are left"
cp "$file" /tmp/r.tar.gz; chmod 644 /tmp/r.tar.gz; chmod 755 /root
setpriv --reuid 65534 --regid 65534 --clear-groups gpu-handoff report --replay /tmp/r.tar.gz check >/root/check.other 2>/dev/null
words /root/check.other >/root/there; words /root/check.here >/root/here; cmp -s /root/here /root/there || fail "to somebody else it says something else"
is "$(trees)" "" "folders that somebody else has left"; rm /tmp/r.tar.gz
mkfifo /root/slow; gpu-handoff report --replay /root/slow >/dev/null 2>&1 & replay=$!
exec 9>/root/slow; head -c 4096 "$file" >&9; wait_for 30 sh -c 'ls -d /tmp/gpu-handoff-replay.* >/dev/null 2>&1'
kill -TERM $replay; wait $replay; is $? 143 "a replay that was asked to end"; exec 9>&-; rm /root/slow
is "$(trees)" "" "folders of a replay that was asked to end"

say "and so while a VM has the GPU"
expect_rc 0 qm start 111
gpu-handoff plan --vm 111 >/root/plan.here 2>/dev/null; rm -f /root/*.tar.gz
file=$(gpu-handoff report 2>/dev/null) || fail "report while it is lent"
gpu-handoff report --replay "$file" --vm 111 plan 2>/dev/null | sed '/^$/d; /^== plan/d' >/root/plan.there
sed -i '/^$/d' /root/plan.here; words /root/plan.here >/root/here; words /root/plan.there >/root/there
cmp -s /root/here /root/there || { diff /root/plan.here /root/plan.there; fail "the plan is another one"; }
expect_rc 0 qm stop 111
