"""What one boot needs, from the cache or built now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import cache, drivers, kernels, toolbox, userland
from .options import Options

# IOMMU -> what a kernel has been built with if it has a driver for it.
IOMMU_DRIVERS = {"intel": "CONFIG_INTEL_IOMMU", "amd": "CONFIG_AMD_IOMMU",
                 "virtio": "CONFIG_VIRTIO_IOMMU"}


@dataclass(frozen=True)
class Images:
    """Paths of everything that QEMU is given."""

    toolbox: Path
    kernel: Path
    initrd: Path
    version: str
    """Of the kernel, as `uname -r` says it in the guest."""
    disks: tuple[Path, ...]
    """Layers of the guest's root, lowest first."""


def obtain(options: Options) -> Images:
    """The images of a boot; only those that it needs are built.

    Raises NoSuchBoot where the kernel cannot do what the boot asks for.
    """
    cache.sweep()
    tools = toolbox.root()
    base = userland.image(options.peers)
    kernel = kernels.obtain(options.kernel)
    wanted = IOMMU_DRIVERS.get(options.iommu)
    if wanted and not kernel.has(wanted):
        raise cache.NoSuchBoot(
            f"the {options.kernel} kernel, {kernel.version}, has no driver for the IOMMU "
            f"{options.iommu} ({wanted} is not set)\n"
            "Hint: another --kernel or another --iommu")
    driver = drivers.layer(options.driver, options.kernel)
    modules = kernel.folder / "modules.erofs"
    return Images(
        toolbox=tools,
        kernel=kernel.folder / "vmlinuz",
        initrd=kernel.folder / "initrd",
        version=kernel.version,
        disks=(base, modules, *((driver,) if driver else ())),
    )
