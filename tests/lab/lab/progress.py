"""What is said while one waits: one line per step, with the time it took.

Everything goes to stderr; stdout belongs to the output of the scripts.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

# Every this many seconds a running step says that it still runs.
TICK = 15.0


def say(text: str) -> None:
    """One line of the lab's own to the terminal."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"lab: {text}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Announce a step, tick while it runs, say how long it took."""
    started = time.monotonic()
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(TICK):
            say(f"  ... {what}: {time.monotonic() - started:.0f} s")

    say(f"{what} ...")
    threading.Thread(target=tick, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
    say(f"{what}: done in {time.monotonic() - started:.1f} s")
