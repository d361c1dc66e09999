"""The situations of ANCHORS.md for anybody's tool: `tests/lab/run anchors --tool OUT HOME`.

What they are, and what is right, is guest/usr/local/lib/lab-situations; here each becomes a scenario of its own, in the
boot that it asks for, so that one that leaves a guest stuck is followed by another boot, and the rows become a table.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from . import cache, options, scenarios, session

NAME = "anchors"
GUEST_PROGRAM = "/usr/local/lib/lab-situations"
LISTING = session.GUEST_TREE / GUEST_PROGRAM.lstrip("/")
# Some of them let a tool hang for a minute, eight times.
TIMEOUT = 1200.0
ROW = "row: "


def situations() -> dict[str, str]:
    """The keys, each with the switches of the boot that it wants."""
    listed = subprocess.run(["/usr/bin/python3", "-IS", str(LISTING), "--list"],
                            check=True, capture_output=True, text=True, timeout=60)
    rows = (line.split("\t") for line in listed.stdout.splitlines())
    return {key: switches for key, switches, _ in rows}


def script(tool: Sequence[str], hook: str, key: str) -> str:
    """What the guest runs for one situation."""
    words = [GUEST_PROGRAM, "--out", tool[0], "--home", tool[1]]
    if hook:
        words += ["--hook", hook]
    return f"#!/bin/sh\nexec {shlex.join([*words, key])}\n"


def row(output: str) -> list[list[str]]:
    """The table's rows in what a situation has printed: key, situation, verdict."""
    return [line.removeprefix(ROW).split(" | ") for line in output.splitlines()
            if line.startswith(ROW)]


def run(
    chosen: argparse.Namespace, boot: Callable[[str], options.Options],
    package: Callable[[], Path | None],
) -> int:
    """Run them for a tool, print its column; 0 if each could be judged.

    `boot`: the boot of the command line with these switches besides.
    """
    known = situations()
    wanted = chosen.scenario[1:] or list(known)
    for key in wanted:
        if key not in known:
            raise cache.LabError(f"there is no situation {key}\n"
                                 f"Hint: they are {' '.join(known)}")
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for key in wanted:
            path = Path(folder) / f"{NAME}-{key}"
            path.write_text(script(chosen.tool, chosen.hook, key))
            found.append(scenarios.Scenario(
                path, key, "full", boot(known[key]), TIMEOUT, known[key], False))
        return scenarios.run(found, chosen.keep, package,
                             lambda: _print(chosen, found), chosen.guests)


def _print(chosen: argparse.Namespace, found: list[scenarios.Scenario]) -> None:
    print(f"| | situation | {chosen.tool[0]} |\n|---|---|---|")
    for one in found:
        output = chosen.keep / one.name / "output.log"
        text = output.read_text(errors="replace") if output.is_file() else ""
        for cells in row(text) or [[one.shows, "(not judged)", "–"]]:
            print(f"| {' | '.join(cells)} |")
