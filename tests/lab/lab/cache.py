"""Artefacts keyed by their inputs, shared by every clone on this machine.

An artefact is a folder NAME-KEY below the cache, where KEY is a hash of all
that went into it. It is made in a temporary sibling and renamed when it is
complete, under a lock per artefact: a folder with its final name is whole.

What somebody outside was asked lately is beside them, as NAME.txt.

Not for run-time state; see session.py for that.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .progress import say, step
from .sandbox import CommandFailed

# An artefact that no run has used for so long is removed.
KEEP_DAYS = 30
# The longest build takes a few minutes; a lock held longer is not a build.
LOCK_PATIENCE = 1800.0
# The longest run of scenarios in one guest takes less.
TURN_PATIENCE = 3600.0
# For so long what somebody outside has said is taken for what they say now.
ASK_AGAIN = 86400.0
# How many lines of a failed build's log are shown.
TAIL = 25


class LabError(Exception):
    """The lab itself could not do its work; the text is for the user."""


class NoSuchBoot(LabError):
    """What this boot asks for cannot be had; another boot may be possible."""


def root() -> Path:
    """The cache's folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # to be ignored, says the XDG specification
        base = os.path.expanduser("~/.cache")
    return Path(base) / "gpu-handoff-lab"


def runs() -> Path:
    """Where running guests have their sockets and shares, and a run its package."""
    return root() / "runs"


@dataclass(frozen=True)
class Artefact:
    """What to build, and everything its content depends on."""

    name: str
    """File name part; also what the user reads while it is built."""
    inputs: tuple[str, ...]
    """Texts that decide about the content: recipe, package list, sources."""
    build: Callable[[Path, IO[bytes]], None]
    """Fills an empty folder; the second argument takes the build's log."""

    @property
    def key(self) -> str:
        """Hash of the inputs."""
        digest = hashlib.sha256()
        for text in self.inputs:
            digest.update(f"{len(text)}:{text}".encode())
        return digest.hexdigest()[:12]

    @property
    def path(self) -> Path:
        """Where it lies once it is complete."""
        return root() / f"{self.name}-{self.key}"


def obtain(artefact: Artefact) -> Path:
    """The folder of a complete artefact, built now if there is none."""
    path = artefact.path
    if not path.is_dir():
        with _locked(path.name):
            if not path.is_dir():
                _build(artefact)
    os.utime(path)
    return path


def ask(
    name: str, question: Callable[[Path, IO[bytes]], str], use: Callable[[str], bool]
) -> str:
    """What somebody outside says: asked once a day, and the last answer if none comes.

    `question` gets an empty folder and the log, and fails with CommandFailed.
    An answer that is no use, says `use`, is asked for again before a day has gone.
    """
    record, scratch = root() / f"{name}.txt", root() / f"{name}.new-{os.getpid()}"
    with _locked(name):
        known = record.read_text() if record.is_file() else None
        if known is not None and 0 <= time.time() - _used(record) < ASK_AGAIN and use(known):
            return known
        scratch.mkdir()
        log_path = root() / f"{name}.log"
        try:
            with log_path.open("wb") as log:
                answer = question(scratch, log)
            (scratch / "answer").write_text(answer)
            (scratch / "answer").rename(record)
        except CommandFailed as error:
            if known is None:
                raise _failed(f"{name}: no answer", error, log_path) from error
            say(f"{name}: no answer ({error}), what it was "
                f"{(time.time() - _used(record)) / 86400:.1f} days ago is used")
            return known
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return answer


def sweep() -> None:
    """Remove what killed runs left behind, and what is long unused."""
    root().mkdir(parents=True, exist_ok=True)
    for folder in root().glob("*.new-*"):
        with _locked(folder.name.split(".new-")[0], wait=False) as mine:
            if mine:
                _remove(folder)
    oldest = time.time() - KEEP_DAYS * 86400
    for folder in root().glob("*-????????????"):
        if folder.is_dir() and _used(folder) < oldest:
            with _locked(folder.name, wait=False) as mine:
                if mine:
                    _remove(folder)
    just_now = time.time() - 60
    for folder in root().glob("run-*"):  # see new_run
        if _used(folder) < just_now:
            shutil.rmtree(folder, ignore_errors=True)
    for folder in runs().glob("*"):
        if not _alive(folder):
            shutil.rmtree(folder, ignore_errors=True)


def new_run() -> tuple[Path, IO[bytes]]:
    """A fresh folder for a running guest, and the lock that marks it alive.

    The lock ends with our process, however that ends.
    """
    runs().mkdir(parents=True, exist_ok=True)
    # Made elsewhere and renamed with its lock held: a sweep of another run
    # must never see it without.
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=root()))
    lock = (folder / "alive").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    final = runs() / f"{os.getpid()}-{folder.name[4:]}"
    folder.rename(final)
    return final, lock


def take_turn(what: str, at_once: int) -> IO[bytes]:
    """Wait for one of so many places of the machine; closing it gives it up."""
    locks = root() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    places = [(locks / f"{what}-{n}").open("wb") for n in range(max(1, at_once))]
    deadline = time.monotonic() + TURN_PATIENCE
    told = False
    while time.monotonic() < deadline:
        for place in places:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return place
        if not told:
            say(f"waiting for another {what} to end ...")
            told = True
        time.sleep(0.5)  # flock has no wait with a deadline
    raise LabError(f"no {what} of another run ended within {TURN_PATIENCE:.0f} s")


def files_key(folder: Path) -> str:
    """One text that stands for the names and contents of all files below."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            name = path.relative_to(folder)
            digest.update(f"{name}:{len(content)}:".encode() + content)
    return digest.hexdigest()


def _used(folder: Path) -> float:
    """When a folder was last used; now, if another run has just renamed or removed it."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _alive(run: Path) -> bool:
    """Does the run that made this folder still hold its lock?"""
    try:
        with (run / "alive").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _build(artefact: Artefact) -> None:
    path = artefact.path
    for old in root().glob(f"{path.name}.new-*"):
        _remove(old)
    fresh = root() / f"{path.name}.new-{os.getpid()}"
    fresh.mkdir(parents=True)
    log_path = root() / f"{artefact.name}.log"
    with step(f"building {artefact.name}"), log_path.open("wb") as log:
        try:
            artefact.build(fresh, log)
        except CommandFailed as error:
            log.flush()
            raise _failed(f"building {artefact.name} failed", error, log_path) from error
        fresh.rename(path)


def _failed(what: str, error: CommandFailed, log_path: Path) -> LabError:
    """The error that shows the end of a log and says where the rest is."""
    tail = log_path.read_text(errors="replace").splitlines()[-TAIL:]
    return LabError("\n".join([f"{what}: {error}", *tail,
                               f"Hint: the whole log is {log_path}"]))


def _remove(folder: Path) -> None:
    # Renamed first: half a folder must not keep a complete one's name.
    doomed = folder.with_name(f"{folder.name.split('.new-')[0]}.new-removed")
    shutil.rmtree(doomed, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


@contextlib.contextmanager
def _locked(name: str, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of one artefact; without `wait` say whether we got it."""
    locks = root() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / name).open("wb") as lock:
        deadline = time.monotonic() + (LOCK_PATIENCE if wait else 0.0)
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not wait:
                    yield False
                    return
                if time.monotonic() > deadline:
                    raise LabError(f"another run still builds {name}") from None
            if not told:
                say(f"waiting for another run that builds {name} ...")
                told = True
            time.sleep(0.5)  # flock has no wait with a deadline
        yield True
