"""Several guests at a time: what waits to be run, and the threads that run it.

A guest that waits for a timeout of the kernel leaves the machine's cores to
another one; two on two cores get through all scenarios in little more than
half the time.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from . import sandbox

if TYPE_CHECKING:
    from .options import Options
    from .scenarios import Scenario
    from .session import Guest

# A guest that was killed is cleared away in no time.
ENDING_PATIENCE = 60.0


class Work:
    """The scenarios of a run: which wait, which have passed, in which guests."""

    def __init__(self, chosen: Iterable[Scenario]) -> None:
        self.passed: list[Scenario] = []
        self.frozen: set[str] = set()
        """Names of those that a guest has frozen under."""
        self._lock = threading.Lock()
        self._boots: dict[Options, list[Scenario]] = {}
        self._guests: set[Guest] = set()
        self.stopped = False
        """It is over: nothing is taken any more, and nothing that ends now is a result."""
        for one in chosen:
            self._boots.setdefault(one.boot, []).append(one)
        for group in self._boots.values():
            group.sort(key=lambda one: -one.timeout)

    def boots(self) -> list[Options]:
        """All boots that something waits for, the longest first: a short one is no long end."""
        with self._lock:
            if self.stopped:
                return []
            left = [boot for boot, group in self._boots.items() if group]
            return sorted(left, key=lambda boot: -sum(
                one.timeout for one in self._boots[boot]))

    def waits(self, boot: Options) -> bool:
        """Does anything wait for a guest of this boot?"""
        with self._lock:
            return not self.stopped and bool(self._boots[boot])

    def take(self, boot: Options) -> Scenario | None:
        """The next one for a guest of this boot."""
        with self._lock:
            group = self._boots[boot]
            return group.pop(0) if group and not self.stopped else None

    def once_more(self, one: Scenario) -> None:
        """A guest froze under it: it is the next one of its boot, if that was the first time."""
        with self._lock:
            if one.name not in self.frozen:
                self.frozen.add(one.name)
                self._boots[one.boot].insert(0, one)

    def hold(self, guest: Guest) -> None:
        """This guest is to be ended with the work."""
        self._guests.add(guest)

    def release(self, guest: Guest) -> None:
        """This guest has ended."""
        self._guests.discard(guest)

    def stop(self, lanes: Iterable[threading.Thread]) -> None:
        """End all guests, and wait for the threads that have them."""
        self.stopped = True
        deadline = time.monotonic() + ENDING_PATIENCE
        for lane in lanes:
            while lane.is_alive() and time.monotonic() < deadline:
                for guest in list(self._guests):
                    guest.kill()
                lane.join(0.2)


def run(work: Work, count: int, lane: Callable[[], None]) -> None:
    """Run `lane` so many times at once; the first error of one ends all, and is raised."""
    if count == 1:
        lane()
        return
    ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def one() -> None:
        try:
            lane()
        except BaseException as error:
            ends.put(error)
        else:
            ends.put(None)

    lanes = [sandbox.Lane(target=one, daemon=True) for _ in range(count)]
    try:
        for thread in lanes:
            thread.start()
        for _ in lanes:
            error = ends.get()
            if error:
                raise error
    finally:
        with suppress(SystemExit):  # a second signal
            work.stop(lanes)
