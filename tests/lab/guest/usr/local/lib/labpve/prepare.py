"""What Proxmox does to a device before QEMU starts [QS9 QemuServer/PCI.pm prepare_pci_device, COM SysFSTools.pm].

It never uses driver_override, and nothing here has a deadline: an unbind that blocks, blocks the start.
"""

import errno
import os

from .paths import SYS_PCI, Died, read, warn

VFIO = f"{SYS_PCI}/drivers/vfio-pci"


def prepare(id_):
    """Bind the function's whole IOMMU group to vfio-pci, then reset the function."""
    if not os.path.isdir("/sys/class/iommu") or not os.listdir("/sys/class/iommu"):
        raise Died("cannot prepare PCI pass-through, IOMMU not present")
    device = f"{SYS_PCI}/devices/{id_}"
    if not os.path.isdir(device):
        raise Died(f"no pci device info for device '{id_}'")
    if not _bind_group(device):
        raise Died(f"can't unbind/bind PCI group to VFIO '{id_}'")
    if os.path.exists(f"{device}/reset") and not _write(f"{device}/reset", "1"):
        warn(f"failed to reset PCI device '{id_}', but trying to continue as not all devices need a reset")


def _bind_group(device):
    if not os.path.isdir(VFIO):
        import subprocess
        subprocess.run(["/sbin/modprobe", "vfio-pci"], check=False)
        if not os.path.isdir(VFIO):
            raise Died("Cannot find vfio-pci module!")
    try:
        members = sorted(os.listdir(f"{device}/iommu_group/devices"))
    except OSError as error:
        raise Died(f"Cannot open iommu_group: {error.strerror}") from None
    for name in members:
        if os.path.isdir(f"{SYS_PCI}/devices/{name}/pci_bus"):
            continue                # a bridge
        if not _bind_to_vfio(name):
            raise Died(f"Cannot bind {name} to vfio")
    return True


def _bind_to_vfio(name):
    """[pci_dev_bind_to_vfio]: nothing at all where the function is on vfio-pci already."""
    device, bound = f"{SYS_PCI}/devices/{name}", f"{VFIO}/{name}"
    if os.path.isdir(bound):
        return True
    ids = " ".join(read(f"{device}/{file}").strip()[2:] for file in ("vendor", "device"))
    if not _write(f"{VFIO}/new_id", ids, tolerated=errno.EEXIST):
        return False
    unbind = f"{device}/driver/unbind"
    if not _write(unbind, name, quiet=not os.path.exists(unbind)) and os.path.exists(unbind):
        return False
    if not os.path.isdir(bound) and not _write(f"{VFIO}/bind", name):
        return False
    return os.path.isdir(bound)


def _write(path, text, tolerated=None, quiet=False):
    """[file_write]: warns and goes on."""
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        if error.errno == tolerated:
            return True
        if not quiet:
            warn(f"error writing '{text}' to '{path}': {error.strerror}")
        return False
    return True
