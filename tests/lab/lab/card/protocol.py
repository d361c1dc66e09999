"""vfio-user, protocol version 0.1: the conversation with QEMU's client.

Message layouts follow docs/interop/vfio-user.rst of QEMU; structures named
vfio_* are those of Linux' include/uapi/linux/vfio.h. Only what vfio-user-pci
sends is here; anything else is answered with ENOSYS.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import mmap
import os
import socket
import struct
from dataclasses import dataclass

from .pci import CONFIG_SIZE, Function

# struct vfio_user_header: id, command, size, flags, error.
HEADER = struct.Struct("<HHIII")
FLAG_TYPE = 0xF
FLAG_REPLY = 0x1
FLAG_NO_REPLY = 0x10
FLAG_ERROR = 0x20

# Commands.
VERSION = 1
DMA_MAP = 2
DMA_UNMAP = 3
DEVICE_GET_INFO = 4
DEVICE_GET_REGION_INFO = 5
DEVICE_GET_IRQ_INFO = 7
DEVICE_SET_IRQS = 8
REGION_READ = 9
REGION_WRITE = 10
DEVICE_RESET = 13

# vfio_region_info: six BARs, the ROM, then config space, then VGA.
CONFIG_REGION = 7
REGIONS = 9
REGION_READ_WRITE = 0x3
REGION_MMAP = 0x4
# vfio_irq_info: INTx, MSI, MSI-X, error, request.
IRQ_COUNTS = (1, 8, 0, 1, 1)
IRQ_EVENTFD = 1 << 0
IRQ_MASKABLE_AUTOMASKED = 0x6
IRQ_NORESIZE = 1 << 3
# vfio_irq_set.flags
SET_DATA_NONE = 1 << 0
SET_DATA_EVENTFD = 1 << 2
SET_ACTION_TRIGGER = 1 << 5
# vfio_device_info.flags: resettable, PCI.
DEVICE_FLAGS = 0x3

CAPABILITIES = {
    "capabilities": {
        "max_msg_fds": 8, "max_data_xfer_size": 1 << 20, "pgsizes": 4096,
    }
}
MAX_FDS = 8


@dataclass
class Reply:
    """What goes back for one message."""

    body: bytes = b""
    files: tuple[int, ...] = ()


def converse(function: Function, line: socket.socket) -> None:
    """Answer one client until it hangs up (EOFError)."""
    function.dma.clear()
    function.interrupts.clear()
    while True:
        ident, command, flags, body, files = _receive(line)
        if flags & FLAG_TYPE:
            continue  # a reply; we never ask
        error, reply = 0, Reply()
        try:
            with function.lock:
                reply = _answer(function, command, body, files)
        except OSError as failed:
            error = failed.errno or errno.EINVAL
        if flags & FLAG_NO_REPLY:
            continue
        header = HEADER.pack(
            ident, command, HEADER.size + len(reply.body),
            FLAG_REPLY | (FLAG_ERROR if error else 0), error,
        )
        if reply.files:
            rights = array.array("i", reply.files)
            line.sendmsg([header + reply.body],
                         [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        else:
            line.sendall(header + reply.body)


def _receive(
    line: socket.socket,
) -> tuple[int, int, int, bytes, list[int]]:
    head, ancillary, _, _ = line.recvmsg(
        HEADER.size, socket.CMSG_SPACE(MAX_FDS * 4)
    )
    files: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            rights = array.array("i")
            rights.frombytes(data[:len(data) - len(data) % 4])
            files += rights
    head += _exactly(line, HEADER.size - len(head), bool(head))
    ident, command, size, flags, _ = HEADER.unpack(head)
    return ident, command, flags, _exactly(line, size - HEADER.size), files


def _exactly(line: socket.socket, size: int, begun: bool = True) -> bytes:
    if not begun:
        raise EOFError
    data = b""
    while len(data) < size:
        part = line.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _answer(
    function: Function, command: int, body: bytes, files: list[int]
) -> Reply:
    if command == VERSION:
        # Major 0 and the lower minor; then capabilities as a C string of JSON.
        _, minor = struct.unpack_from("<HH", body)
        text = json.dumps(CAPABILITIES).encode() + b"\0"
        return Reply(struct.pack("<HH", 0, min(minor, 1)) + text)
    if command == DMA_MAP:
        return _map(function, body, files)
    if command == DMA_UNMAP:
        _, _, address, size = struct.unpack_from("<IIQQ", body)
        function.dma = [
            one for one in function.dma
            if not (address <= one[0] and one[0] + one[1] <= address + size)
        ]
        return Reply(body[:24])
    if command == DEVICE_GET_INFO:
        return Reply(struct.pack(
            "<IIII", 16, DEVICE_FLAGS, REGIONS, len(IRQ_COUNTS)))
    if command == DEVICE_GET_REGION_INFO:
        return _region_info(function, body)
    if command == DEVICE_GET_IRQ_INFO:
        (index,) = struct.unpack_from("<I", body, 8)
        count = IRQ_COUNTS[index] if index < len(IRQ_COUNTS) else 0
        kind = IRQ_MASKABLE_AUTOMASKED if index == 0 else IRQ_NORESIZE
        return Reply(struct.pack("<IIII", 16, IRQ_EVENTFD | kind, index, count))
    if command == DEVICE_SET_IRQS:
        _set_interrupts(function, body, files)
        return Reply()
    if command in (REGION_READ, REGION_WRITE):
        return _access(function, command, body)
    if command == DEVICE_RESET:
        function.reset()
        return Reply()
    raise OSError(errno.ENOSYS, f"command {command}")


def _map(function: Function, body: bytes, files: list[int]) -> Reply:
    _, flags, offset, address, size = struct.unpack_from("<IIQQQ", body)
    if files:
        protection = (mmap.PROT_READ if flags & 1 else 0) | (
            mmap.PROT_WRITE if flags & 2 else 0)
        # What is not memory (another device's BAR) may not be mappable.
        with contextlib.suppress(OSError, ValueError):
            memory = mmap.mmap(
                files[0], offset + size, mmap.MAP_SHARED, protection)
            function.dma.append((address, size, memory, offset))
        for file in files:
            os.close(file)
    return Reply()


def _region_info(function: Function, body: bytes) -> Reply:
    (index,) = struct.unpack_from("<I", body, 8)
    size, flags, files = 0, 0, ()
    if index == CONFIG_REGION:
        size, flags = CONFIG_SIZE, REGION_READ_WRITE
    elif index in function.bars:
        bar = function.bars[index]
        size, flags = bar.size, REGION_READ_WRITE
        if bar.memory:
            flags |= REGION_MMAP
            files = (bar.file,)
    return Reply(struct.pack("<IIIIQQ", 32, flags, index, 0, size, 0), files)


def _set_interrupts(function: Function, body: bytes, files: list[int]) -> None:
    _, flags, index, start, count = struct.unpack_from("<IIIII", body)
    if flags & SET_DATA_EVENTFD and flags & SET_ACTION_TRIGGER:
        for vector, file in enumerate(files, start):
            _forget(function, index, vector)
            function.interrupts[index, vector] = file
    elif flags & SET_DATA_NONE and count == 0:
        for known, vector in list(function.interrupts):
            if known == index:
                _forget(function, known, vector)


def _forget(function: Function, index: int, vector: int) -> None:
    file = function.interrupts.pop((index, vector), None)
    if file is not None:
        os.close(file)


def _access(function: Function, command: int, body: bytes) -> Reply:
    offset, region, count = struct.unpack_from("<QII", body)
    if command == REGION_READ:
        if region == CONFIG_REGION:
            data = function.read_config(offset, count)
        else:
            data = function.read_bar(region, offset, count)
        return Reply(body[:16] + data)
    data = body[16:16 + count]
    if region == CONFIG_REGION:
        function.write_config(offset, data)
    else:
        function.write_bar(region, offset, data)
    return Reply(body[:16])
