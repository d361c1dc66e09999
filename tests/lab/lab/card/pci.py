"""What every function of the card has: config space, BARs, resets, faults.

Offsets and bits are those of the PCI Express Base Specification, chapter 7,
with the names of Linux' include/uapi/linux/pci_regs.h. What a register
*means* to a driver is in functions.py and hda.py.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

CONFIG_SIZE = 4096

# The header.
PCI_VENDOR_ID = 0x00
PCI_DEVICE_ID = 0x02
PCI_COMMAND = 0x04
PCI_COMMAND_WRITABLE = 0x0547  # I/O, memory, master, parity, SERR#, no INTx
PCI_STATUS = 0x06
PCI_STATUS_CAP_LIST = 0x10
PCI_CLASS_REVISION = 0x08
PCI_CACHE_LINE_SIZE = 0x0C
PCI_HEADER_TYPE = 0x0E
PCI_HEADER_TYPE_MFD = 0x80  # one of several functions
PCI_BASE_ADDRESS_0 = 0x10
PCI_BAR_MEM_64 = 0x4
PCI_BAR_PREFETCH = 0x8
PCI_SUBSYSTEM_VENDOR_ID = 0x2C
PCI_SUBSYSTEM_ID = 0x2E
PCI_CAPABILITY_LIST = 0x34
PCI_INTERRUPT_LINE = 0x3C
PCI_INTERRUPT_PIN = 0x3D

# The capabilities and where we put them.
PM = 0x60  # power management
PM_ID_NEXT = 0x6801
PM_CAP_V3 = 0x0003
PM_CTRL = PM + 4
PM_NO_SOFT_RESET = 0x0008  # D3hot keeps the state: no reset by way of it
PM_STATE = 0x0003
MSI = 0x68
MSI_ID_NEXT = 0x7805
MSI_64BIT = 0x0080
MSI_CTRL_WRITABLE = 0x0071
EXP = 0x78  # PCI Express
EXP_ID_NEXT = 0x0010
EXP_V2_ENDPOINT = 0x0002
EXP_DEVCAP = EXP + 4
EXP_DEVCAP_BASE = 0x8021  # 256 B payload, extended tags, role-based errors
EXP_DEVCAP_FLR = 1 << 28
EXP_DEVCTL = EXP + 8
EXP_DEVCTL_START = 0x2810
EXP_DEVCTL_FLR = 1 << 15
EXP_LNKCAP = EXP + 0xC
EXP_LNKCAP_2G5_X16 = 0x0101
EXP_LNKSTA = EXP + 0x12
EXP_LNKSTA_2G5_X16 = 0x1101


@dataclass(frozen=True)
class Bar:
    """One base address register and the memory behind it."""

    size: int
    file: int
    """A memfd that QEMU maps, or -1 where every access is to reach us."""
    memory: mmap.mmap | None


class Faults:
    """What is wrong with a function right now; see server.COMMANDS."""

    def __init__(self) -> None:
        self.dead = False  # fallen off the bus: every read gives ones
        self.flr_ignored = False  # the reset is accepted and does nothing
        self.slow = 0.0  # seconds that each config access takes


class Function:
    """One PCI function; a kind of function is a subclass."""

    def __init__(
        self, name: str, ids: int, subsystem: int, class_revision: int,
        flr: bool, pin: int,
    ) -> None:
        self.name = name
        self.flr_capable = flr
        self.faults = Faults()
        self.resets = 0
        self.bars: dict[int, Bar] = {}
        # Guest memory: (address, size, mapping, offset in it).
        self.dma: list[tuple[int, int, mmap.mmap, int]] = []
        # (interrupt index, vector) -> eventfd
        self.interrupts: dict[tuple[int, int], int] = {}
        self.lock = threading.RLock()
        self._config = bytearray(CONFIG_SIZE)
        self._writable = bytearray(CONFIG_SIZE)
        self._header(ids, subsystem, class_revision, pin)
        self._capabilities()

    # Config space -------------------------------------------------------

    def _put(self, offset: int, size: int, value: int, writable: int = 0) -> None:
        self._config[offset:offset + size] = value.to_bytes(size, "little")
        self._writable[offset:offset + size] = writable.to_bytes(size, "little")

    def _get(self, offset: int, size: int) -> int:
        return int.from_bytes(self._config[offset:offset + size], "little")

    def _header(
        self, ids: int, subsystem: int, class_revision: int, pin: int
    ) -> None:
        self._put(PCI_VENDOR_ID, 2, ids >> 16)
        self._put(PCI_DEVICE_ID, 2, ids & 0xFFFF)
        self._put(PCI_COMMAND, 2, 0, PCI_COMMAND_WRITABLE)
        self._put(PCI_STATUS, 2, PCI_STATUS_CAP_LIST)
        self._put(PCI_CLASS_REVISION, 4, class_revision)
        self._put(PCI_CACHE_LINE_SIZE, 1, 0, 0xFF)
        self._put(PCI_HEADER_TYPE, 1, PCI_HEADER_TYPE_MFD)
        self._put(PCI_SUBSYSTEM_VENDOR_ID, 2, subsystem >> 16)
        self._put(PCI_SUBSYSTEM_ID, 2, subsystem & 0xFFFF)
        self._put(PCI_CAPABILITY_LIST, 1, PM)
        self._put(PCI_INTERRUPT_LINE, 1, 0, 0xFF)
        self._put(PCI_INTERRUPT_PIN, 1, pin)

    def _capabilities(self) -> None:
        self._put(PM, 2, PM_ID_NEXT)
        self._put(PM + 2, 2, PM_CAP_V3)
        self._put(PM_CTRL, 2, PM_NO_SOFT_RESET, PM_STATE)
        self._put(MSI, 2, MSI_ID_NEXT)
        self._put(MSI + 2, 2, MSI_64BIT, MSI_CTRL_WRITABLE)
        self._put(MSI + 4, 4, 0, 0xFFFFFFFC)  # address, low
        self._put(MSI + 8, 4, 0, 0xFFFFFFFF)  # address, high
        self._put(MSI + 12, 2, 0, 0xFFFF)  # data
        self._put(EXP, 2, EXP_ID_NEXT)
        self._put(EXP + 2, 2, EXP_V2_ENDPOINT)
        self.set_flr_capable(self.flr_capable)
        self._put(EXP_DEVCTL, 2, EXP_DEVCTL_START, 0xFFFF)
        self._put(EXP_LNKCAP, 4, EXP_LNKCAP_2G5_X16)
        self._put(EXP_LNKSTA, 2, EXP_LNKSTA_2G5_X16)

    def set_flr_capable(self, capable: bool) -> None:
        """Announce the function-level reset, or stop announcing it.

        Linux reads it when the function is enumerated.
        """
        flag = EXP_DEVCAP_FLR if capable else 0
        self._put(EXP_DEVCAP, 4, EXP_DEVCAP_BASE | flag)

    def add_bar(self, index: int, size: int, flags: int, mapped: bool) -> None:
        """A memory BAR; `mapped` ones are plain memory, shared with QEMU."""
        mask = ~(size - 1) & ~0xF
        offset = PCI_BASE_ADDRESS_0 + 4 * index
        self._put(offset, 4, flags, mask & 0xFFFFFFFF)
        if flags & PCI_BAR_MEM_64:
            self._put(offset + 4, 4, 0, mask >> 32 & 0xFFFFFFFF)
        file, memory = -1, None
        if mapped:
            file = os.memfd_create(f"{self.name}-bar{index}")
            os.ftruncate(file, size)
            memory = mmap.mmap(file, size)
        self.bars[index] = Bar(size, file, memory)

    def read_config(self, offset: int, size: int) -> bytes:
        """What a config read by the guest gives."""
        if self.faults.slow:
            time.sleep(self.faults.slow)
        if self.faults.dead:
            return b"\xff" * size
        return bytes(self._config[offset:offset + size])

    def write_config(self, offset: int, data: bytes) -> None:
        """A config write by the guest."""
        if self.faults.slow:
            time.sleep(self.faults.slow)
        if self.faults.dead:
            return
        for at, byte in enumerate(data, offset):
            mask = self._writable[at]
            self._config[at] = (self._config[at] & ~mask) | (byte & mask)
        if self._get(EXP_DEVCTL, 2) & EXP_DEVCTL_FLR:
            self._put(EXP_DEVCTL, 2,
                      self._get(EXP_DEVCTL, 2) & ~EXP_DEVCTL_FLR, 0xFFFF)
            if self.flr_capable and not self.faults.flr_ignored:
                self.reset()

    def reset(self) -> None:
        """Function-level reset, or the reset that comes with a new boot."""
        self.resets += 1
        self._put(PCI_COMMAND, 2, 0, PCI_COMMAND_WRITABLE)

    def statistics(self) -> dict[str, int]:
        """Numbers for a test to look at."""
        return {
            "resets": self.resets,
            "command": self._get(PCI_COMMAND, 2),
            "power": self._get(PM_CTRL, 2) & PM_STATE,
        }

    # BARs ---------------------------------------------------------------

    def read_bar(self, index: int, offset: int, size: int) -> bytes:
        """What a read by the guest gives where QEMU asks us."""
        bar = self.bars[index]
        if self.faults.dead:
            return b"\xff" * size
        if bar.memory:
            return bar.memory[offset:offset + size]
        return self.read_register(offset, size).to_bytes(size, "little")

    def write_bar(self, index: int, offset: int, data: bytes) -> None:
        """A write by the guest where QEMU asks us."""
        bar = self.bars[index]
        if self.faults.dead:
            return
        if bar.memory:
            bar.memory[offset:offset + len(data)] = data
        else:
            self.write_register(offset, len(data), int.from_bytes(data, "little"))

    def read_register(self, offset: int, size: int) -> int:
        """A register of an unmapped BAR; for subclasses."""
        return 0

    def write_register(self, offset: int, size: int, value: int) -> None:
        """A register of an unmapped BAR; for subclasses."""

    # Guest memory and interrupts ----------------------------------------

    def read_guest(self, address: int, size: int) -> bytes:
        """DMA from the guest; zeros where it has mapped nothing."""
        for start, length, memory, offset in self.dma:
            if start <= address and address + size <= start + length:
                at = offset + address - start
                return memory[at:at + size]
        return bytes(size)

    def write_guest(self, address: int, data: bytes) -> None:
        """DMA to the guest; lost where it has mapped nothing."""
        for start, length, memory, offset in self.dma:
            if start <= address and address + len(data) <= start + length:
                at = offset + address - start
                memory[at:at + len(data)] = data
                return

    def interrupt(self) -> None:
        """Raise MSI where the guest has set it up, else INTx."""
        for index in (1, 0):
            event = self.interrupts.get((index, 0))
            if event is not None:
                os.write(event, struct.pack("<Q", 1))
                return


Make = Callable[[str, bool], Function]
