"""The toolbox: a Debian 13 tree with the QEMU and the compiler we need.

vfio-user-pci came with QEMU 10.1; Debian 12 has 7.2 and Debian 13 has 10.0, so
it is taken from trixie-backports and run inside this tree. Modules for the
guest are compiled here too. Nothing in it is ever changed after it was built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from . import cache, mirror, sandbox

PACKAGES = (
    "qemu-system-x86",  # from backports, see PIN
    "gcc", "make", "bc", "libc6-dev", "libelf1t64", "patch",  # modules
    "kmod", "erofs-utils", "e2fsprogs",  # images
    "busybox-static", "cpio", "zstd", "xz-utils", "pciutils",  # initrds
    "zlib1g",
)
PIN = "Package: qemu-* seabios\\nPin: release n=trixie-backports\\nPin-Priority: 900\\n"
# Documentation and translations are read by nobody here.
OPTIONS = (
    "--mode=root", "--variant=apt",
    '--aptopt=APT::Install-Recommends "false"',
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
)
# Folders that runs and builds bind their own over: artefacts and scratch.
MOUNT_POINTS = ("/cache", "/lab", "/build")
BUILD_TIMEOUT = 1800.0


def _build(folder: Path, log: IO[bytes]) -> None:
    root = folder / "root"
    command = [
        "mmdebstrap", *OPTIONS, *mirror.bootstrap_options(log),
        f"--setup-hook=mkdir -p \"$1\"/etc/apt/preferences.d && "
        f"printf '{PIN}' > \"$1\"/etc/apt/preferences.d/lab",
        "--include=" + ",".join(PACKAGES),
        "trixie", str(root),
        mirror.source_line("trixie"), mirror.source_line("trixie-backports"),
    ]
    sandbox.run(sandbox.isolated(command), log, BUILD_TIMEOUT)
    for point in MOUNT_POINTS:
        (root / point.lstrip("/")).mkdir()


ARTEFACT = cache.Artefact(
    name="toolbox",
    inputs=(*PACKAGES, PIN, *OPTIONS, *MOUNT_POINTS),
    build=_build,
)


def root() -> Path:
    """The toolbox's tree."""
    return cache.obtain(ARTEFACT) / "root"


def command(
    words: Sequence[str], binds: Mapping[str, Path] | None = None
) -> list[str]:
    """The command line of a program of the toolbox, to give to sandbox."""
    return sandbox.in_chroot(root(), words, binds)
