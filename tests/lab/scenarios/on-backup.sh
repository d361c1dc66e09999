#!/bin/sh
# Backup of a stopped VM under each setting of on-backup, GPU free and busy: refused with the reason and as it was, or there and back.
# tier: full
. /usr/local/lib/lab.sh
gpu=$(gpus | head -n 1) audio=$(audio_of "$gpu") conf=/etc/pve/qemu-server/111.conf
state() { { driver_of "$gpu"; driver_of "$audio"; override_of "$gpu"; override_of "$audio"; lsmod | grep -o '^nvidia[a-z_]*' | sort; records; } | tr "\n" " "; }
mkvm 111 "${gpu%.*},pcie=1"; qm set 111 --hookscript local:snippets/gpu-handoff >/dev/null; mkdir -p /etc/lab /etc/gpu-handoff/conf.d
printf '[deadlines]\nholder-wait = 1\n' >/etc/gpu-handoff/conf.d/50-impatient.toml
before=$(state)
backup() { LAB_BACKUP_SECONDS=0 vzdump 111 >/root/said 2>&1; rc=$?; cat /root/said
	is "$(grep -c '^lock:' $conf)" 0 "lock: lines after the backup"; }
said() { for text; do grep -qF "$text" /root/said || fail "'$text' was not said"; done; }
refused() { # TEXT...: by the hook, which fails the backup; and nothing has moved
	is $rc 255 "exit status of vzdump, $setting"; is "$(state)" "$before" "the GPU"
	said "hookscript error for 111 on pre-start" "exit code 3" "this start is for a backup of the stopped VM, which fails with it" "'on-backup' in" "$@"
	sed -i '1i lock: backup' $conf; expect_rc 3 gpu-handoff 111 pre-start; is "$(state)" "$before" "the GPU"; sed -i '/^lock:/d' $conf; }
done_and_home() {
	is $rc 0 "exit status of vzdump, $setting"; said "VM 111: ${gpu%.*} is on vfio-pci after"
	wait_for 60 test ! -e /run/gpu-handoff/vm-111.json; is "$(state)" "$before" "the GPU"; }

for setting in if-free handoff; do
	echo "on-backup = \"$setting\"" >/etc/gpu-handoff/conf.d/60-backup.toml
	[ $setting = if-free ] && mechanism=new || mechanism=old
	say "$setting, free, by the $mechanism way to post-stop"; echo $mechanism >/etc/lab/cleanup-mechanism
	backup; done_and_home
	say "$setting, busy"; hold_open /dev/nvidia0; backup
	refused "the GPU node of $gpu is in use by process $holder (hold"
	kill -0 $holder || fail "the holder has ended"; kill $holder; wait $holder 2>/dev/null
done
say "if-free is the default, and the persistence daemon is nobody who uses the GPU"
rm /etc/gpu-handoff/conf.d/60-backup.toml; setting=default
systemctl start nvidia-persistenced; backup; done_and_home
is "$(systemctl is-active nvidia-persistenced)" active "the persistence daemon"; systemctl stop nvidia-persistenced

say "a service that may be stopped for a start is not for a backup; but where a backup is as any start"
printf '[Service]\nExecStart=/usr/local/bin/hold /dev/nvidia0\n' >/run/systemd/system/cafe.service; systemctl daemon-reload; systemctl start cafe
wait_for 20 fuser -s /dev/nvidia0; pid=$(systemctl show -P MainPID cafe)
echo 'services = "cafe"' >/etc/gpu-handoff/conf.d/60-backup.toml; setting="default, services"; backup
refused "the GPU node of $gpu is in use by process $pid (hold"; is "$(systemctl show -P MainPID cafe)" "$pid" "its process"
printf 'services = "cafe"\non-backup = "handoff"\n' >/etc/gpu-handoff/conf.d/60-backup.toml; setting="handoff, services"; backup; done_and_home
wait_for 20 fuser -s /dev/nvidia0; systemctl stop cafe

say "refuse, for this VM alone"; setting=refuse
printf '[vm.111]\non-backup = "refuse"\n' >/etc/gpu-handoff/conf.d/60-backup.toml
backup; refused 'on-backup is "refuse"'
hold_open /dev/nvidia0; backup; refused 'on-backup is "refuse"'; kill $holder; wait $holder 2>/dev/null
expect_rc 0 qm start 111; is "$(driver_of "$gpu")" vfio-pci "a start that is for no backup"; expect_rc 0 qm stop 111
wait_for 60 test ! -e /run/gpu-handoff/vm-111.json; is "$(state)" "$before" "the GPU"
say "a template's backup starts without its devices: no setting stands in its way, and the GPU stays"
qm set 111 --template 1 >/dev/null; backup; is $rc 0 "exit status of vzdump, template"; said "it is a template"
is "$(grep -c 'is on vfio-pci' /root/said)" 0 "handoffs"; is "$(state)" "$before" "the GPU"
