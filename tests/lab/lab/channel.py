"""The line between the lab and the agent in the guest.

Each message is one line of JSON; where it says {"size": N}, N bytes follow.
The other end is tests/lab/guest/usr/local/lib/lab/agent.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class GuestDied(Exception):
    """The virtual machine ended while we needed it."""


class TooLate(Exception):
    """Nothing came in time."""


@dataclass
class Channel:
    """Our end of the line; QEMU connects to it."""

    listener: socket.socket
    line: socket.socket | None = None
    _pending: bytearray = field(default_factory=bytearray)

    @classmethod
    def listen(cls, path: Path) -> Channel:
        """Make the socket that QEMU is to connect to."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
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
