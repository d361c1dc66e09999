"""The driver's modules for a kernel, as a layer of the guest's root.

The layer holds lib/modules/VERSION/updates and the index files that depmod
wrote with the new modules in view; over the kernel's own layer they make one
complete tree. The stub's source is tests/lab/stub; the real one is the source
of NVIDIA's open modules as Debian packages it.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import IO

from . import cache, kernels, mirror, sandbox, toolbox, userland

STUB = Path(__file__).parent.parent / "stub"
REAL_PACKAGE, REAL_COMPONENTS = "nvidia-open-kernel-dkms", "main contrib"
# Role of a kernel -> the suite whose package is meant for such a kernel; the
# oldest has the default one's, so that it is the same driver.
REAL_SUITES = {"oldest": "trixie", "default": "trixie", "newest": "trixie-backports"}
# Debian's kernels from 6.12.93 on carry the fourth argument of
# pci_resize_resource (a mask of BARs to leave alone) that 6.19 brought; the
# module's source knows only three.
REAL_EDIT = r"s/\(pci_resize_resource([^;]*[a-z_]*size\))/\1, 0)/"
FOUR_ARGUMENTS = re.compile(r"pci_resize_resource\([^)]*int exclude_bars\)")
BUILD_MODULES = Path(__file__).parent / "build-modules.sh"
COMPILER = "gcc-14"  # the headers of bookworm name one that the toolbox lacks
RECIPE = "1"  # counts changes of _build that the inputs do not show
TIMEOUTS = {"stub": 300.0, "real": 1800.0}
# What did not build in this run, and why: it would not build for the next boot.
_not_built: dict[str, str] = {}


def layer(driver: str, kernel: str) -> Path | None:
    """The erofs image of a driver for a kernel; None where there is none.

    Raises NoSuchBoot where it does not build: it may for another kernel.
    """
    if driver == "none":
        return None
    wanted = artefact(driver, kernel)
    if wanted.key not in _not_built:
        try:
            return cache.obtain(wanted) / "driver.erofs"
        except cache.LabError as error:
            source = (f", {REAL_PACKAGE} of {REAL_SUITES[kernel]},"
                      if driver == "real" else "")
            _not_built[wanted.key] = (
                f"no modules of the driver {driver}{source} for the {kernel} kernel, "
                f"{kernels.obtain(kernel).version}\n{error}")
    raise cache.NoSuchBoot(_not_built[wanted.key])


def artefact(driver: str, kernel: str) -> cache.Artefact:
    """The artefact of one driver for one kernel."""
    source = (
        (cache.files_key(STUB),) if driver == "stub"
        else (REAL_SUITES[kernel], REAL_COMPONENTS, REAL_PACKAGE, REAL_EDIT)
    )

    def build(folder: Path, log: IO[bytes]) -> None:
        _build(driver, kernel, folder, log)

    return cache.Artefact(
        name=f"driver-{driver}-{kernel}",
        inputs=(RECIPE, COMPILER, BUILD_MODULES.read_text(),
                kernels.artefact(kernel).key, *source),
        build=build,
    )


def _build(driver: str, name: str, folder: Path, log: IO[bytes]) -> None:
    kernel = kernels.obtain(name)
    source = folder / "source"
    if driver == "stub":
        shutil.copytree(STUB, source)
    else:
        _fetch_real(REAL_SUITES[name], folder, source, kernel, log)
    # All of the kernel's modules must be in view of depmod; links cost nothing.
    tree = folder / "root/usr/lib/modules" / kernel.version
    shutil.copytree(
        kernel.folder / "root/usr/lib/modules" / kernel.version, tree,
        copy_function=os.link,
    )
    for index in tree.glob("modules.*"):
        # depmod rewrites these: never through a link into the kernel's tree.
        content = index.read_bytes()
        index.unlink()
        index.write_bytes(content)
    shutil.copy(BUILD_MODULES, folder / "build-modules")
    headers = kernel.folder / "root"
    binds = {"/build": folder, "/usr/src": headers / "usr/src"}
    for tools in headers.glob("usr/lib/linux-kbuild-*"):
        binds[f"/usr/lib/{tools.name}"] = tools
        (toolbox.root() / "usr/lib" / tools.name).mkdir(exist_ok=True)
    words = ["sh", "/build/build-modules", kernel.version, COMPILER]
    sandbox.run(toolbox.command(words, binds), log, TIMEOUTS[driver])
    shutil.rmtree(tree / "kernel")
    userland.pack(folder, log, "driver.erofs")
    shutil.rmtree(folder / "root")
    shutil.rmtree(source)


def _pci_header(kernel: kernels.Kernel) -> str:
    """linux/pci.h of a kernel."""
    headers = (kernel.folder / "root/usr/src").glob("*-common")
    return (next(headers) / "include/linux/pci.h").read_text()


def _fetch_real(
    name: str, folder: Path, source: Path, kernel: kernels.Kernel, log: IO[bytes]
) -> None:
    suite = mirror.Suite(folder / "apt", name, log, REAL_COMPONENTS)
    suite.update()
    suite.unpack([REAL_PACKAGE], folder / "package")
    shutil.rmtree(folder / "apt")
    trees = list((folder / "package/usr/src").glob("nvidia*"))
    if len(trees) != 1:
        raise cache.LabError(f"{REAL_PACKAGE} holds {trees}, not one tree")
    shutil.move(trees[0], source)
    shutil.rmtree(folder / "package")
    if not FOUR_ARGUMENTS.search(_pci_header(kernel)):
        return
    for file in source.rglob("nv-pci.c"):
        edit = ["sed", "-i", REAL_EDIT, str(file)]
        sandbox.run(sandbox.tied(edit), log, 10.0)
