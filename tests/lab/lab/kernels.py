"""Debian's kernels: image, modules and headers, unpacked, not installed.

Each kernel of the table becomes one artefact:

    version       its full version, as uname -r says it in the guest
    vmlinuz       what QEMU boots
    root/usr/src, root/usr/lib/linux-kbuild-*   headers to compile against
    modules.erofs the module tree, a layer of the guest's root; with it
                  boot/vmlinuz and boot/initrd.inner for the VM inside
    initrd        brings the guest's root together (initrd.sh)
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from . import cache, mirror, sandbox, toolbox, userland

# Name of a kernel in the lab -> the Debian suite whose kernel it is.
SUITES = {"6.12": "trixie", "6.1": "bookworm", "7.2": "trixie-backports"}
DEFAULT = "6.12"

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
HERE = Path(__file__).parent
INIT = HERE / "initrd.sh"
MAKE_INITRDS = HERE / "make-initrds.sh"
RECIPE = "1"  # counts changes of _build that the inputs do not show


@dataclass(frozen=True)
class Kernel:
    """A kernel that is ready to be booted and compiled against."""

    folder: Path

    @property
    def version(self) -> str:
        """As `uname -r` prints it."""
        return (self.folder / "version").read_text().strip()


def obtain(name: str) -> Kernel:
    """The kernel with that name in the table, from the cache or built now."""
    return Kernel(cache.obtain(artefact(name)))


def artefact(name: str) -> cache.Artefact:
    """The artefact of one kernel of the table."""

    def build(folder: Path, log: IO[bytes]) -> None:
        _build(name, folder, log)

    return cache.Artefact(
        name=f"kernel-{name}",
        inputs=(RECIPE, SUITES[name], *META_PACKAGES, *LEFT_OUT,
                *INITRD_MODULES, INIT.read_text(), MAKE_INITRDS.read_text(),
                toolbox.ARTEFACT.key),
        build=build,
    )


def _build(name: str, folder: Path, log: IO[bytes]) -> None:
    root = folder / "root"
    root.mkdir()
    (root / "usr/lib").mkdir(parents=True)
    toolbox.root()
    suite = mirror.Suite(folder / "apt", SUITES[name], log)
    suite.update()
    suite.unpack(_packages(suite), root)
    shutil.rmtree(folder / "apt")
    _merge_usr(root)
    version = _version(root)
    if not version.startswith(name):
        raise cache.LabError(
            f"{SUITES[name]} has kernel {version} now, not {name}\n"
            "Hint: the table is SUITES in tests/lab/lab/kernels.py"
        )
    (folder / "version").write_text(version + "\n")
    image = next(
        path for path in (root / f"boot/vmlinuz-{version}",
                          root / f"usr/lib/modules/{version}/vmlinuz")
        if path.is_file()
    )
    shutil.copy(image, folder / "vmlinuz")
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
