#!/bin/sh
# A task of pvedaemon runs in the daemon's cgroup; stopping pve-guests stops the VMs; a guest's end calls post-stop.
# tier: full
. /usr/local/lib/lab.sh
gpu=$(gpus | head -1)
mkhook where <<'HOOK'
#!/bin/sh
echo "$2 $(cut -d: -f3 /proc/self/cgroup)" >>/root/calls
HOOK
unload_nvidia
mkvm 111 "${gpu%.*},pcie=1"; qm set 111 --hookscript local:snippets/where --onboot 1 >/dev/null
systemctl start pvedaemon; wait_for 10 test -S /run/lab-pvedaemon.sock
expect_rc 0 lab-pvedaemon qm start 111
is "$(head -1 /root/calls)" "pre-start /system.slice/pvedaemon.service" "the hook of a task"
qm stop 111

systemctl start pve-guests; is "$(qm status 111)" "status: running" "after startall"
systemctl stop pve-guests; is "$(qm status 111)" "status: stopped" "after stopall"
is "$(tail -1 /root/calls)" "post-stop /system.slice/pve-guests.service" "the last hook"

for mechanism in new old; do
	mkdir -p /etc/lab; echo $mechanism >/etc/lab/cleanup-mechanism
	qm start 111; : >/root/calls
	kill -KILL "$(cat /run/qemu-server/111.pid)"
	wait_for 20 grep -q post-stop /root/calls
	is "$(cat /root/calls)" "post-stop /system.slice/qmeventd.service" "after QEMU was killed, $mechanism mechanism"
done
