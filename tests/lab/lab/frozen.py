"""A look from outside at a guest that gives no sign of life.

Anything may be stuck, so each question has a bound of its own:

    threads   of QEMU and of the device server: state, what they wait for,
              and how long they ran while we looked
    monitor   QEMU's status and its processors' registers
    keyboard  Alt+SysRq: the guest's kernel, if it still runs, prints on the
              console what its processors do and which processes are blocked
    logs      the last lines of each
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .channel import address

# A monitor that works answers in milliseconds, a busy one in a second.
ANSWER_TIMEOUT = 5.0
# The console gets a few lines a millisecond; a kernel that prints nothing for
# so long has said all, and one that prints on and on has said enough.
CONSOLE_QUIET = 2.0
CONSOLE_TIMEOUT = 20.0
TAIL = 500  # lines of each log in the report
LAST = 8  # of them, those that are shown at once
# Everything to the console; all processors; blocked processes; as it was
# (see qemu.kernel_arguments: loglevel=4).
REQUESTS = "9lw4"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Report:
    """What was found: all of it, and the lines that say most."""

    text: str
    essence: list[str]


def look(
    processes: Mapping[str, int], monitor: Path, logs: Mapping[str, Path]
) -> Report:
    """Ask everybody; `processes` are roots of process trees, by their name."""
    begun, before = time.monotonic(), _ticks(processes)
    parts: dict[str, list[str]] = {}
    parts["monitor"], parts["registers"] = _ask_monitor(monitor, logs["console"])
    seconds, after = time.monotonic() - begun, _ticks(processes)
    for name, root in processes.items():
        parts[f"threads of the {name}"] = [
            f"{line}, ran {(after[key] - before.get(key, 0)) / TICKS:.1f} of {seconds:.1f} s"
            for key, line in threads(root).items() if key in after]
    essence = [*parts["monitor"], *processors(parts["registers"]),
               *(line for name in processes for line in parts[f"threads of the {name}"])]
    for name, path in logs.items():
        parts[f"{name}'s last lines"] = _last_lines(path, TAIL)
        essence += [f"{name}: {line}" for line in _last_lines(path, LAST)]
    text = "".join(f"--- {title}\n" + "".join(f"{line}\n" for line in lines)
                   for title, lines in parts.items())
    return Report(text, essence)


# Threads ------------------------------------------------------------------------


def family(root: int) -> Iterator[int]:
    """A process and all its descendants."""
    yield root
    for task in Path(f"/proc/{root}/task").glob("*"):
        for child in _read(task / "children").split():
            yield from family(int(child))


def threads(root: int) -> dict[tuple[int, int], str]:
    """(pid, tid) -> a line that says what the thread does."""
    lines = {}
    for key, task in _tasks(root):
        state = (_read(task / "stat").rpartition(")")[2].split() or ["?"])[0]
        where = _read(task / "wchan").strip(" 0\n") or "-"
        call = _read(task / "syscall").split()[:1] or ["?"]
        lines[key] = (f"{key[1]} {_read(task / 'comm').strip()}: {state}, "
                      f"waits in {where}, system call {call[0]}")
    return lines


def _tasks(root: int) -> Iterator[tuple[tuple[int, int], Path]]:
    for pid in family(root):
        for task in sorted(Path(f"/proc/{pid}/task").glob("*")):
            yield (pid, int(task.name)), task


def _ticks(processes: Mapping[str, int]) -> dict[tuple[int, int], int]:
    """What each thread has used of a processor, user and system."""
    used = {}
    for root in processes.values():
        for key, task in _tasks(root):
            fields = _read(task / "stat").rpartition(")")[2].split()
            if fields:
                used[key] = int(fields[11]) + int(fields[12])
    return used


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # gone meanwhile
        return ""


# QEMU ----------------------------------------------------------------------------


class Monitor:
    """QEMU's monitor, one command at a time."""

    def __init__(self, path: Path, timeout: float = ANSWER_TIMEOUT) -> None:
        self._line = socket.socket(socket.AF_UNIX)
        self._line.settimeout(timeout)
        self._stream = self._line.makefile("rw", encoding="utf-8")
        try:
            with address(path) as short:
                self._line.connect(short)
            self._stream.readline()  # the greeting
            self.ask("qmp_capabilities")
        except OSError:
            self.close()
            raise

    def ask(self, execute: str, **arguments: object) -> object:
        """What a command returns; OSError if it does not."""
        self._stream.write(json.dumps({"execute": execute, "arguments": arguments}) + "\n")
        self._stream.flush()
        for line in self._stream:
            message = json.loads(line)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise OSError(message["error"]["desc"])
        raise OSError("QEMU has hung up")

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):  # what could not be sent
            self._stream.close()
        self._line.close()


def _ask_monitor(path: Path, console: Path) -> tuple[list[str], list[str]]:
    """QEMU's status, and its registers; then the keys are pressed."""
    status, registers = [], []
    try:
        with contextlib.closing(Monitor(path)) as monitor:
            status.append(f"QEMU says: {json.dumps(monitor.ask('query-status'))}")
            text = monitor.ask("human-monitor-command",
                               **{"command-line": "info registers -a"})
            registers = str(text).splitlines()
            for key in REQUESTS:
                _press(monitor, key)
                _await_quiet(lambda: console.stat().st_size)
    except (OSError, ValueError) as error:
        status.append(f"QEMU's monitor does not answer: {error}")
    return status, registers


def _press(monitor: Monitor, key: str) -> None:
    keys = [{"type": "qcode", "data": one} for one in ("alt", "sysrq", key)]
    monitor.ask("send-key", keys=keys)


def _await_quiet(size: Callable[[], int]) -> None:
    """Wait until a file does not grow any more: it has no other event."""
    deadline, last, since = time.monotonic() + CONSOLE_TIMEOUT, size(), time.monotonic()
    while time.monotonic() < min(deadline, since + CONSOLE_QUIET):
        time.sleep(0.1)
        if size() != last:
            last, since = size(), time.monotonic()


def processors(registers: list[str]) -> list[str]:
    """Where each processor of the guest is, from `info registers -a`."""
    found, cpu = [], "CPU"
    for line in registers:
        if line.startswith("CPU#"):
            cpu = line.strip()
        place = re.search(r"\b([ER]IP=\w+).*\b(HLT=\d)", line)
        if place:
            found.append(f"{cpu} {place[1]} {place[2]}")
    return found


def _last_lines(path: Path, count: int) -> list[str]:
    return _read(path).splitlines()[-count:]
