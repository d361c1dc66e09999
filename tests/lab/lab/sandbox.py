"""Processes that cannot outlive us, with mounts that nobody else sees.

A sandboxed command is process 1 of a PID namespace of its own and lives in a
mount namespace of its own. When it is killed, or when we are (SIGKILL
included), the kernel ends everything in it and the mounts vanish with it: the
machine itself never has one of them.

The death signal is tied to the *thread* that spawned the child (prctl(2),
PR_SET_PDEATHSIG): start these from the main thread, or from a Lane.
"""

from __future__ import annotations

import shlex
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

# Programs look for these; the machine's own environment stays outside.
CHROOT_ENV = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
}


class CommandFailed(Exception):
    """A command of the lab ended with an error; the text has its last lines."""


class Lane(threading.Thread):
    """A thread that ends whatever it has started before it ends itself."""


def tied(command: Sequence[str]) -> list[str]:
    """The command line of a plain child that dies with us."""
    return ["setpriv", "--pdeathsig", "KILL", "--", *command]


def isolated(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` in namespaces of its own."""
    return tied(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child",
         "--mount-proc", "--propagation", "private", "--", *command]
    )


def in_chroot(
    root: Path, command: Sequence[str], binds: Mapping[str, Path] | None = None
) -> list[str]:
    """The command line that runs `command` inside the tree `root`.

    `binds` names, for folders of that tree, what is to be seen there. They
    must exist: the tree is shared with other runs.
    """
    lines = ["set -e"]
    for inside, outside in {"/dev": Path("/dev"), **(binds or {})}.items():
        target = shlex.quote(f"{root}{inside}")
        lines.append(f"mount --rbind {shlex.quote(str(outside))} {target}")
    # The tree is shared: what a program leaves in /tmp is its own.
    lines.append(f"mount -t tmpfs tmp {shlex.quote(f'{root}/tmp')}")
    lines.append(f"mount -t proc proc {shlex.quote(f'{root}/proc')}")
    environment = [f"{key}={value}" for key, value in CHROOT_ENV.items()]
    lines.append(
        shlex.join(["exec", "chroot", str(root), "/usr/bin/env", "-i",
                    *environment, *command])
    )
    return isolated(["/bin/sh", "-c", "\n".join(lines)])


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a command line made by one of the functions above."""
    current = threading.current_thread()
    assert current is threading.main_thread() or isinstance(current, Lane)
    # A session of its own: an interrupt from the terminal is for us alone,
    # and we end the children in order.
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, **options)


def run(
    command: Sequence[str],
    log: IO[bytes],
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run to the end, output into `log`; raise CommandFailed on an error."""
    child = start(command, stdout=log, stderr=subprocess.STDOUT, cwd=cwd, env=env)
    try:
        code = child.wait(timeout)
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"not finished after {timeout:.0f} s") from None
    finally:
        end(child)
    if code:
        raise CommandFailed(f"exit status {code}")


def output(command: Sequence[str], log: IO[bytes], timeout: float) -> str:
    """Run to the end, stderr into `log`; returns what it printed, or raises CommandFailed."""
    child = start(command, stdout=subprocess.PIPE, stderr=log)
    try:
        printed, _ = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"not finished after {timeout:.0f} s") from None
    finally:
        end(child)
    if child.returncode:
        raise CommandFailed(f"exit status {child.returncode}")
    return str(printed, errors="replace")


def end(child: subprocess.Popen[bytes]) -> None:
    """Kill a child and all that is in its sandbox; harmless when it is gone."""
    if child.poll() is None:
        child.kill()
    child.wait()
