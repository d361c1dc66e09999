#!/bin/sh
# journald is stopped and takes no lines: nothing waits for it, the task log has them all, and it is said.
# tier: full
. /usr/local/lib/lab-home.sh
card_vm; journald=$(systemctl show -P MainPID systemd-journald)
kill -STOP "$journald" || fail "stop"
python3 -c '
import socket
n, senders = 0, []
while True: # a sender may have so much under way, and journald so many lines
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
print(n, "lines wait")' || fail "the queue is not full"
within 60 0 qm start 111; said "journald takes no lines: they are only here"; said "is on vfio-pci after"; away "without a journal"
within 90 0 qm stop 111; said "is home after"; at_home "without a journal"
within 10 0 gpu-handoff status
kill -CONT "$journald"
wait_for 60 sh -c "journalctl -q -b | grep -q filler"
within 60 0 qm start 111; within 90 0 qm stop 111; at_home "with one again"
expect_text "is home after" journalctl -q -b -t gpu-handoff -n 5
