"""The line between the lab and the agent in the guest.

Each message is one line of JSON; where it says {"size": N}, N bytes follow.
The other end is tests/lab/guest/usr/local/lib/lab/agent.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class GuestDied(Exception):
    """The virtual machine ended while we needed it."""


class TooLate(Exception):
    """Nothing came in time."""


class GuestFrozen(Exception):
    """The virtual machine is there, but its agent gives no sign of life."""


# A busy guest takes a second to answer, and one whose card takes 70 s for a
# reset answers meanwhile: two minutes without a word are no delay.
PING_EVERY = 20.0
PINGS = 5


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """A name of a socket for bind and connect, which take 107 bytes: the cache may lie deeper."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


@dataclass
class Channel:
    """Our end of the line; QEMU connects to it."""

    listener: socket.socket
    line: socket.socket | None = None
    _pending: bytearray = field(default_factory=bytearray)
    _unanswered: int = 0

    @classmethod
    def listen(cls, path: Path) -> Channel:
        """Make the socket that QEMU is to connect to."""
        listener = socket.socket(socket.AF_UNIX)
        with address(path) as short:
            listener.bind(short)
        listener.listen(1)
        return cls(listener)

    def accept(self, timeout: float) -> None:
        """Wait for QEMU."""
        self.listener.settimeout(timeout)
        try:
            self.line, _ = self.listener.accept()
        except TimeoutError:
            raise TooLate from None

    def send(self, message: dict[str, Any], data: bytes = b"") -> None:
        """Send one message to the agent."""
        assert self.line
        if data:
            message["size"] = len(data)
        try:
            self.line.sendall(json.dumps(message).encode() + b"\n" + data)
        except OSError as error:
            raise GuestDied from error

    def receive_from_living(
        self, deadline: float, every: float = PING_EVERY, pings: int = PINGS
    ) -> tuple[dict[str, Any], bytes]:
        """The next message, while the agent is asked whether it lives.

        Raises TooLate after `deadline`, and GuestFrozen when so many pings,
        sent whenever there was silence for so long, had nothing after them.
        Pings are counted and not the time: a machine that slept for an hour
        has not waited for an answer.
        """
        while True:
            wake = min(deadline, time.monotonic() + every)
            try:
                message, data = self.receive(wake)
            except TooLate:
                if wake == deadline:
                    raise
                if self._unanswered >= pings:
                    raise GuestFrozen from None
                self._unanswered += 1
                self.send({"do": "ping"})
                continue
            if message["event"] != "pong":
                return message, data

    def answers(self, timeout: float) -> bool:
        """Does the agent answer at all? What it says otherwise is lost."""
        deadline = time.monotonic() + timeout
        self.send({"do": "ping"})
        try:
            while self.receive(deadline)[0]["event"] != "pong":
                pass
        except TooLate:
            return False
        return True

    def receive(
        self, deadline: float, others: tuple[Any, ...] = ()
    ) -> tuple[dict[str, Any], bytes] | Any:
        """The next message and its bytes, or one of `others` that has input.

        Raises TooLate after `deadline`, a time.monotonic().
        """
        assert self.line
        while True:
            message = self._take()
            if message:
                return message
            with selectors.DefaultSelector() as waiting:
                waiting.register(self.line, selectors.EVENT_READ)
                for other in others:
                    waiting.register(other, selectors.EVENT_READ)
                ready = waiting.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TooLate
            for key, _ in ready:
                if key.fileobj is not self.line:
                    return key.fileobj
            try:
                data = self.line.recv(65536)
            except OSError:
                data = b""
            if not data:
                raise GuestDied
            self._unanswered = 0
            self._pending += data

    def _take(self) -> tuple[dict[str, Any], bytes] | None:
        head, newline, rest = self._pending.partition(b"\n")
        if not newline:
            return None
        try:
            message = json.loads(head)
        except ValueError:
            # A reboot can cut a line off in the middle.
            del self._pending[:len(head) + 1]
            return self._take()
        size = message.get("size", 0)
        if len(rest) < size:
            return None
        del self._pending[:len(head) + 1 + size]
        return message, bytes(rest[:size])
