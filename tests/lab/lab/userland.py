"""The guest's userland: Debian 13 with systemd, as one read-only image.

Debian 13 is what Proxmox VE 9 is made of. There is no kernel in it (kernels.py)
and nothing of ours: tests/lab/guest is laid over it at boot, so that an edit
there needs no new image.
"""

from __future__ import annotations

import functools
import shlex
from pathlib import Path
from typing import IO

from . import cache, mirror, sandbox, toolbox

PACKAGES = (
    "systemd", "systemd-sysv", "udev", "dbus", "kmod",
    "pciutils", "procps", "psmisc", "iproute2", "strace", "lsof",
    "less", "python3",
    "qemu-system-x86",  # the virtual machine inside: trixie's own
    "busybox-static",
    "lxc",  # containers: Debian's own, below the stand-in for Proxmox's pct
    "podman",  # others: itself
    "grub-pc-bin", "grub2-common", "fdisk", "e2fsprogs",  # a boot loader of its own
    "dma",  # a mail server without a daemon: root has a mailbox
    "ansible-core", "python3-apt",  # the role in contrib is run as it is meant to be
)
# What others have for our job; in an image of its own, for few boots want it.
PEERS = ("driverctl", "libvirt-daemon-driver-nodedev", "libvirt-daemon-driver-qemu", "libvirt-clients")
OPTIONS = (
    "--mode=root", "--variant=minbase",
    '--aptopt=APT::Install-Recommends "false"',
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
)
# Run in the fresh tree; each line with its reason.
FINISH = (
    # firmware for machines that the lab never makes: 50 MB
    "rm -rf usr/share/qemu/edk2-* usr/share/qemu/*.dtb boot/initrd*",
    # the image was made without man pages; our package's are to be there
    "rm -f etc/dpkg/dpkg.cfg.d/99mmdebstrap etc/apt/apt.conf.d/99mmdebstrap",
    # apt is to work with what lies in the guest only
    "rm -rf etc/apt/sources.list etc/apt/sources.list.d/*",
    # without it systemd asks its questions of a first boot
    "echo 6c61626c61626c61626c61626c61626c > etc/machine-id",
    "echo pve > etc/hostname",
    "printf '127.0.0.1 localhost\\n127.0.1.1 pve\\n' > etc/hosts",
    # nobody logs in on a console, and nothing happens at night
    "ln -sf /dev/null etc/systemd/system/getty@tty1.service",
    "ln -sf /dev/null etc/systemd/system/serial-getty@ttyS0.service",
    "for t in apt-daily apt-daily-upgrade dpkg-db-backup e2scrub_all fstrim;"
    " do ln -sf /dev/null etc/systemd/system/$t.timer; done",
    # networks and containers that nobody asks for; each costs seconds at boot
    "for u in lxc lxc-net lxc-monitord dnsmasq podman podman-restart"
    " podman-auto-update podman-clean-transient;"
    " do ln -sf /dev/null etc/systemd/system/$u.service; done",
    "ln -sf /dev/null etc/systemd/system/podman-auto-update.timer",
    # the journal is evidence: no line of it is to be dropped
    "mkdir -p etc/systemd/journald.conf.d",
    "printf '[Journal]\\nRateLimitBurst=0\\nStorage=volatile\\n'"
    " > etc/systemd/journald.conf.d/lab.conf",
    "mkdir -p lab",
)
BUILD_TIMEOUT = 1800.0


# libvirt's daemon comes when its socket is used; at boot it costs seconds.
PEERS_FINISH = (
    "rm -f etc/systemd/system/*.wants/libvirtd.service etc/systemd/system/*.wants/libvirt-guests.service",
)


def _build(
    packages: tuple[str, ...], steps: tuple[str, ...], folder: Path, log: IO[bytes]
) -> None:
    root = folder / "root"
    command = [
        "mmdebstrap", *OPTIONS, *mirror.bootstrap_options(log),
        "--include=" + ",".join(packages),
        "trixie", str(root), mirror.source_line("trixie"),
    ]
    sandbox.run(sandbox.isolated(command), log, BUILD_TIMEOUT)
    finish = ["sh", "-e", "-c", f"cd {shlex.quote(str(root))}\n" + "\n".join(steps)]
    sandbox.run(sandbox.isolated(finish), log, 60.0)
    pack(folder, log, "userland.erofs")
    sandbox.run(sandbox.tied(["rm", "-rf", str(root)]), log, 120.0)


def pack(folder: Path, log: IO[bytes], name: str) -> None:
    """Pack the tree folder/root as the erofs image folder/NAME."""
    words = ["mkfs.erofs", "-T0", "--quiet", f"/build/{name}", "/build/root"]
    sandbox.run(toolbox.command(words, {"/build": folder}), log, 300.0)


def artefact(peers: bool) -> cache.Artefact:
    """The image, with the peers in it or without."""
    packages = PACKAGES + PEERS if peers else PACKAGES
    steps = FINISH + PEERS_FINISH if peers else FINISH
    return cache.Artefact(
        name="userland-peers" if peers else "userland",
        inputs=(*packages, *OPTIONS, *steps),
        build=functools.partial(_build, packages, steps))


def image(peers: bool) -> Path:
    """The erofs image of the guest's root."""
    return cache.obtain(artefact(peers)) / "userland.erofs"
