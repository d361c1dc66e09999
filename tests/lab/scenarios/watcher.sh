#!/bin/sh
# The watcher killed, stopped, and through an upgrade; Proxmox's daemons restarted in the middle of a hook: the GPU comes home.
# lab: --timeout 1200
# tier: full
. /usr/local/lib/lab-home.sh
card_vm; setting 'deadlines.grace = 2'; nobody_listens; mkdir -p /etc/lab
started() { within 90 0 qm start 111; away "the VM runs"; wait_for 20 systemctl -q is-active $watch; }

say "killed, it is there again, whatever the signal"
another() { _pid=$(watcher); [ "$_pid" != 0 ] && [ "$_pid" != "$first" ] && systemctl -q is-active $watch; }
started
for signal in HUP TERM KILL; do
	first=$(watcher); kill -$signal "$first"; wait_for 20 another; say "process $first was ended by $signal, $(watcher) watches"
done
end_qemu KILL; comes_home 60 "after the kills"
say "killed while post-stop is waited for"
setting 'deadlines.grace = 6'; started; first=$(watcher); end_qemu KILL; stays 2; kill -KILL "$first"; wait_for 20 another; comes_home 60 "after the kill"

say "stopped by the administrator, nobody watches: post-stop and recover work without it"
setting 'deadlines.grace = 2'; started; systemctl stop $watch; end_qemu KILL; stays 6; away "nobody watches"
within 60 0 gpu-handoff recover; comes_home 30 "recovered"
started; systemctl stop $watch; within 90 0 qm stop 111; comes_home 30 "stopped"
say "and the next start has a watcher again"
started; end_qemu KILL; comes_home 60 "watched"

say "the package is upgraded while the VM runs"
started; first=$(watcher)
DEBIAN_FRONTEND=noninteractive dpkg -i /root/gpu-handoff_*_amd64.deb >/root/said 2>&1 || { cat /root/said; fail "dpkg -i"; }
away "after the upgrade"; wait_for 20 systemctl -q is-active $watch; say "process $first watched before it, $(watcher) does after it"
end_qemu KILL; comes_home 60 "after the upgrade"

say "pvedaemon is restarted in the middle of a start: its tasks end with it"
systemctl start pvedaemon; wait_for 10 test -S /run/lab-pvedaemon.sock
setting 'way = "unbind"'; stub delay_remove_ms 2000
lab-pvedaemon qm start 111 & task=$!
wait_for 60 has_driver "$gpu" none; systemctl restart pvedaemon; wait $task; stub delay_remove_ms 0; comes_home 60 "after pvedaemon's restart"
say "qmeventd is restarted in the middle of a post-stop"
setting 'deadlines.grace = 75'; echo old >/etc/lab/cleanup-mechanism; somebody_listens; started; end_qemu KILL
wait_for 60 grep -q returning $record; systemctl restart qmeventd; comes_home 60 "after qmeventd's restart"
say "and is killed in it, with all that it has started"
setting 'deadlines.grace = 2'; started; end_qemu KILL
wait_for 60 grep -q returning $record; systemctl kill -s KILL --kill-whom=all qmeventd; comes_home 60 "after that"
