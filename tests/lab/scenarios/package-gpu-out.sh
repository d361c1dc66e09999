#!/bin/sh
# The package upgraded, removed and installed anew while a VM has the GPU: it stays with the VM, nobody is restarted, and it comes home.
# lab: --timeout 1200
# tier: full
. /usr/local/lib/lab-home.sh
export DEBIAN_FRONTEND=noninteractive
deb=$(echo /root/gpu-handoff_*_amd64.deb) link=/var/lib/vz/snippets/gpu-handoff
act() { dpkg "$@" >/root/said 2>&1 || { cat /root/said; fail "dpkg $*"; }; cat /root/said; }
card_vm; setting 'deadlines.grace = 2'
dpkg-deb -R "$deb" /root/later; sed -i 's/^Version: .*/&+later/' /root/later/DEBIAN/control
dpkg-deb -b /root/later /root/later.package >/dev/null; rm -r /root/later

say "upgraded while the VM runs, nothing is restarted and nothing handed over"
within 90 0 qm start 111; away "the VM runs"; wait_for 20 systemctl -q is-active $watch
first=$(watcher) kept=$(cat $record)
act -i /root/later.package
is "$(watcher)" "$first" "who watches"; [ "$(cat $record)" = "$kept" ] || fail "the record has changed"; away "after the upgrade"
within 90 0 qm stop 111; comes_home 60 "after the upgrade"

say "upgraded back, and QEMU just ends: the watcher of before brings it home"
within 90 0 qm start 111; wait_for 20 systemctl -q is-active $watch; act --force-downgrade -i "$deb"; end_qemu KILL
comes_home 60 "by the watcher of before"

say "removed while the VM runs: detached at once, the GPU stays with it"
within 90 0 qm start 111; act -r gpu-handoff
said "VM 111 has no hookscript any more"; said "stays on vfio-pci until the host restarts"
! systemctl -q is-active $watch || fail "the watcher goes on"
away "after the removal"; qm status 111 | grep -q running || fail "the VM does not run any more"
within 90 0 qm stop 111; away "nobody brings it home"
# The clean-up of a stop waits with the VM's lock for whatever runs by then to end.
cleaned_up() { wait_for 90 sh -c '! pgrep -f "sbin/[q]m cleanup"'; }
cleaned_up; within 90 0 qm start 111; within 90 0 qm stop 111; cleaned_up; away "it starts without us"
say "installed anew, its record is still there: somebody watches over it again"
act -i "$deb"; comes_home 60 "installed anew"
say "removed and installed anew while the VM runs"
expect_rc 0 qm set 111 --hookscript local:snippets/gpu-handoff; within 90 0 qm start 111; act -r gpu-handoff; act -i "$deb"
wait_for 20 systemctl -q is-active $watch; away "the VM runs"
within 90 0 qm stop 111; comes_home 120 "removed and installed anew"

say "removed while the VM is locked: it starts, with the hook that does nothing"
expect_rc 0 qm set 111 --hookscript local:snippets/gpu-handoff; expect_rc 0 qm set 111 --lock backup; act -r gpu-handoff
said "VM is locked (backup)"; expect_rc 0 qm set 111 --delete lock
setting; systemctl stop nvidia-persistenced 2>/dev/null; unload_nvidia
within 90 0 qm start 111; grep -q "not installed any more" /root/said || fail "the hook did not say so"; within 90 0 qm stop 111
act -i "$deb"; is "$(readlink $link)" /usr/sbin/gpu-handoff "the link"
