"""Containers: pct and what a container looks like from the host [CT: pve-container 6.1.10].

A container here is a process tree with pid, mount, UTS and IPC namespaces of its own, below the cgroup /lxc/CTID/ns, with its own
/dev on a tmpfs whose nodes are made from `devN` and `lxc.mount.entry`. It shares the host's files otherwise (lab: no
rootfs), is privileged, and runs `lxc.init.cmd`, or nothing that would hold a device.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time

from . import config as vmconfig
from .cli import arguments
from .hooks import exec_hookscript
from .paths import PVE, Died, node_name, read, say, warn

LOCKS = "/run/lock/lxc"
CGROUP = "/sys/fs/cgroup/lxc"
INIT = "/usr/local/lib/labpve/container_init.py"


def config_path(ctid):
    return f"{PVE}/nodes/{node_name()}/lxc/{ctid}.conf"


class Config:
    """The current section. Keys `lxc.*` take `:` or `=` and may repeat [CT LXC/Config.pm parse_pct_config]."""

    def __init__(self, text):
        self.values, self.lxc = {}, []
        for line in text.split("\n[", 1)[0].splitlines():
            match = re.fullmatch(r"(lxc\.[a-z0-9_.]+)\s*[:=]\s*(.*?)\s*", line)
            if match:
                self.lxc.append(match.groups())
            elif (match := re.fullmatch(r"([a-z][a-z_]*\d*):\s*(.+?)\s*", line)):
                self.values[match[1]] = match[2]

    def lxc_values(self, key):
        return [value for name, value in self.lxc if name == key]

    def devices(self):
        """Paths on the host of devN and of bind mounts of device nodes."""
        found = [value.split(",")[0].removeprefix("path=") for key, value in sorted(self.values.items())
                 if re.fullmatch(r"dev\d+", key)]
        mounts = [entry.split()[0] for entry in self.lxc_values("lxc.mount.entry") if entry.startswith("/dev/")]
        return found + mounts


def load(ctid):
    text = read(config_path(ctid))
    if text is None:
        raise Died(f"Configuration file 'nodes/{node_name()}/lxc/{ctid}.conf' does not exist")
    return Config(text)


@contextlib.contextmanager
def flock(ctid):
    """The container's own lock, independent of any VM's: usable from within a VM's hook."""
    os.makedirs(LOCKS, exist_ok=True)
    descriptor = os.open(f"{LOCKS}/pve-config-{ctid}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        vmconfig.acquire(descriptor, f"{LOCKS}/pve-config-{ctid}.lock", 10)
        yield
    finally:
        os.close(descriptor)


def processes(ctid):
    return [int(pid) for pid in (read(f"{CGROUP}/{ctid}/ns/cgroup.procs") or "").split()]


def init_pid(ctid):
    """The host's pid of the container's init, or None."""
    pid = (read(f"/run/lxc-{ctid}.pid") or "").strip()
    return int(pid) if pid and int(pid) in processes(ctid) else None


def start(ctid):
    with flock(ctid):
        config = load(ctid)
        if init_pid(ctid):
            raise Died(f"CT {ctid} already running")
        if "lock" in config.values:
            raise Died(f"CT is locked ({config.values['lock']})")
        exec_hookscript(config, ctid, "pre-start", stop_on_error=True)
        for path in config.devices():
            if not os.path.exists(path):
                _missing_device(config, path)
        unit = f"pve-container@{ctid}.service"      # the container is no child of its starter
        result = subprocess.run(["systemctl", "start", unit], check=False)
        end = time.monotonic() + 10
        while result.returncode == 0 and not init_pid(ctid) and time.monotonic() < end:
            time.sleep(0.05)
        if not init_pid(ctid):
            raise Died(f"startup for container '{ctid}' failed")
        exec_hookscript(config, ctid, "post-start")


def _missing_device(config, path):
    """A devN must exist; a mount entry with `optional` need not [CT LXC.pm, lxc.container.conf(5)]."""
    optional = any(entry.startswith(path) and "optional" in entry for entry in config.lxc_values("lxc.mount.entry"))
    if not optional:
        raise Died(f"Device {path} does not exist")


def stop(ctid, polite, timeout=60, force=False):
    """[CT LXC.pm vm_stop]: SIGPWR to init (lxc.signal.halt), or the end of everything in the cgroup."""
    with flock(ctid):
        config = load(ctid)
        pid = init_pid(ctid)
        if not pid:
            raise Died(f"CT {ctid} not running")
        exec_hookscript(config, ctid, "pre-stop")
        if polite:
            os.kill(pid, signal.SIGPWR)
            if not _wait_gone(ctid, timeout) and not force:
                raise Died(f"command 'lxc-stop -n {ctid} --nokill --timeout {timeout}' failed: exit code 1")
        if init_pid(ctid):
            os.kill(pid, signal.SIGKILL)            # pid 1 of the namespace: the kernel ends the rest
            if not _wait_gone(ctid, 10):
                raise Died(f"CT {ctid} does not end")
        subprocess.run(["systemctl", "stop", f"pve-container@{ctid}.service"], check=False)


def _wait_gone(ctid, seconds):
    end = time.monotonic() + float(seconds)
    while processes(ctid):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def run(ctid):
    """The body of pve-container@CTID.service [lxc-start -F -n CTID]: returns when the container has ended."""
    config = load(ctid)
    os.makedirs(f"{CGROUP}/{ctid}/ns", exist_ok=True)
    command = shlex.split((config.lxc_values("lxc.init.cmd") or ["sleep infinity"])[0])
    child = os.fork()
    if child == 0:
        with open(f"{CGROUP}/{ctid}/ns/cgroup.procs", "w", encoding="ascii") as procs:
            procs.write(str(os.getpid()))
        os.execv("/usr/bin/unshare", ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child",
                                      sys.executable, INIT, str(ctid), ",".join(config.devices()), *command])
    os.waitpid(child, 0)
    exec_hookscript(config, ctid, "post-stop")      # lxc-pve-poststop-hook, inside the unit
    return 0


def enter(ctid, command):
    """`pct exec`: in the container's namespaces and cgroup."""
    pid = init_pid(ctid)
    if not pid:
        raise Died(f"CT {ctid} not running")
    with open(f"{CGROUP}/{ctid}/ns/cgroup.procs", "w", encoding="ascii") as procs:
        procs.write(str(os.getpid()))
    os.execv("/usr/bin/nsenter", ["nsenter", "-t", str(pid), "-m", "-u", "-i", "-p", *command])


def main(argv):
    verb, rest = (argv + ["", ""])[1], argv[2:]
    try:
        if verb == "exec":
            enter(rest[0], rest[rest.index("--") + 1:])
        options = arguments(rest, "timeout", "forceStop", "skiplock") if verb != "list" else None
        if verb == "start":
            start(options.vmid)
        elif verb in ("stop", "shutdown"):
            stop(options.vmid, verb == "shutdown", int(options.timeout or 60), options.forceStop == "1")
        elif verb == "run":
            return run(options.vmid)
        elif verb == "status":
            load(options.vmid)
            say("status: " + ("running" if init_pid(options.vmid) else "stopped"))
        elif verb == "config":
            load(options.vmid)
            say((read(config_path(options.vmid)) or "").rstrip("\n"))
        elif verb == "list":
            say("VMID       Status     Lock         Name")
            for name in sorted(os.listdir(f"{PVE}/lxc")):
                ctid = name.removesuffix(".conf")
                state = "running" if init_pid(ctid) else "stopped"
                say(f"{ctid:<10} {state:<10} {'':<12} {load(ctid).values.get('hostname', '')}")
        else:
            raise Died("ERROR: unknown command\nUSAGE: pct start|stop|shutdown|status|config|list|exec CTID")
        return 0
    except (Died, OSError) as error:
        warn(str(error))
        return 255
