#!/bin/sh
# A task that is stopped takes its hook along; a worker that is hit alone leaves the hook running without the VM's lock.
# tier: full
. /usr/local/lib/lab.sh
mkhook slow <<'HOOK'
#!/bin/sh
echo $$ >/root/hook-pid
exec sleep 60
HOOK
qm create 111 >/dev/null; qm set 111 --hookscript local:snippets/slow >/dev/null
begin() { rm -f /root/hook-pid; qm start 111 >/root/task-log 2>&1 & task=$!; wait_for 10 test -s /root/hook-pid; hook=$(cat /root/hook-pid); }

begin
flock -n /var/lock/qemu-server/lock-111.conf true && fail "the lock is free during the hook"
expect_text "got timeout" qm stop 111 || true
qm-task kill 111 TERM; wait $task
wait_for 5 test ! -e "/proc/$hook"
cat /root/task-log; say "TERM to the group: the hook is gone"

begin; qm-task kill 111 KILL; wait $task; wait_for 5 test ! -e "/proc/$hook"; say "KILL to the group: the hook is gone"

begin; qm-task worker 111 TERM; wait $task; cat /root/task-log
[ -e "/proc/$hook" ] || fail "the hook has ended"
expect_rc 0 flock -n /var/lock/qemu-server/lock-111.conf true
say "TERM to the worker alone: the hook lives, the lock is free"
kill "$hook"
