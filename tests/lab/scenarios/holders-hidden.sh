#!/bin/sh
# Who has the GPU where a plain look does not see it is found; who only has its name, or a million other files, is in nobody's way.
# lab: --cards 2 --driver stub --timeout 1200
# tier: full
. /usr/local/lib/lab-home.sh
setting 'way = "unbind"' 'deadlines.holder-wait = 1'
home=$(both)
free() { within 90 0 gpu-handoff to_vfio --gpu "$gpu"; away "$1"; within 90 0 gpu-handoff to_nvidia --gpu "$gpu"; is "$(both)" "$home" "home: $1"; }
refused() { within 60 3 gpu-handoff to_vfio --gpu "$gpu"; is "$(both)" "$home" "nothing has changed: $1"; }

say "a thread with a table of its own (unshare, CLONE_FILES)"
python3 -c '
import ctypes, os, threading, time
def own():
    if ctypes.CDLL(None).unshare(0x400): raise SystemExit("unshare")
    os.open("/dev/nvidia0", os.O_RDWR); print("open", flush=True); time.sleep(600)
threading.Thread(target=own).start()' >/root/own & pid=$!
wait_for 30 grep -q open /root/own
refused "a thread's own table"; said "in use by process $pid (python3"
kill $pid; wait $pid 2>/dev/null

say "a chain: each has it from the last, and ends as soon as the next is there"
cat >/root/chain.py <<'END'
import os, time
os.open("/dev/nvidia0", os.O_RDWR); print("open", flush=True)
end = time.time() + 600
while time.time() < end and not os.path.exists("/root/enough"):
    if os.fork(): os._exit(0)
END
for try in 1 2 3 4 5; do
	rm -f /root/enough; python3 /root/chain.py >/root/chain & wait_for 30 grep -q open /root/chain
	refused "a chain, $try"
	touch /root/enough; sleep 1
done
rm -f /root/enough

# unseen WHAT: a python on standard input has it open where no descriptor shows it: the driver's own count does
unseen() {
	rm -f /root/unseen; cat >/root/unseen.py; python3 /root/unseen.py >/root/unseen & pid=$!
	wait_for 30 grep -q open /root/unseen; say "$1: descriptors of it that are to be seen: $(find "/proc/$pid/fd" -lname '/dev/nvidia*' | wc -l)"
	refused "$1"; said "module nvidia is in use beyond what can be seen ("; kill $pid; wait $pid 2>/dev/null; free "after $1"; }
unseen "a descriptor on its way through a socket" <<'END'
import os, socket, time
here, there = socket.socketpair()
node = os.open("/dev/nvidia0", os.O_RDWR)
socket.send_fds(here, [b"x"], [node]); os.close(node); print("open", flush=True); time.sleep(600)
END
unseen "a file that an io_uring has" <<'END'
import ctypes, os, time
call, parameters = ctypes.CDLL(None).syscall, ctypes.create_string_buffer(120)
ring, node = call(425, 4, parameters), os.open("/dev/nvidia0", os.O_RDWR) # io_uring_setup
if ring < 0 or call(427, ring, 2, (ctypes.c_int * 1)(node), 1): raise SystemExit("io_uring_register") # IORING_REGISTER_FILES
os.close(node); print("open", flush=True); time.sleep(600)
END

say "one that is stuck in mmap, whose maps cannot be read meanwhile"
stub delay_mmap_ms 30000
python3 -c '
import mmap, os
node = os.open("/dev/nvidia0", os.O_RDWR); print("open", flush=True); mmap.mmap(node, 4096)' >/root/mmap 2>&1 & pid=$!
wait_for 30 grep -q open /root/mmap; is_stuck $pid "in mmap"
refused "stuck in mmap"; said "in use by process $pid (python3"
stub delay_mmap_ms 0; wait_for 60 test ! -e "/proc/$pid/fd"; wait $pid 2>/dev/null; free "after it"

# From here on the other card's user is counted in the driver: nobody can be ruled out by counts alone, and all are looked at.
hold_open /dev/nvidia1
say "a name of the node and no use of it (O_PATH)"
python3 -c 'import os, time; os.open("/dev/nvidia0", os.O_PATH); print("open", flush=True); time.sleep(600)' >/root/path & pid=$!
wait_for 30 grep -q open /root/path
free "O_PATH"; kill $pid; wait $pid 2>/dev/null

say "a million descriptors of other files in twenty processes"
ulimit -n 60000 || fail "ulimit"
pids=; for n in $(seq 20); do python3 -c '
import os, time
f = os.open("/etc/hostname", os.O_RDONLY)
for _ in range(50000): os.dup(f)
print("open", flush=True); time.sleep(600)' >/root/many$n & pids="$pids $!"; done
for n in $(seq 20); do wait_for 120 grep -q open "/root/many$n"; done
free "a million descriptors"
mine=$holder; hold_open /dev/nvidia0; refused "who has it beside them"; said "in use by process $holder (hold"
kill $holder $mine $pids; wait 2>/dev/null
setting; at_home "in the end"
