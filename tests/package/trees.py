"""Trees of Debian 12 and 13 in which the package is looked at, so that the machine's own release does not matter.

They are built once by the lab's own means (`tests/lab/lab/cache.py`) and never changed: what runs in one, runs on an
overlay that goes with it.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))
from lab import cache, mirror, sandbox  # noqa: E402

# For lintian, for Debian's own way of testing an installed package, and for apt with a repository of ours.
PACKAGES = ("lintian", "kmod", "systemd", "pciutils", "gpgv", "gpg", "apt-utils", "python3", "dpkg-dev")
BUILD_TIMEOUT = 1800.0


def _artefact(suite: str) -> cache.Artefact:
    def build(folder: Path, log: IO[bytes]) -> None:
        command = ["mmdebstrap", "--mode=root", "--variant=minbase", '--aptopt=APT::Install-Recommends "false"',
                   *mirror.bootstrap_options(log), "--include=" + ",".join(PACKAGES), suite, str(folder / "root"),
                   mirror.source_line(suite)]
        sandbox.run(sandbox.isolated(command), log, BUILD_TIMEOUT)

    return cache.Artefact(name=f"package-{suite}", inputs=(suite, *PACKAGES), build=build)


def root(suite: str) -> Path:
    """The tree of a release."""
    cache.root().mkdir(parents=True, exist_ok=True)
    return cache.obtain(_artefact(suite)) / "root"


def tarball(suite: str) -> Path:
    """A small tree of a release, packed, as piuparts wants it. What we depend on is in it: of what systemd leaves when it is
    purged piuparts would speak as well."""
    needed = "systemd,kmod,pciutils"

    def build(folder: Path, log: IO[bytes]) -> None:
        command = ["mmdebstrap", "--mode=root", "--variant=minbase", *mirror.bootstrap_options(log), f"--include={needed}",
                   suite, str(folder / "base.tar.gz"), mirror.source_line(suite)]
        sandbox.run(sandbox.isolated(command), log, BUILD_TIMEOUT)

    return cache.obtain(cache.Artefact(name=f"package-base-{suite}", inputs=(suite, needed), build=build)) / "base.tar.gz"


def mounted(tree: Path, changes: Path) -> str:
    """Lines of sh that mount `tree` at `changes`/merged, with what is changed in it beside that alone."""
    upper, work, merged = (changes / name for name in ("upper", "work", "merged"))
    for folder in (upper, work, merged):
        folder.mkdir(exist_ok=True)
    options = f"lowerdir={tree},upperdir={upper},workdir={work}"
    return f"set -e\nmount -t overlay overlay -o {shlex.quote(options)} {shlex.quote(str(merged))}"


def on_overlay(
    tree: Path, changes: Path, command: Sequence[str], files: Mapping[str, Path] | None = None
) -> list[str]:
    """The command line that runs `command` in `tree`, with what it changes in the folder `changes` alone.

    `files` are copied into the tree's root folder first, by the names given. The network is the machine's, its
    processes and its /run are not.
    """
    merged = changes / "merged"
    place = shlex.quote(str(merged))
    lines = [
        mounted(tree, changes),
        *(f"cp -r {shlex.quote(str(path))} {place}/{shlex.quote(name)}" for name, path in (files or {}).items()),
        f"mount --rbind /dev {place}/dev",
        f"mount -t proc proc {place}/proc",
        f"mount -t tmpfs tmp {place}/tmp",
        f"mount -t tmpfs run {place}/run",
        shlex.join(["exec", "chroot", str(merged), "/usr/bin/env", "-i", "DEBIAN_FRONTEND=noninteractive",
                    *(f"{key}={value}" for key, value in sandbox.CHROOT_ENV.items()), *command]),
    ]
    return sandbox.isolated(["/bin/sh", "-c", "\n".join(lines)])
