"""Debian's kernels: image, modules and headers, unpacked, not installed.

A kernel is named by its role and is what its suite has. Debian is asked for
that once a day, or when it is not in the cache: the packages' versions are
part of the artefact's key, so that a new kernel is a new artefact. Without an
answer the last one counts; a run keeps the kernels that it began with.

    version       its full version, as uname -r says it in the guest
    config        what it was built with
    vmlinuz       what QEMU boots
    root/usr/src, root/usr/lib/linux-kbuild-*   headers to compile against
    modules.erofs the module tree, a layer of the guest's root; with it
                  boot/vmlinuz and boot/initrd.inner for the VM inside
    initrd        brings the guest's root together (initrd.sh)
"""

from __future__ import annotations

import functools
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from . import cache, mirror, sandbox, toolbox, userland
from .progress import step

# Role of a kernel in the lab -> the Debian suite whose kernel it is.
SUITES = {"oldest": "bookworm", "default": "trixie", "newest": "trixie-backports"}
DEFAULT = "default"

META_PACKAGES = ("linux-image-amd64", "linux-headers-amd64")
# Dependencies of those that neither boot nor compile anything here.
NOT_WANTED = re.compile(r"linux-(compiler|libc|initramfs|doc|perf)")
# Hardware that no lab can have: two thirds of the module tree.
LEFT_OUT = (
    "drivers/gpu/drm/amd", "drivers/gpu/drm/i915", "drivers/gpu/drm/xe",
    "drivers/gpu/drm/radeon", "drivers/media", "drivers/infiniband",
    "drivers/net/wireless", "drivers/net/ethernet", "drivers/scsi",
    "drivers/iio", "sound/soc", "drivers/staging",
)
# What the first steps of a boot need; in the initrd with their dependencies.
INITRD_MODULES = (
    "virtio_pci", "virtio_blk", "virtio_iommu", "erofs", "overlay",
    "9pnet_virtio", "9p", "ext4",
)
# Where nobody answers, a warm run is to go on soon.
ANSWER_TIMEOUT = 60.0
HERE = Path(__file__).parent
INIT = HERE / "initrd.sh"
MAKE_INITRDS = HERE / "make-initrds.sh"
RECIPE = "2"  # counts changes of _build that the inputs do not show


@dataclass(frozen=True)
class Kernel:
    """A kernel that is ready to be booted and compiled against."""

    folder: Path

    @property
    def version(self) -> str:
        """As `uname -r` prints it."""
        return (self.folder / "version").read_text().strip()

    def has(self, option: str) -> bool:
        """Was it built with that CONFIG_ option, into the image or as a module?"""
        return re.search(rf"^{option}=[ym]$", (self.folder / "config").read_text(),
                         re.MULTILINE) is not None


def obtain(role: str) -> Kernel:
    """The kernel with that role, from the cache or built now."""
    return Kernel(cache.obtain(artefact(role)))


@functools.cache
def artefact(role: str) -> cache.Artefact:
    """The artefact of the kernel that has this role in this run."""

    def question(folder: Path, log: IO[bytes]) -> str:
        with step(f"asking Debian for the {role} kernel"):
            suite = mirror.Suite(folder / "apt", SUITES[role], log)
            suite.update(ANSWER_TIMEOUT)
            packages = sorted(_packages(suite))
            if not packages:
                raise cache.LabError(f"{SUITES[role]} has no {META_PACKAGES[0]}")
            return "".join(f"{one}={suite.version(one)}\n" for one in packages)

    def in_cache(answer: str) -> bool:
        return _artefact(role, answer).path.is_dir()

    return _artefact(role, cache.ask(f"packages-{role}", question, in_cache))


def _artefact(role: str, packages: str) -> cache.Artefact:
    """The artefact of a kernel; `packages` has a line NAME=VERSION for each."""

    def build(folder: Path, log: IO[bytes]) -> None:
        _build(role, packages.split(), folder, log)

    return cache.Artefact(
        name=f"kernel-{role}",
        inputs=(RECIPE, SUITES[role], packages, *LEFT_OUT,
                *INITRD_MODULES, INIT.read_text(), MAKE_INITRDS.read_text(),
                toolbox.ARTEFACT.key),
        build=build,
    )


def _build(role: str, packages: list[str], folder: Path, log: IO[bytes]) -> None:
    root = folder / "root"
    root.mkdir()
    (root / "usr/lib").mkdir(parents=True)
    toolbox.root()
    suite = mirror.Suite(folder / "apt", SUITES[role], log)
    suite.update()
    suite.unpack(packages, root)
    shutil.rmtree(folder / "apt")
    _merge_usr(root)
    version = _version(root)
    (folder / "version").write_text(version + "\n")
    for name in ("vmlinuz", "config"):
        found = next(
            path for path in (root / f"boot/{name}-{version}",
                              root / f"usr/lib/modules/{version}/{name}")
            if path.is_file()
        )
        shutil.copy(found, folder / name)
    for out in LEFT_OUT:
        tree = root / "usr/lib/modules" / version / "kernel" / out
        shutil.rmtree(tree, ignore_errors=True)
    shutil.copy(INIT, folder / "init")
    shutil.copy(MAKE_INITRDS, folder / "make-initrds")
    words = ["sh", "/build/make-initrds", version, *INITRD_MODULES]
    sandbox.run(toolbox.command(words, {"/build": folder}), log, 300.0)
    # Headers stay as files; the rest of the tree is in the images now.
    layer = folder / "layer" / "root"
    (layer / "usr/lib").mkdir(parents=True)
    (layer / "boot").mkdir()
    shutil.move(root / "usr/lib/modules", layer / "usr/lib/modules")
    shutil.copy(folder / "vmlinuz", layer / "boot/vmlinuz")
    shutil.move(folder / "initrd.inner", layer / "boot/initrd.inner")
    userland.pack(folder / "layer", log, "modules.erofs")
    shutil.move(folder / "layer/modules.erofs", folder / "modules.erofs")
    shutil.move(layer / "usr/lib/modules", root / "usr/lib/modules")
    shutil.rmtree(folder / "layer")


def _packages(suite: mirror.Suite) -> list[str]:
    """The meta packages' dependencies within the kernel's own packages."""
    found: list[str] = []
    todo = list(META_PACKAGES)
    while todo:
        package = todo.pop()
        if (
            package in found
            or not package.startswith("linux-")
            or NOT_WANTED.match(package)
            or not suite.exists(package)
        ):
            continue
        found.append(package)
        todo += suite.depends(package)
    return found


def _merge_usr(root: Path) -> None:
    """Move lib into usr/lib: bookworm's packages still have the old places."""
    old, new = root / "lib", root / "usr/lib"
    if old.is_dir() and not old.is_symlink():
        shutil.copytree(old, new, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(old)
    old.unlink(missing_ok=True)
    old.symlink_to("usr/lib")


def _version(root: Path) -> str:
    """The one version whose modules were unpacked."""
    trees = sorted(path.parent.name for path in
                   root.glob("usr/lib/modules/*/kernel"))
    if len(trees) != 1:
        raise cache.LabError(f"the kernel packages hold {trees}, not one tree")
    return trees[0]
