"""The first process in a container: its own /dev and /proc, its device nodes, its command, its end on SIGPWR."""

import os
import signal
import stat
import subprocess
import sys

STANDARD = ("null", "zero", "full", "random", "urandom", "tty")


def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)


def make_nodes(paths):
    """Nodes of the container's own, with the numbers the host's have now [CT LXC/Tools.pm, pre-start hook]."""
    numbers = {path: os.stat(path) for path in [f"/dev/{name}" for name in STANDARD] + paths if os.path.exists(path)}
    mount("--make-rprivate", "/")
    mount("-t", "tmpfs", "-o", "mode=755", "none", "/dev")
    mount("-t", "proc", "proc", "/proc")
    for path, status in numbers.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mknod(path, stat.S_IFCHR | 0o666, status.st_rdev)


def main():
    ctid, devices, *command = sys.argv[1:]
    host_pid = os.readlink("/proc/self")        # still the host's /proc: our pid as the host sees it
    with open(f"/run/lxc-{ctid}.pid", "w", encoding="ascii") as file:
        file.write(host_pid)
    make_nodes([path for path in devices.split(",") if path])
    child = subprocess.Popen(command)
    signal.signal(signal.SIGPWR, lambda number, frame: child.terminate())
    child.wait()


main()
