"""The terminal of tests/lab/shell: raw on our side, a pty in the guest."""

from __future__ import annotations

import os
import shutil
import signal
import termios
import time
import tty
from typing import IO, Any

from .channel import Channel, TooLate

# How long nothing may happen at all before we look again: for ever is no wait.
A_DAY = 86400.0


def converse(channel: Channel, terminal: IO[bytes], environment: dict[str, str]) -> int:
    """Run a login shell in the guest; returns its exit status."""
    environment = environment | {"TERM": os.environ.get("TERM", "linux")}
    channel.send({"do": "shell", "words": ["/bin/bash", "--login"],
                  "env": environment, **_size()})
    # A signal must wake up the loop: a size that changed is a message, too.
    signal.signal(signal.SIGWINCH,
                  lambda *_: channel.send({"do": "resize", **_size()}))
    before = termios.tcgetattr(terminal)
    tty.setraw(terminal)
    try:
        return _loop(channel, terminal)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, signal.SIG_DFL)


def _loop(channel: Channel, terminal: IO[bytes]) -> int:
    while True:
        try:
            got: Any = channel.receive(time.monotonic() + A_DAY, (terminal,))
        except TooLate:
            continue
        if got is terminal:
            channel.send({"do": "input"}, os.read(terminal.fileno(), 4096))
            continue
        message, data = got
        if message["event"] == "output":
            os.write(1, data)
        elif message["event"] == "done":
            return int(message["status"])


def _size() -> dict[str, int]:
    columns, rows = shutil.get_terminal_size()
    return {"rows": rows, "columns": columns}
