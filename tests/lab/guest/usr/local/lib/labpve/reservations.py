"""Which VM has which PCI device [QS9 QemuServer/PCI.pm reserve_pci_usage, remove_pci_reservation]."""

import contextlib
import time

from . import qemu
from .config import acquire
from .paths import RUN, Died, read, warn, write

FILE = f"{RUN}/pci-id-reservations"
LOCK_WAIT = 10      # lab: seconds; it is held for a few milliseconds


@contextlib.contextmanager
def _locked():
    with open(f"{FILE}.lock", "w", encoding="ascii") as lock:
        acquire(lock.fileno(), f"{FILE}.lock", LOCK_WAIT)
        yield


def parse(text):
    """id -> (vmid, kind, number) of `FULLBDF VMID time:EPOCH` and `FULLBDF VMID pid:PID`."""
    entries = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and ":" in fields[2]:
            kind, _, number = fields[2].partition(":")
            entries[fields[0]] = (int(fields[1]), kind, int(number))
    return entries


def live(entry):
    """A time entry until it expires, a pid entry while that VM runs as that process."""
    vmid, kind, number = entry
    return number > time.time() if kind == "time" else qemu.running_pid(vmid) == number


def current():
    return parse(read(FILE, ""))


def _store(entries):
    write(FILE, "".join(f"{id_} {vmid} {kind}:{number}\n" for id_, (vmid, kind, number) in sorted(entries.items())))


def reserve(ids, vmid, timeout=None, pid=None):
    """Take the ids for some seconds or for a process, or die because another VM has one of them."""
    with _locked():
        entries = current()
        for id_ in ids:
            other = entries.get(id_)
            if other and other[0] != vmid:
                _check_conflict(id_, other)
            entries[id_] = (vmid, "pid", pid) if pid else (vmid, "time", int(time.time()) + timeout)
        _store(entries)


def _check_conflict(id_, other):
    if not live(other):
        if other[1] == "pid":
            warn(f"leftover PCI reservation found for {id_}, lets take it...")
    elif other[1] == "time":
        raise Died(f"PCI device '{id_}' is currently reserved for use by VMID '{other[0]}'")
    else:
        raise Died(f"PCI device '{id_}' already in use by VMID '{other[0]}'")


def remove(vmid):
    with _locked():
        _store({id_: entry for id_, entry in current().items() if entry[0] != vmid})
