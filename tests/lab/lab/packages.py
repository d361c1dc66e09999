"""What a guest gets of this project: the package, or a binary of the tests' own.

Each is built when the first guest wants it, and the run keeps a copy.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
from pathlib import Path

from . import cache, sandbox
from .progress import say, step

TESTS = Path(__file__).parents[2]
BUILD_DEB = TESTS / "build-deb"
BUILD_FAULT_POINTS = TESTS / "build-fault-points"
BUILD_TIMEOUT = 1800.0


def package() -> Path | None:
    """The package to test: LAB_DEB, or built from this tree."""
    given = os.environ.get("LAB_DEB")
    if given is not None:
        return _own_copy(Path(given)) if given else None
    if not BUILD_DEB.exists():
        say("no tests/build-deb: the guest gets no package")
        return None
    return _build(BUILD_DEB, "the package")


@functools.cache
def fault_points() -> Path:
    """The binary with the kill switch of the crash campaigns, from this tree."""
    return _build(BUILD_FAULT_POINTS, "the binary with fault points")


def _build(script: Path, what: str) -> Path:
    with step(f"building {what}"):
        # Isolated, for the compilers that it starts must end with us, too.
        build = sandbox.start(
            sandbox.isolated([str(script)]), stdout=subprocess.PIPE)
        try:
            output, _ = build.communicate(timeout=BUILD_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise cache.LabError(f"{what} is not built in time") from None
        finally:
            sandbox.end(build)
    if build.returncode:
        raise cache.LabError(f"{what} does not build")
    return _own_copy(Path(output.decode().splitlines()[-1]))


def _own_copy(built: Path) -> Path:
    """What was built, where no later build of this clone can put another one: a run boots many guests from it."""
    if not built.is_file():
        raise cache.LabError(f"there is no package {built}")
    folder, alive = cache.new_run()
    # Last in, first out. Of a run that is killed, cache.sweep removes it.
    atexit.register(alive.close)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(shutil.copy(built, folder))
