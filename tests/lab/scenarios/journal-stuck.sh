#!/bin/sh
# journald is stopped and takes no lines: nothing waits for it, the task log has them all, it is said, and later lines are there again.
# tier: full
. /usr/local/lib/lab-home.sh
cat >/root/stuck <<'PYTHON'
#!/usr/bin/python3
import os, signal, socket, subprocess
pid = subprocess.check_output(["systemctl", "show", "-P", "MainPID", "systemd-journald"])
os.kill(int(pid), signal.SIGSTOP)
n, senders = 0, []
while True:  # a sender may have so much under way, and journald so many lines
    senders.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    senders[-1].setblocking(False)
    before = n
    try:
        while True:
            senders[-1].sendto(b"MESSAGE=filler\n", "/run/systemd/journal/socket")
            n += 1
    except BlockingIOError:
        if n == before:
            break
print(n, "lines wait")
PYTHON
chmod 755 /root/stuck; journald=$(systemctl show -P MainPID systemd-journald)
goes_on() { kill -CONT "$journald"; wait_for 60 sh -c "[ \$(journalctl -q -b --since '$1' | grep -c filler) -gt 100 ]"; }
journal_has() { wait_for 60 sh -c "journalctl -q -b -u '$1' | grep -q '$2'"; }
card_vm; now=$(date +'%F %T')
/root/stuck || fail "the queue is not full"
within 60 0 qm start 111; said "journald takes no lines: they are only here"; said "is on vfio-pci after"; said "lines were not taken by the journal"; away "without a journal"
within 10 0 gpu-handoff status
goes_on "$now"; within 90 0 qm stop 111; at_home "with one again"
journal_has gpu-handoff-watch@111 "the watch is over"; say "a watcher that began without a journal writes to it now"

say "it stops in the middle of a run"
drop_in=/run/systemd/system/nvidia-persistenced.service.d/scenario.conf
mkdir -p "${drop_in%/*}"; printf '[Service]\nExecStop=/root/stuck\n' >$drop_in; systemctl daemon-reload
systemctl start nvidia-persistenced; now=$(date +'%F %T')
within 60 0 qm start 111; said "journald takes no lines: they are only here"; said "is on vfio-pci after"; said "lines were not taken by the journal"; away "without a journal"
goes_on "$now"; rm $drop_in; systemctl daemon-reload
within 90 0 qm stop 111; at_home "in the end"; expect_text "is home after" journalctl -q -b -t gpu-handoff -n 8
systemctl stop nvidia-persistenced
