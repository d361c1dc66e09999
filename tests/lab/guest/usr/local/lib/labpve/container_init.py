#!/usr/bin/python3 -IS
"""What runs in a container: `nodes CTID` is its hook that makes device nodes [CT lxc-pve-autodev-hook]; `run COMMAND...` its first
process, which ends with its command, or on SIGPWR."""

import os
import signal
import stat
import subprocess
import sys

FILES = "/run/lab-ct"


def nodes(ctid):
    """With the numbers that the host's had when the container was started."""
    root = os.environ["LXC_ROOTFS_MOUNT"]
    with open(f"{FILES}/{ctid}/nodes", encoding="ascii") as file:
        for path, number in map(str.split, file):
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            bound = f"{FILES}/{ctid}/passthrough{path}"
            if os.path.exists(bound):       # an unprivileged one may make no node
                os.close(os.open(root + path, os.O_CREAT, 0o666))
                subprocess.run(["mount", "--bind", bound, root + path], check=True)
            else:
                os.mknod(root + path, stat.S_IFCHR | 0o666, int(number))
                os.chmod(root + path, 0o666)


def run(command):
    os.environ["PATH"] = "/usr/local/bin:/usr/bin:/bin"
    child = os.spawnvp(os.P_NOWAIT, command[0], command)
    signal.signal(signal.SIGPWR, lambda *_: os.kill(child, signal.SIGTERM))
    os.waitpid(child, 0)


if sys.argv[1] == "nodes":
    nodes(sys.argv[2])
else:
    run(sys.argv[2:])
