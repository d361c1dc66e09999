"""Scenario files: reading their headers, grouping, running, reporting.

A scenario is a script in tests/lab/scenarios. Comment lines at its top say
what it is:

    # What it shows, in one line.
    # lab: --cards 2 --stub remove_wait=forever     (switches; optional)
    # tier: full                                    (fast where absent; long:
                                                     a campaign; named is run
                                                     by its name only)
    # may-skip: why                                 (exit 77 is no failure)

Exit status 0 is a pass. Those with equal switches share a boot; between two
of them /usr/local/sbin/lab-reset of the guest makes its state as at boot, and
where it cannot, the next one gets a boot of its own.

A guest that freezes under a scenario is the lab's fault until the contrary is
shown: it is looked at from outside, and the scenario is run once more in a new
boot. Its line then says so, and a second freeze is a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import cache, images, lanes, options, packages, sandbox, session
from .channel import GuestDied, GuestFrozen
from .progress import say

FOLDER = Path(__file__).parent.parent / "scenarios"
RESET = "/usr/local/sbin/lab-reset"
RESET_TIMEOUT = 60.0
TIMEOUT = 600.0
SKIPPED = 77
TAIL = 30  # lines of a failed scenario's output on the terminal
# What takes minutes each is a campaign, what takes hours is run by its name only.
TIERS = ("fast", "full", "long", "named")
# What is no fault of a scenario, but of the lab or of its disk.
LAB_FAILURES = (cache.LabError, sandbox.CommandFailed, OSError)


@dataclass(frozen=True)
class Scenario:
    """One scenario file and what its header says."""

    path: Path
    shows: str
    tier: str
    boot: options.Options
    timeout: float
    switches: str
    may_skip: bool

    @property
    def name(self) -> str:
        """How it is named on the command line."""
        return self.path.stem


def read(path: Path) -> Scenario:
    """Read the header of one scenario file."""
    shows, tier, switches, may_skip = "", "fast", "", False
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("#").strip()
        if line.startswith("#!") or not text:
            continue
        key, colon, value = text.partition(":")
        if colon and key == "lab":
            switches = value.strip()
        elif colon and key == "tier":
            tier = value.strip()
        elif colon and key == "may-skip":
            may_skip = True
        elif not shows:
            shows = text
    if tier not in TIERS:
        raise cache.LabError(f"{path.name}: there is no tier {tier}")
    parser = argparse.ArgumentParser(prog=path.name)
    options.add_arguments(parser)
    parser.add_argument("--timeout", type=float, default=TIMEOUT)
    parsed = parser.parse_args(shlex.split(switches))
    return Scenario(path, shows, tier, options.from_arguments(parsed),
                    parsed.timeout, switches, may_skip)


def all_of_them() -> list[Scenario]:
    """Every scenario, by name."""
    return [read(path) for path in sorted(FOLDER.glob("*.sh"))]


def select(names: list[str], tier: str) -> list[Scenario]:
    """Those named; without names those of a tier (all: fast and full)."""
    known = {one.name: one for one in all_of_them()}
    if not names:
        return [one for one in known.values()
                if one.tier == tier or tier == "all" and one.tier in ("fast", "full")]
    for name in names:
        if name not in known:
            raise cache.LabError(
                f"there is no scenario {name}\n"
                "Hint: tests/lab/run --list names them all")
    return [known[name] for name in names]


def listing(parser: argparse.ArgumentParser) -> str:
    """Every switch and every scenario, one line each."""
    lines = ["Switches:"]
    for action in parser._actions:
        if action.option_strings:
            name = action.option_strings[-1]
            value = action.metavar or (
                "|".join(map(str, action.choices)) if action.choices else "")
            lines.append(f"  {f'{name} {value}':<30} {action.help}")
    lines.append("Scenarios (tier, name, what it shows):")
    for one in all_of_them():
        lines.append(f"  {one.tier} {one.name:<25} {one.shows} {one.switches}")
    return "\n".join(lines)


def run(
    chosen: list[Scenario], results: Path, package: Callable[[], Path | None],
    conclude: Callable[[], None] = lambda: None, guests: int = 1,
) -> int:
    """Run scenarios, print a line for each, what `conclude` does and the count; 1 if any failed.

    So many guests at a time, at most.
    """
    work = lanes.Work(chosen)
    try:
        made = package() if chosen else None
        if guests > 1:
            _prepare(work.boots())

        def lane() -> None:
            while boots := work.boots():
                _run_in_one_guest(boots[0], work, results, made)

        lanes.run(work, guests, lane)
        conclude()
    finally:
        # Whatever ended it, a signal too: what did not run has not passed.
        if work.frozen:
            print(f"guests froze under: {' '.join(sorted(work.frozen))}", flush=True)
        passed = len(work.passed)
        print(f"{passed} passed, {len(chosen) - passed} failed", flush=True)
    return 0 if passed == len(chosen) else 1


def _prepare(boots: list[options.Options]) -> None:
    """Build what the guests need, each thing once and by all processors."""
    for boot in boots:
        with contextlib.suppress(cache.NoSuchBoot):  # a failure of what waits for it
            images.obtain(boot)
        if boot.fault_points:
            packages.fault_points()


def _run_in_one_guest(
    boot: options.Options, work: lanes.Work, results: Path, package: Path | None
) -> None:
    """Run as many of what waits for this boot as one guest can.

    One that the guest froze under waits again, the first time.
    """
    try:
        guest = session.Guest(boot, package)
    except cache.NoSuchBoot as error:
        while one := work.take(boot):
            _report(work, one, "FAILED", 0.0, f"the lab: {error}")
        return
    # No other is caught: an image that cannot be built now cannot be for the next one.
    up = False
    work.hold(guest)
    try:
        with guest:
            up = True
            while one := work.take(boot):
                try:
                    ok = _run_one(work, one, guest, results)
                except GuestFrozen:
                    work.once_more(one)
                    break
                except LAB_FAILURES as error:
                    _report(work, one, "FAILED", 0.0, f"the lab: {error}")
                    break
                if ok:
                    work.passed.append(one)
                elif work.waits(boot):
                    say("another boot, for what the failure may have left")
                    break
                # What is on a disk stays, and what was enabled there is started at the next one's reboot.
                if work.waits(boot) and (boot.persist or not _reset(guest, results / one.name)):
                    say("the guest cannot be made as new: another boot")
                    break
    except LAB_FAILURES as error:
        if work.stopped:
            return
        if up:
            say(f"error: {error}")
        elif one := work.take(boot):
            # The boot failed: so did the one it was for.
            _report(work, one, "FAILED", 0.0, f"the lab: {error}")
    except GuestDied:
        pass  # the scenario that it died in counts as failed
    finally:
        work.release(guest)


def _run_one(
    work: lanes.Work, one: Scenario, guest: session.Guest, results: Path
) -> bool:
    again = one.name in work.frozen
    # What is known about a freeze is kept.
    folder = results / (f"{one.name}.again" if again else one.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    with (folder / "output.log").open("wb", buffering=0) as output:
        try:
            status = guest.run(one.path, output.write, one.timeout)
            why = f"exit status {status}"
            if status == session.TIMED_OUT:
                why = f"ended after {one.timeout:.0f} s"
        except GuestDied:
            status, why = session.GUEST_DIED, "the guest died"
        except GuestFrozen:
            _report_frozen(work, one, guest, folder, time.monotonic() - started, again)
            raise
    seconds = time.monotonic() - started
    guest.keep_logs(folder)
    if status == 0:
        _report(work, one, "ok, AFTER THE GUEST FROZE ONCE" if again else "ok", seconds)
        return True
    if status == SKIPPED and one.may_skip:
        _report(work, one, "ok (skipped, as its header allows)", seconds)
        return True
    tail = (folder / "output.log").read_text(errors="replace").splitlines()
    _report(work, one, "FAILED", seconds,
            "\n".join([*tail[-TAIL:], f"{why}; output and logs are in {folder}"]))
    if status == session.GUEST_DIED:
        raise GuestDied
    return False


def _report_frozen(
    work: lanes.Work, one: Scenario, guest: session.Guest, folder: Path,
    seconds: float, again: bool,
) -> None:
    essence = guest.diagnose(folder)
    guest.keep_logs(folder, answers=False)
    why = ("the guest froze for the second time" if again else
           "the guest froze: once more, in another boot")
    _report(work, one, "FAILED" if again else "FROZEN", seconds, "\n".join(
        [*essence, f"{why}; logs are in {folder}, see frozen.log"]))


def _reset(guest: session.Guest, folder: Path) -> bool:
    try:
        with (folder / "reset.log").open("wb") as output:
            return guest.reset(RESET, output.write, RESET_TIMEOUT) == 0
    except GuestDied:
        return False
    except GuestFrozen:
        say("the guest froze in its reset")
        for line in guest.diagnose(folder):
            say(f"  {line}")
        return False


def _report(
    work: lanes.Work, one: Scenario, verdict: str, seconds: float, detail: str = ""
) -> None:
    if work.stopped:
        return
    lines = [f"{one.name}: {verdict} ({seconds:.1f} s)",
             *(f"    {line}" for line in detail.splitlines())]
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:
        raise SystemExit(session.LAB_FAILED) from None  # nobody reads us any more
