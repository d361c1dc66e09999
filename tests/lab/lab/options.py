"""What a boot is made of: the switches and their defaults.

Two scenarios whose Options are equal share a boot.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

from . import kernels, userland

DRIVERS = {
    "stub": "stand-ins for NVIDIA's modules; every fault can be made",
    "real": "NVIDIA's own open modules, compiled from Debian's package",
    "none": "no NVIDIA driver at all",
}
IOMMUS = {
    "intel": "Intel VT-d",
    "amd": "AMD-Vi",
    "virtio": "virtio-iommu",
    "none": "no IOMMU, as with it switched off in the firmware",
}
GROUPS = {
    "own": "each card has an IOMMU group of its own",
    "shared": "two cards at a time share a group (ports without ACS)",
    "stranger": "a foreign USB controller is in the first card's group",
}
CLOCKS = {
    "wall": "the guest's time is ours",
    "instructions": "a nanosecond of the guest is an instruction on its only processor, or a wait: what two runs agree on",
}
MOST_CARDS = 16


@dataclass(frozen=True)
class Options:
    """One way to boot the guest."""

    cards: int = 1
    functions: int = 2
    ids: str = ""
    driver: str = "stub"
    kernel: str = kernels.DEFAULT
    iommu: str = "intel"
    group: str = "own"
    stub: tuple[str, ...] = ()
    display: str = "none"
    append: str = ""
    persist: bool = False
    boot_disk: bool = False
    install: bool = True
    fault_points: bool = False
    memory: int = 3072
    accel: str = "tcg"
    clock: str = "wall"
    peers: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The switches of a boot, with a help line each."""
    add = parser.add_argument
    standard = Options()
    add("--cards", type=int, metavar="N", default=standard.cards,
        choices=range(1, MOST_CARDS + 1), help="how many cards, 1 to 16")
    add("--functions", type=int, default=standard.functions, choices=(2, 4),
        help="functions of each card: GPU and audio, or USB and UCSI, too")
    add("--ids", default=standard.ids, metavar="VENDOR:DEVICE",
        help="identifiers of each card's GPU (10de:2204)")
    add("--driver", default=standard.driver, choices=DRIVERS,
        help=_table(DRIVERS))
    add("--kernel", default=standard.kernel, choices=kernels.SUITES,
        help="the kernel that a suite of Debian has now: " + _table(kernels.SUITES))
    add("--iommu", default=standard.iommu, choices=IOMMUS, help=_table(IOMMUS))
    add("--group", default=standard.group, choices=GROUPS, help=_table(GROUPS))
    add("--stub", action="append", default=[], metavar="KEY=VALUE",
        help="module parameter of the stub; nvidia-drm.KEY=VALUE for another "
        "of its modules than nvidia")
    add("--display", default=standard.display, choices=("none", "bochs", "firmware"),
        help="bochs: a second display card, which is then the boot VGA; "
        "firmware: the same card with the firmware's framebuffer on it")
    add("--append", default=standard.append, metavar="WORDS",
        help="more words for the kernel's command line")
    add("--persist", action="store_true",
        help="changes of the guest survive a reboot; the script is run again "
        "after it, with LAB_BOOT one higher")
    add("--boot-disk", action="store_true",
        help="with --persist: a disk that every boot but the first is from, by "
        "what the script has installed there; then no kernel comes from outside")
    add("--no-install", dest="install", action="store_false",
        help="leave the package in /root, do not install it")
    add("--fault-points", action="store_true",
        help="the installed binary is one with the kill switch of the crash "
        "campaigns, which the package does not have")
    add("--memory", type=int, default=standard.memory, metavar="MIB",
        help="memory of the guest")
    add("--peers", action="store_true",
        help="with the tools that others have for this job: " + ", ".join(userland.PEERS))
    add("--accel", default=standard.accel, choices=("tcg", "auto"),
        help="auto: KVM, where it really boots the guest's kernel")
    add("--clock", default=standard.clock, choices=CLOCKS, help=_table(CLOCKS))


def from_arguments(arguments: argparse.Namespace) -> Options:
    """The boot that a command line asks for."""
    values = {one.name: getattr(arguments, one.name) for one in fields(Options)}
    values["stub"] = tuple(values["stub"])
    return Options(**values)


def _table(entries: dict[str, str]) -> str:
    return "; ".join(f"{name}: {text}" for name, text in entries.items())
