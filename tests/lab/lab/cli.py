"""The commands run, demo and shell: switches, and the exit status."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from pathlib import Path

from . import cache, options, packages, scenarios, session, suite
from .channel import GuestDied, GuestFrozen
from .progress import say

LAB = Path(__file__).parent.parent
RESULTS = LAB / "out"
DEMO = LAB / "demo.sh"
SCRIPT_TIMEOUT = 600.0

RUN_TEXT = """
With --script: run that file; without a line #! it is sh's.
Without --script: run the scenarios of tests/lab/scenarios, or those named,
and end with a line "N passed, N failed".
With --tool: the situations of ANCHORS.md, all or those named behind
"anchors", for that pair of commands; its column of the table is printed.
In a command {gpu} and {audio} are the functions that it is to move:
  tests/lab/run anchors --tool 'X to_vfio {gpu}' 'X to_nvidia {gpu}'
Exit status with --script: the script's own; 124 it took longer than
--timeout, 125 the lab failed, 126 the guest died or froze.
"""


def main(arguments: list[str]) -> int:
    """Run one command; returns its exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _leave)
    command, rest = arguments[0], arguments[1:]
    try:
        return {"run": _run, "demo": _demo, "shell": _shell}[command](rest)
    except scenarios.LAB_FAILURES as error:
        say(f"error: {error}")
        return session.LAB_FAILED


def _leave(number: int, _: object) -> None:
    # Not twice: what cleans up must not be interrupted by the same signal.
    for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(one, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _parser(command: str, text: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"tests/lab/{command}", epilog=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_arguments(parser)
    parser.add_argument(
        "--timeout", type=float, default=SCRIPT_TIMEOUT, metavar="S",
        help=f"seconds that a script may take ({SCRIPT_TIMEOUT:.0f})")
    parser.add_argument(
        "--keep", type=Path, default=RESULTS, metavar="DIR",
        help="where console, journal and kernel log go (tests/lab/out)")
    return parser


def _run(rest: list[str]) -> int:
    parser = _parser("run", RUN_TEXT)
    parser.add_argument("scenario", nargs="*", help="names of scenarios")
    parser.add_argument("--script", type=Path, metavar="FILE",
                        help="run this file in the guest instead")
    parser.add_argument("--tool", nargs=2, metavar=("OUT", "HOME"),
                        help="with the scenario anchors: the commands to judge")
    parser.add_argument("--hook", default="", metavar="FILE",
                        help="with --tool: a snippet of its own for the VMs")
    parser.add_argument("--list", action="store_true",
                        help="list every switch and scenario")
    parser.add_argument("--tier", choices=("fast", "full", "all", "long"), default="fast",
                        help="which scenarios, where none are named")
    parser.add_argument("--guests", type=int, default=1, metavar="N",
                        help="how many guests at a time, at most (1)")
    chosen = parser.parse_args(rest)
    if chosen.guests < 1:
        parser.error("argument --guests: at least 1")
    if chosen.list:
        print(scenarios.listing(parser))
        return 0
    if chosen.tool is not None:
        if chosen.scenario[:1] != [suite.NAME]:
            raise cache.LabError("--tool is for the situations of ANCHORS.md\n"
                                 f"Hint: tests/lab/run {suite.NAME} --tool OUT HOME")

        def boot(switches: str) -> options.Options:
            # Behind those of the command line, which they overrule.
            words = [*rest, *shlex.split(switches), "--peers"]
            return options.from_arguments(parser.parse_args(words))

        return suite.run(chosen, boot, packages.package)
    if chosen.script is None:
        found = scenarios.select(chosen.scenario, chosen.tier)
        return scenarios.run(found, chosen.keep, packages.package, guests=chosen.guests)
    if not chosen.script.is_file():
        raise cache.LabError(f"there is no file {chosen.script}")
    return _run_script(chosen, chosen.script)


def _run_script(chosen: argparse.Namespace, script: Path) -> int:
    boot = options.from_arguments(chosen)
    folder, answers = chosen.keep / "script", True
    with session.Guest(boot, packages.package()) as guest:
        try:
            status = guest.run(script, session.to_stdout, chosen.timeout)
        except GuestDied:
            status, answers = session.GUEST_DIED, False
            say("error: the guest died")
        except GuestFrozen:
            status, answers = session.GUEST_DIED, False
            for line in [*guest.diagnose(folder), "error: the guest froze"]:
                say(line)
        finally:
            guest.keep_logs(folder, answers)
    if status == session.TIMED_OUT:
        say(f"the script was ended after {chosen.timeout:.0f} s")
    say(f"exit status {status}; logs are in {folder}")
    return status


def _demo(rest: list[str]) -> int:
    started = time.monotonic()
    parser = _parser("demo", "The main job, on screen, in a real guest.")
    chosen = parser.parse_args([*rest, "--no-install"])
    status = _run_script(chosen, DEMO)
    print(f"total time: {time.monotonic() - started:.0f} s", flush=True)
    return status


def _shell(rest: list[str]) -> int:
    parser = _parser("shell", "A prompt in the guest; end it with exit.")
    chosen = parser.parse_args(rest)
    if not sys.stdin.isatty():
        raise cache.LabError("tests/lab/shell needs a terminal\n"
                             "Hint: tests/lab/run --script FILE needs none")
    with session.Guest(options.from_arguments(chosen), packages.package()) as guest:
        try:
            return guest.shell(sys.stdin.buffer)
        except GuestDied:
            say(f"error: the guest died; logs are in {chosen.keep / 'shell'}")
            return session.GUEST_DIED
        finally:
            guest.keep_logs(chosen.keep / "shell")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
