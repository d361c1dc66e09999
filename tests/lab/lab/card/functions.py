"""The functions of the pretend card: an RTX 3090, with a USB port if asked.

And one of the board's that QEMU lacks, see southbridge().

The identifiers are those of real cards; the classes decide which drivers look
at them. A new kind of function is a class here and a line in KINDS.
"""

from __future__ import annotations

from . import hda, pci

REVISION = 0xA1
SUBSYSTEM = 0x10DE1467

# BAR0 of the GPU. NVIDIA's open kernel modules read these two to learn the
# architecture, and refuse the card ("not supported by open nvidia.ko") unless
# it is Turing or newer (nv_parser: NV_PMC_BOOT_0, NV_PMC_BOOT_42).
NV_PMC_BOOT_0 = 0x0
NV_PMC_BOOT_0_GA102 = 0xB72000A1
NV_PMC_BOOT_42 = 0xA00
NV_PMC_BOOT_42_GA102 = 0x172A1000

PREFETCHABLE_64 = pci.PCI_BAR_MEM_64 | pci.PCI_BAR_PREFETCH


class Gpu(pci.Function):
    """The display function: memory that a driver may map, nothing behind."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        # Mapped: QEMU then needs no round trip to us for each access, and
        # its IOMMU finds memory to map.
        self.add_bar(0, 16 << 20, 0, mapped=True)
        self.add_bar(1, 256 << 20, PREFETCHABLE_64, mapped=True)
        self.add_bar(3, 32 << 20, PREFETCHABLE_64, mapped=True)
        self._identify()

    def reset(self) -> None:
        super().reset()
        self._identify()

    def _identify(self) -> None:
        memory = self.bars[0].memory
        assert memory
        for offset, value in (
            (NV_PMC_BOOT_0, NV_PMC_BOOT_0_GA102),
            (NV_PMC_BOOT_42, NV_PMC_BOOT_42_GA102),
        ):
            memory[offset:offset + 4] = value.to_bytes(4, "little")

    def set_dead(self, dead: bool) -> None:
        """What is mapped is not asked for: make it read as ones, too."""
        memory = self.bars[0].memory
        assert memory
        for offset in (NV_PMC_BOOT_0, NV_PMC_BOOT_42):
            memory[offset:offset + 4] = b"\xff\xff\xff\xff"
        if not dead:
            self._identify()


class Dumb(pci.Function):
    """A function without working logic: config space and one small BAR."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.add_bar(0, 4 << 10, 0, mapped=True)


# Function number -> (class, device of 10de, PCI class code, resets by FLR)
KINDS: dict[int, tuple[type[pci.Function], int, int, bool]] = {
    0: (Gpu, 0x2204, 0x030000, True),
    1: (hda.Hda, 0x1AEF, 0x040300, False),
    2: (Dumb, 0x1AD8, 0x0C0330, False),
    3: (Dumb, 0x1AD9, 0x0C8000, False),
}


def southbridge() -> pci.Function:
    """What a board with AMD's IOMMU has at 00:14.0, the place of its IOAPIC.

    From 7.3 on Linux remaps no interrupts, and vfio-pci wants them remapped,
    unless an SMBus controller or a bridge to ISA is at the place that the
    firmware gives for the IOAPIC (check_sb_ioapic). QEMU gives this one, and
    has its own bridge at 00:1f.0. It is Intel's SMBus controller, whose driver
    the guest does not load.
    """
    return Dumb("southbridge", 0x80862930, 0, 0x0C0500 << 8, False, 1)


def make(number: int, name: str, ids: int | None = None) -> pci.Function:
    """The function with that number; `ids` (vendor, device) override its own."""
    kind, device, class_code, flr = KINDS[number]
    return kind(
        name, ids or 0x10DE0000 | device, SUBSYSTEM,
        class_code << 8 | REVISION, flr, number + 1,
    )
