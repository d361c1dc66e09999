"""The audio function: an Intel HD Audio controller with one small codec.

Just enough for snd_hda_intel to bind, find a codec and make a sound card.
Register names and offsets: High Definition Audio Specification 1.0a, section
3.3; verbs and parameters: section 7.3. No sound is ever played.
"""

from __future__ import annotations

import struct
import time

from . import pci

# Controller registers.
GCAP = 0x00  # one output stream, 64-bit addresses
GCAP_VALUE = 0x4401
VMIN_VMAJ = 0x02
VERSION_1_0 = 0x0100
OUTPAY = 0x04
INPAY = 0x06
GCTL = 0x08
GCTL_CRST = 1 << 0  # out of reset
GCTL_WRITABLE = 0x101
STATESTS = 0x0E  # which codecs are there; write ones to clear
INTCTL = 0x20
INTCTL_GIE = 1 << 31
INTSTS = 0x24
INTSTS_CONTROLLER = 0xC0000000
WALL_CLOCK = 0x30
WALL_CLOCK_HZ = 24e6
CORB_LOW, CORB_HIGH = 0x40, 0x44  # commands from the driver
CORB_WRITE = 0x48
CORB_READ = 0x4A
CORB_CONTROL = 0x4C
CORB_RUN = 1 << 1
CORB_STATUS = 0x4D
CORB_SIZE = 0x4E
RIRB_LOW, RIRB_HIGH = 0x50, 0x54  # responses to it
RIRB_WRITE = 0x58
RIRB_CONTROL = 0x5C
RIRB_INTERRUPT = 1 << 0
RIRB_STATUS = 0x5D
RIRB_SIZE = 0x5E
RING_256_ENTRIES = 0x42
RING_RESET = 0x8000
IMMEDIATE_COMMAND = 0x60
IMMEDIATE_RESPONSE = 0x64
IMMEDIATE_STATUS = 0x68
IMMEDIATE_BUSY = 1 << 0
IMMEDIATE_VALID = 1 << 1
SIZE = 16 << 10

# Verbs (12 bits) that have an answer.
GET_PARAMETER = 0xF00
GET_CONNECTIONS = 0xF02
GET_PIN_DEFAULT = 0xF1C
GET_SUBSYSTEM = 0xF20

CODEC_ID = 0x10DE0083
# The codec's tree: root 0, function group 1, converter 2, pin 3.
PARAMETERS = {
    (0, 0x00): CODEC_ID,
    (0, 0x02): 0x00100100,  # revision
    (0, 0x04): 0x00010001,  # one node from 1
    (1, 0x04): 0x00020002,  # two nodes from 2
    (1, 0x05): 0x00000001,  # an audio function group
    (1, 0x0A): 0x00020060,  # rates and sizes
    (1, 0x0B): 0x00000001,  # PCM
    (1, 0x0F): 0x00000009,  # power states
    (2, 0x09): 0x00000211,  # an audio output, digital
    (2, 0x0A): 0x00020060,
    (2, 0x0B): 0x00000005,
    (2, 0x0F): 0x00000009,
    (3, 0x09): 0x00400381,  # a pin, digital, with a connection list
    (3, 0x0C): 0x00000094,  # HDMI, presence detect
    (3, 0x0E): 0x00000001,  # one connection
    (3, 0x0F): 0x00000009,
}
PIN_DEFAULT = 0x185600F0  # a digital display


def codec(verb: int) -> int:
    """The codec's answer to a verb as it stands in the CORB."""
    if verb >> 28:
        return 0  # there is only the codec at address 0
    node, number, payload = verb >> 20 & 0x7F, verb >> 8 & 0xFFF, verb & 0xFF
    if number == GET_PARAMETER:
        return PARAMETERS.get((node, payload), 0)
    if number == GET_CONNECTIONS and node == 3:
        return 2
    if number == GET_PIN_DEFAULT and node == 3:
        return PIN_DEFAULT
    if number == GET_SUBSYSTEM:
        return CODEC_ID
    return 0


class Hda(pci.Function):
    """The controller; its registers are a plain array with exceptions."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.add_bar(0, SIZE, 0, mapped=False)
        self._registers = bytearray(SIZE)
        self._clear()

    def reset(self) -> None:
        super().reset()
        self._clear()

    def _clear(self) -> None:
        self._registers = bytearray(SIZE)
        for offset, size, value in (
            (GCAP, 2, GCAP_VALUE), (VMIN_VMAJ, 2, VERSION_1_0),
            (OUTPAY, 2, 0x3C), (INPAY, 2, 0x1D),
            (CORB_SIZE, 1, RING_256_ENTRIES), (RIRB_SIZE, 1, RING_256_ENTRIES),
        ):
            self._set(offset, size, value)

    def _at(self, offset: int, size: int) -> int:
        return int.from_bytes(self._registers[offset:offset + size], "little")

    def _set(self, offset: int, size: int, value: int) -> None:
        value &= (1 << 8 * size) - 1
        self._registers[offset:offset + size] = value.to_bytes(size, "little")

    def read_register(self, offset: int, size: int) -> int:
        if WALL_CLOCK <= offset < WALL_CLOCK + 4:
            self._set(WALL_CLOCK, 4, int(time.monotonic() * WALL_CLOCK_HZ))
        return self._at(offset, size)

    def write_register(self, offset: int, size: int, value: int) -> None:
        if offset < GCTL or offset in (INTSTS, CORB_SIZE, RIRB_SIZE):
            return  # read-only here
        if offset == GCTL:
            self._global_control(value)
        elif offset == STATESTS:
            self._set(STATESTS, 2, self._at(STATESTS, 2) & ~value)
        elif offset in (CORB_STATUS, RIRB_STATUS):
            self._set(offset, 1, self._at(offset, 1) & ~value)
            self._set(INTSTS, 4, 0)
        elif offset == CORB_READ:
            self._set(CORB_READ, 2, value & RING_RESET)
        elif offset == RIRB_WRITE:
            if value & RING_RESET:
                self._set(RIRB_WRITE, 2, 0)
        elif offset == IMMEDIATE_STATUS:
            if value & IMMEDIATE_BUSY:
                answer = codec(self._at(IMMEDIATE_COMMAND, 4))
                self._set(IMMEDIATE_RESPONSE, 4, answer)
                self._set(IMMEDIATE_STATUS, 2, IMMEDIATE_VALID)
        else:
            self._set(offset, size, value)
            if offset in (CORB_WRITE, CORB_CONTROL):
                self._serve_corb()

    def _global_control(self, value: int) -> None:
        was, now = self._at(GCTL, 4) & GCTL_CRST, value & GCTL_CRST
        if was and not now:
            self._clear()
        self._set(GCTL, 4, value & GCTL_WRITABLE)
        if now and not was:
            self._set(STATESTS, 2, 1)  # codec 0 is there

    def _serve_corb(self) -> None:
        """Answer what the driver has put into the command ring."""
        if not self._at(CORB_CONTROL, 1) & CORB_RUN:
            return
        commands = self._at(CORB_LOW, 8)
        responses = self._at(RIRB_LOW, 8)
        read, write = self._at(CORB_READ, 2) & 0xFF, self._at(CORB_WRITE, 2) & 0xFF
        answered = self._at(RIRB_WRITE, 2) & 0xFF
        if read == write:
            return
        while read != write:
            read = (read + 1) & 0xFF
            (verb,) = struct.unpack("<I", self.read_guest(commands + 4 * read, 4))
            answered = (answered + 1) & 0xFF
            entry = struct.pack("<II", codec(verb), verb >> 28)
            self.write_guest(responses + 8 * answered, entry)
        self._set(CORB_READ, 2, read)
        self._set(RIRB_WRITE, 2, answered)
        self._set(RIRB_STATUS, 1, self._at(RIRB_STATUS, 1) | 1)
        if self._at(RIRB_CONTROL, 1) & RIRB_INTERRUPT:
            self._set(INTSTS, 4, INTSTS_CONTROLLER)
            if self._at(INTCTL, 4) & INTCTL_GIE:
                self.interrupt()
