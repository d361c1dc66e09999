"""Containers: pct and what a container looks like from the host [CT: pve-container 6.1.10].

The containers are Debian's own LXC's, in the cgroup /lxc/CTID/ns as pve-container has it, with namespaces, a device program and a
/dev of their own whose nodes are made from `devN` and `lxc.mount.entry`. Their files are the guest's own below an overlay (lab: no
rootfs), and run `lxc.init.cmd`, or nothing that would hold a device. `lxc.init.cmd: systemd` runs Debian's
systemd with the units of /etc/lab/ct/CTID, and nothing else. `unprivileged: 1` gives them Proxmox's map of ids, and nodes that are
bound from a tmpfs of the host's [CT lxc-pve-prestart-hook, lxc-pve-autodev-hook]; the files of its root are nobody's then.
`entrypoint` and `env` are what a container has that was made from an OCI image [CT LXC/Create.pm restore_oci_archive]: its program
is the container's first process, and is asked to end by the image's signal.
"""

import contextlib
import glob
import os
import re
import shutil
import stat
import subprocess
import time

from . import config as vmconfig
from . import ha
from .cli import arguments
from .hooks import exec_hookscript
from .paths import PVE, Died, node_name, read, say, warn, write
from .storage import check_hookscript

LOCKS = "/run/lock/lxc"
CGROUP = "/sys/fs/cgroup/lxc"
INIT = "/usr/local/lib/labpve/container_init.py"
FILES = "/run/lab-ct"      # of each container: what it has changed, its root, its nodes' numbers
SHIFT = 100000             # the first of an unprivileged container's ids
SYSTEMD = "/usr/lib/systemd/systemd --unit=lab-ct.target"


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
    lists = glob.glob(f"{CGROUP}/{ctid}/**/cgroup.procs", recursive=True)
    return [int(pid) for path in lists for pid in (read(path) or "").split()]


def init_pid(ctid):
    """The host's pid of the container's init, or None."""
    if not os.path.isdir(f"{CGROUP}/{ctid}/ns"):
        return None
    said = subprocess.run(["lxc-info", "-n", str(ctid), "-pH"], capture_output=True, text=True, check=False)
    return int(said.stdout) if said.stdout.strip().isdigit() else None


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
    """[CT LXC.pm vm_stop]: lxc.signal.halt to init, or the end of everything in the cgroup."""
    with flock(ctid):
        config = load(ctid)
        if not init_pid(ctid):
            raise Died(f"CT {ctid} not running")
        exec_hookscript(config, ctid, "pre-stop")
        if polite:
            subprocess.run(["lxc-stop", "-n", str(ctid), "--nokill", "--timeout", str(timeout)], check=False)
            if not _wait_gone(ctid, timeout) and not force:
                raise Died(f"command 'lxc-stop -n {ctid} --nokill --timeout {timeout}' failed: exit code 1")
        if init_pid(ctid):
            subprocess.run(["lxc-stop", "-n", str(ctid), "-k"], check=False)
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


def passthrough(ctid, numbers):
    """The nodes of an unprivileged container, which may make none: with its ids, where it can bind them from."""
    folder = f"{FILES}/{ctid}/passthrough"
    os.makedirs(folder, exist_ok=True)
    subprocess.run(["umount", "-q", folder], check=False)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "passthrough", folder], check=True)
    for path, number in numbers.items():
        os.makedirs(os.path.dirname(folder + path), exist_ok=True)
        os.mknod(folder + path, stat.S_IFCHR | 0o666, number)
        os.chmod(folder + path, 0o666)
        os.chown(folder + path, SHIFT, SHIFT)


def lxc_config(ctid, config, init, halt):
    """What pve-container makes of a config [CT LXC.pm, update_lxc_config]."""
    devices = [path for path in config.devices() if os.path.exists(path)]
    numbers = {path: os.stat(path).st_rdev for path in devices}
    mapped = config.values.get("unprivileged") == "1"
    if mapped:
        passthrough(ctid, numbers)
    with open(f"{FILES}/{ctid}/nodes", "w", encoding="ascii") as file:
        file.writelines(f"{path} {number}\n" for path, number in numbers.items())
    lines = [
        "lxc.cgroup.relative = 0", f"lxc.cgroup.dir.monitor = lxc.monitor/{ctid}", f"lxc.cgroup.dir.container = lxc/{ctid}",
        "lxc.cgroup.dir.container.inner = ns", "lxc.mount.auto = proc:mixed sys:mixed cgroup:mixed", "lxc.autodev = 1",
        "lxc.tty.max = 0", "lxc.pty.max = 16", "lxc.net.0.type = empty", f"lxc.uts.name = {config.values.get('hostname', f'CT{ctid}')}",
        f"lxc.rootfs.path = {FILES}/{ctid}/root", f"lxc.init.cmd = {init}", f"lxc.hook.autodev = {INIT} nodes {ctid}",
        f"lxc.signal.halt = {halt}", *(f"lxc.idmap = {kind} 0 {SHIFT} 65536" for kind in "ug" if mapped), "lxc.cgroup2.devices.deny = a",
        *(f"lxc.cgroup2.devices.allow = c {number} rwm" for number in ("1:3", "1:5", "1:7", "1:8", "1:9", "5:*", "136:*", "4:*")),
        *(f"lxc.cgroup2.devices.allow = c {os.major(n)}:{os.minor(n)} rwm" for n in numbers.values()),
        *(f"lxc.cgroup2.devices.allow = {value}" for value in config.lxc_values("lxc.cgroup2.devices.allow")),
    ]
    os.makedirs(f"/var/lib/lxc/{ctid}", exist_ok=True)
    with open(f"/var/lib/lxc/{ctid}/config", "w", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")


def clear_leftovers(ctid):
    """What a container leaves whose lxc-start was killed with all of it, as a soft reboot does: mounts, cgroups."""
    for name in ("root", "passthrough"):
        folder = f"{FILES}/{ctid}/{name}"
        while os.path.ismount(folder) and subprocess.run(["umount", "-l", folder], check=False).returncode == 0:
            pass
    for top in (f"{CGROUP}.monitor/{ctid}", f"{CGROUP}/{ctid}"):
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):      # in use: lxc-start says so
                os.rmdir(folder)


def run(ctid):
    """The body of pve-container@CTID.service [lxc-start -F -n CTID]: returns when the container has ended."""
    config = load(ctid)
    clear_leftovers(ctid)
    root = f"{FILES}/{ctid}/root"
    for name in ("root", "upper", "work"):
        os.makedirs(f"{FILES}/{ctid}/{name}", exist_ok=True)
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o",
                    f"lowerdir=/,upperdir={FILES}/{ctid}/upper,workdir={FILES}/{ctid}/work", root], check=True)
    command = (config.lxc_values("lxc.init.cmd") or ["sleep infinity"])[0]
    init, halt = f"{INIT} run {command}", "SIGPWR"
    if command == "systemd":
        init, halt = SYSTEMD, "SIGRTMIN+3"
    if "entrypoint" in config.values:
        init, halt = config.values["entrypoint"], (config.lxc_values("lxc.signal.halt") or ["SIGTERM"])[0]
    units = f"{root}/etc/systemd/system"
    with open(f"{units}/lab-ct.target", "w", encoding="ascii") as file:
        wanted = " ".join(sorted(os.listdir(f"/etc/lab/ct/{ctid}"))) if os.path.isdir(f"/etc/lab/ct/{ctid}") else ""
        file.write(f"[Unit]\nDefaultDependencies=no\nWants={wanted}\n")
    for path in glob.glob(f"/etc/lab/ct/{ctid}/*"):
        shutil.copy(path, units)
    lxc_config(ctid, config, init, halt)
    subprocess.run(["lxc-start", "-F", "-n", str(ctid)], stdin=subprocess.DEVNULL, check=False)
    subprocess.run(["umount", "-l", root], check=False)
    subprocess.run(["umount", "-q", "-l", f"{FILES}/{ctid}/passthrough"], check=False)
    exec_hookscript(config, ctid, "post-stop")      # lxc-pve-poststop-hook, inside the unit
    return 0


def enter(ctid, command):
    """`pct exec` [CT CLI/pct.pm]: in the container's namespaces and cgroup."""
    load(ctid)
    if not init_pid(ctid):
        raise Died(f"container '{ctid}' not running!")
    os.execv("/usr/bin/lxc-attach", ["lxc-attach", "-n", ctid, "--", *command])


def set_(ctid, words):
    """`pct set CTID --hookscript VOLUME --devN NODE --delete KEYS`: at once, also while it runs [CT LXC/Config.pm LXC_FASTPLUG_OPTIONS].

    lab: a devN that goes while it runs does not wait in [pve:pending].
    """
    text = read(config_path(ctid))
    changes = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2]))
    if text is None or not all(re.fullmatch(r"hookscript|delete|dev\d+", key) for key in changes):
        raise Died(f"400 unable to parse option, or no container {ctid}")
    if "lock" in Config(text).values:
        raise Died(f"CT is locked ({Config(text).values['lock']})")     # [GC AbstractConfig.pm check_lock]
    if "hookscript" in changes:
        check_hookscript(changes["hookscript"])
    head, *rest = re.split(r"(?m)^(?=\[)", text, maxsplit=1)
    gone = [key for key in changes.pop("delete", "").split(",") if key]
    for key in [*gone, *changes]:
        head = re.sub(rf"(?m)^{key}:.*\n", "", head)
    head = head.rstrip("\n") + "\n" + "".join(f"{key}: {value}\n" for key, value in changes.items())
    write(config_path(ctid), head + "".join(rest))
    return 0


def main(argv):
    verb, rest = (argv + ["", ""])[1], argv[2:]
    try:
        if verb == "exec":
            enter(rest[0], rest[rest.index("--") + 1:])
        if verb == "set":
            return set_(int(rest[0]), rest[1:])
        options = arguments(rest, "timeout", "forceStop", "skiplock") if verb != "list" else None
        if verb in ("start", "stop", "shutdown") and ha.manages(options.vmid):
            if bool(init_pid(options.vmid)) == (verb == "start"):
                raise Died(f"CT {options.vmid} {'already' if verb == 'start' else 'not'} running")
            ha.request(options.vmid, verb)
        elif verb == "start":
            start(options.vmid)
        elif verb in ("stop", "shutdown"):
            stop(options.vmid, verb == "shutdown", int(options.timeout or 60), options.forceStop == "1")
        elif verb == "reboot":                          # [PVE/LXC.pm, vm_reboot]: ended where it does not shut down
            if not init_pid(options.vmid):
                raise Died(f"CT {options.vmid} not running")
            stop(options.vmid, True, int(options.timeout or 60), True)
            start(options.vmid)
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
            raise Died("ERROR: unknown command\nUSAGE: pct start|stop|shutdown|reboot|status|config|list|set|exec CTID")
        return 0
    except (Died, OSError) as error:
        warn(str(error))
        return 255
