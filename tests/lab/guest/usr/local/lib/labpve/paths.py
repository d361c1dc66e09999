"""Where Proxmox keeps things, and the one exception that ends a task."""

import os
import sys

PVE = "/etc/pve"
RUN = "/run/qemu-server"
LOCKS = "/var/lock/qemu-server"
SYS_PCI = "/sys/bus/pci"


class Died(Exception):
    """A Perl `die`: its text is what the user reads."""


def node_name():
    """The host name up to the first dot [COM INotify.pm nodename]."""
    return os.uname().nodename.split(".", 1)[0]


def config_path(vmid):
    return f"{PVE}/nodes/{node_name()}/qemu-server/{vmid}.conf"


def run_path(vmid, suffix):
    return f"{RUN}/{vmid}.{suffix}"


def make_directories():
    """lab: on a real host the packages and pmxcfs make these."""
    for path in (f"{PVE}/nodes/{node_name()}/qemu-server", RUN, LOCKS):
        os.makedirs(path, exist_ok=True)
    if not os.path.lexists(f"{PVE}/qemu-server"):
        os.symlink(f"nodes/{node_name()}/qemu-server", f"{PVE}/qemu-server")


def read(path, default=None):
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return default


def write(path, text):
    """Replaced as a whole [COM Tools.pm file_set_contents]."""
    with open(f"{path}.tmp.{os.getpid()}", "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    os.rename(f"{path}.tmp.{os.getpid()}", path)


def unlink(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def say(text):
    print(text, flush=True)


def warn(text):
    print(text.rstrip("\n"), file=sys.stderr, flush=True)
