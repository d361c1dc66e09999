"""What one boot needs, from the cache or built now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import cache, drivers, kernels, toolbox, userland
from .options import Options


@dataclass(frozen=True)
class Images:
    """Paths of everything that QEMU is given."""

    toolbox: Path
    kernel: Path
    initrd: Path
    version: str
    disks: tuple[Path, ...]
    """Layers of the guest's root, lowest first."""


def obtain(options: Options) -> Images:
    """The images of a boot; only those that it needs are built."""
    cache.sweep()
    tools = toolbox.root()
    base = userland.image()
    kernel = kernels.obtain(options.kernel)
    driver = drivers.layer(options.driver, options.kernel)
    modules = kernel.folder / "modules.erofs"
    return Images(
        toolbox=tools,
        kernel=kernel.folder / "vmlinuz",
        initrd=kernel.folder / "initrd",
        version=kernel.version,
        disks=(base, modules, *((driver,) if driver else ())),
    )
