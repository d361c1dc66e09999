"""One booted guest: start it, run scripts in it, keep its logs, end it.

A guest lives in a folder of its own below the cache's runs/:

    share/        the guest's /lab: guest/ (laid over its root), deb/, script,
                  env, out/ (kernel, journal, install)
    *.sock        the agent's line, the faults, QEMU's monitor, a socket per
                  function
    console.log   the serial console; qemu.log, server.log: of the processes
"""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from . import accel, cache, frozen, images, packages, qemu, sandbox
from .channel import PING_EVERY, PINGS, Channel, GuestDied, GuestFrozen, TooLate
from .options import Options
from .progress import say, step

HERE = Path(__file__).parent
GUEST_TREE = HERE.parent / "guest"

# A boot takes 15 s on an idle machine, 25 s with sixteen cards.
BOOT_TIMEOUT = 240.0
# So many times as long where instructions are counted: one processor, in one thread of QEMU.
COUNTING = 4.0
SERVER_TIMEOUT = 20.0
# How long a killed script may take to be reported, a ping to be answered, and
# logs to be written.
GRACE = 10.0
COLLECT_TIMEOUT = 40.0
TOP_DISK = "4G"  # of a guest whose changes survive; sparse
BOOT_DISK = 256 << 20  # bytes; an empty one, which the guest partitions

# Exit statuses of `run --script` that are not the script's own.
TIMED_OUT, LAB_FAILED, GUEST_DIED = 124, 125, 126  # or froze

Sink = Callable[[bytes], None]


class Guest:
    """A running guest; use it in a `with` statement."""

    def __init__(self, options: Options, package: Path | None) -> None:
        self.options = options
        self._package = package
        self._images = images.obtain(options)
        self.folder, self._alive = cache.new_run()
        self.share = self.folder / "share"
        self._server: subprocess.Popen[bytes] | None = None
        self._qemu: subprocess.Popen[bytes] | None = None
        self._turn: IO[bytes] | None = None
        self._kernel_at = 0
        self._console_at = 0
        self.boots = 0
        # Between two boots there is no agent, for as long as a boot may take.
        self._pings = int(BOOT_TIMEOUT / PING_EVERY) if options.persist else PINGS

    def __enter__(self) -> Guest:
        try:
            # More guests than cores are each so slow that their deadlines pass.
            self._turn = cache.take_turn("guest", os.cpu_count() or 1)
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def kill(self) -> None:
        """End its processes; whoever uses it then sees that it has died."""
        for child in (self._qemu, self._server):
            if child:
                sandbox.end(child)

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._alive.close()
        if self._turn:
            self._turn.close()

    # Starting ---------------------------------------------------------------

    def _start(self) -> None:
        self._fill_share()
        if self.options.persist:
            self._make_top_disk()
        if self.options.boot_disk:
            with (self.folder / "boot.img").open("wb") as disk:
                disk.truncate(BOOT_DISK)
            shutil.copy(self._images.initrd, self.share / "initrd")
        self._start_machine()

    def _start_machine(self) -> None:
        """Switch the machine on, and wait for its agent."""
        self._serve_cards()
        self._channel = Channel.listen(self.folder / "agent.sock")
        root = cache.root()
        chosen = accel.choose(
            self.options.accel, self.options.clock, self._images, root)
        words = qemu.command(self.options, self._images, root, chosen,
                             from_disk=self.options.boot_disk and self.boots > 0)
        binds = {qemu.RUN: self.folder, qemu.CACHE: root}
        # A boot keeps both of its processors busy: two at once take longer than one after the other.
        with cache.take_turn("boot", (os.cpu_count() or 1) // 2):
            self._qemu = sandbox.start(
                sandbox.in_chroot(self._images.toolbox, words, binds),
                stdout=self._log("qemu.log"), stderr=subprocess.STDOUT,
            )
            with step(f"booting {self.describe()}"):
                self._wait_booted()

    def _wait_booted(self) -> None:
        try:
            self._channel.accept(SERVER_TIMEOUT)
            # A boot loader reads its kernel slowly, through the firmware.
            self._wait_ready(self._boot_timeout() * (1 + self.options.boot_disk))
        except GuestDied:
            raise cache.LabError(f"the guest died\n{self._last_words()}") from None
        except TooLate:
            essence = "\n".join(self.diagnose(self.folder))
            raise cache.LabError(f"the guest is not up\n{essence}") from None

    def _boot_timeout(self) -> float:
        return BOOT_TIMEOUT * (COUNTING if self.options.clock == "instructions" else 1.0)

    def describe(self) -> str:
        """The boot in words."""
        one = self.options
        cards = "1 card" if one.cards == 1 else f"{one.cards} cards"
        return (f"{one.kernel} kernel {self._images.version}, {cards}, "
                f"driver {one.driver}, iommu {one.iommu}")

    def _fill_share(self) -> None:
        for name in ("out", "deb"):
            (self.share / name).mkdir(parents=True)
        if self._package:
            shutil.copy(self._package, self.share / "deb")
        if self.options.fault_points:
            shutil.copy(packages.fault_points(), self.share / "deb/gpu-handoff")
        tree = self.share / "guest"
        shutil.copytree(GUEST_TREE, tree, symlinks=True,
                        ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(HERE.parents[1] / "model_vs_kernel", self.share / "model")
        self._write_modules_conf(tree)
        if self.options.persist:
            conf = tree / "etc/systemd/journald.conf.d/lab.conf"
            conf.parent.mkdir(parents=True, exist_ok=True)
            conf.write_text("[Journal]\nRateLimitBurst=0\nStorage=persistent\n")
        # Whatever the clone's owner and umask: in the guest it is root's.
        for path in [tree, *tree.rglob("*")]:
            if not path.is_symlink():
                runs = path.is_dir() or os.access(path, os.X_OK) and (
                    path.stat().st_mode & 0o100)
                path.chmod(0o755 if runs else 0o644)
        values = {
            "CARDS": self.options.cards, "FUNCTIONS": self.options.functions,
            "DRIVER": self.options.driver, "KERNEL": self.options.kernel,
            "IOMMU": self.options.iommu, "INSTALL": int(self.options.install),
        }
        (self.share / "env").write_text(
            "".join(f"{key}={value}\n" for key, value in values.items())
        )

    def _write_modules_conf(self, tree: Path) -> None:
        """What Debian's driver packages put there, and the stub's switches."""
        if self.options.driver == "none":
            return
        load = tree / "etc/modules-load.d/nvidia.conf"
        load.parent.mkdir(parents=True, exist_ok=True)
        load.write_text("nvidia-uvm\nnvidia-drm\n")
        lines = []
        for switch in self.options.stub:
            module, dot, rest = switch.partition(".")
            if not dot or "=" in module:
                module, rest = "nvidia", switch
            lines.append(f"options {module} {rest}\n")
        conf = tree / "etc/modprobe.d/lab-stub.conf"
        conf.parent.mkdir(parents=True, exist_ok=True)
        conf.write_text("".join(lines))

    def _make_top_disk(self) -> None:
        words = ["mke2fs", "-q", "-t", "ext4", f"{qemu.RUN}/top.img", TOP_DISK]
        command = sandbox.in_chroot(
            self._images.toolbox, words, {qemu.RUN: self.folder})
        sandbox.run(command, self._log("mke2fs.log"), 60.0)

    def _serve_cards(self) -> None:
        words = ["/usr/bin/python3", "-m", "lab.card.server",
                 str(self.options.cards), str(self.options.functions)]
        if self.options.ids:
            words.append(self.options.ids)
        environment = dict(os.environ, PYTHONPATH=str(HERE.parent),
                           PYTHONDONTWRITEBYTECODE="1")
        self._server = sandbox.start(
            sandbox.tied(words), cwd=self.folder, env=environment,
            stdout=subprocess.PIPE, stderr=self._log("server.log"),
        )
        # Its first line says that all sockets are there.
        assert self._server.stdout
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._server.stdout, selectors.EVENT_READ)
            ready = waiting.select(SERVER_TIMEOUT)
        if not ready or not self._server.stdout.readline():
            raise cache.LabError("the device server does not start\n"
                                 + self._tail("server.log"))

    def _wait_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            message, _ = self._channel.receive(deadline)
            if message["event"] == "ready":
                self._note_ready(message)
                return

    def _note_ready(self, message: dict[str, object]) -> None:
        self.boots += 1
        if message["install"]:
            report = self.share / "out/install"
            text = report.read_text(errors="replace") if report.exists() else ""
            raise cache.LabError(f"the package does not install\n{text}")
        say(f"guest is up, uptime {message['uptime']:.1f} s")

    # Running ----------------------------------------------------------------

    def run(self, script: Path, sink: Sink, timeout: float) -> int:
        """Run a script to its end; its output goes to `sink`.

        Returns its exit status or TIMED_OUT; raises GuestDied or GuestFrozen.
        Of a failed script, the output ends with what is stuck in the kernel.
        In a guest that may reboot, the script is run again after each reboot.
        """
        copy = self.share / "script"
        shutil.copyfile(script, copy)
        copy.chmod(0o755)
        return self._run(["/lab/script"], sink, timeout)

    def reset(self, hook: str, sink: Sink, timeout: float) -> int:
        """Make the guest as it was after its boot; 0 if that worked."""
        return self._run([hook], sink, timeout)

    def _run(self, words: list[str], sink: Sink, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        self._send_run(words)
        while True:
            try:
                message, data = self._channel.receive_from_living(
                    deadline, PING_EVERY, self._pings)
            except GuestDied:
                if not self._has_reset():
                    raise
                self._start_machine()
                self._send_run(words)
                continue
            except TooLate:
                self._show_stuck(sink)
                self._kill(sink)
                return TIMED_OUT
            if message["event"] == "output":
                sink(data)
            elif message["event"] == "done":
                if message["status"]:
                    self._show_stuck(sink)
                return int(message["status"])
            elif message["event"] == "ready":
                self._note_ready(message)
                self._send_run(words)

    def _has_reset(self) -> bool:
        """Has the guest asked for a reset, so that it is to boot from its disk?"""
        if not self.options.boot_disk:
            return False
        assert self._qemu and self._server
        try:
            if self._qemu.wait(GRACE):
                return False
        except subprocess.TimeoutExpired:
            return False
        sandbox.end(self._server)
        for socket in self.folder.glob("*.sock"):
            socket.unlink()
        return True

    def _send_run(self, words: list[str]) -> None:
        self._channel.send({"do": "run", "words": words,
                            "env": self._environment()})

    def _environment(self) -> dict[str, str]:
        """Variables of a script, beside those of the agent."""
        pairs = (line.split("=", 1) for line in
                 (self.share / "env").read_text().splitlines())
        return {f"LAB_{key}": value for key, value in pairs} | {
            "LAB_BOOT": str(self.boots)}

    def _kill(self, sink: Sink) -> None:
        """End what runs; give up on what the kernel does not let go."""
        if self._ask("kill", "done", sink):
            return
        if not self._channel.answers(GRACE):
            raise GuestFrozen
        say("the script does not die: a process of it is stuck in the kernel")

    def _show_stuck(self, sink: Sink) -> None:
        """Have the agent say what runs, and what waits in the kernel where."""
        if not self._ask("stuck", "stuck", sink):
            say("the agent does not say what is stuck")

    def _ask(self, what: str, answer: str, sink: Sink) -> bool:
        """Send a message and wait for the answer to it; output is passed on."""
        self._channel.send({"do": what})
        deadline = time.monotonic() + GRACE
        try:
            while True:
                message, data = self._channel.receive(deadline)
                if data:
                    sink(data)
                if message["event"] == answer:
                    return True
        except TooLate:
            return False

    def shell(self, terminal: IO[bytes]) -> int:
        """A prompt in the guest on our own terminal."""
        from . import terminal as tty

        return tty.converse(self._channel, terminal, self._environment())

    # Logs -------------------------------------------------------------------

    def diagnose(self, into: Path) -> list[str]:
        """Look at a frozen guest from outside: all of it goes into frozen.log,
        the lines that say most are returned."""
        into.mkdir(parents=True, exist_ok=True)
        assert self._qemu and self._server
        report = frozen.look(
            {"QEMU": self._qemu.pid, "device server": self._server.pid},
            self.folder / "qmp.sock",
            {"console": self.folder / "console.log",
             "kernel": self.share / "out/kernel",
             "qemu": self.folder / "qemu.log",
             "server": self.folder / "server.log"})
        (into / "frozen.log").write_text(report.text)
        return report.essence

    def keep_logs(self, into: Path, answers: bool = True) -> None:
        """Write what happened since the last call into a folder; of a guest
        that no longer answers, there is no journal."""
        into.mkdir(parents=True, exist_ok=True)
        collected = answers and self._collect()
        self._kernel_at = _rest(
            self.share / "out/kernel", self._kernel_at, into / "kernel.log")
        self._console_at = _rest(
            self.folder / "console.log", self._console_at, into / "console.log")
        journal = self.share / "out/journal"
        if journal.exists():
            shutil.copyfile(journal, into / "journal.log")
        if answers and not collected:
            say("the agent no longer answers: no journal of the last part")
        for name in ("qemu.log", "server.log"):
            if (self.folder / name).stat().st_size:
                shutil.copyfile(self.folder / name, into / name)

    def _collect(self) -> bool:
        # What is there is of an earlier scenario.
        (self.share / "out/journal").unlink(missing_ok=True)
        try:
            self._channel.send({"do": "collect"})
            deadline = time.monotonic() + COLLECT_TIMEOUT
            while True:
                message, _ = self._channel.receive(deadline)
                if message["event"] == "collected":
                    return True
        except (GuestDied, TooLate):
            return False

    def _log(self, name: str) -> IO[bytes]:
        return (self.folder / name).open("wb")

    def _tail(self, name: str, lines: int = 15) -> str:
        path = self.folder / name
        text = path.read_text(errors="replace") if path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _last_words(self) -> str:
        return "\n".join(f"--- {name}\n{self._tail(name)}" for name in
                         ("qemu.log", "server.log", "console.log"))


def _rest(source: Path, start: int, target: Path) -> int:
    """Copy a file from `start` on; returns where it ended."""
    if not source.exists():
        return start
    with source.open("rb") as log:
        log.seek(start)
        data = log.read()
    target.write_bytes(data)
    return start + len(data)


def to_stdout(data: bytes) -> None:
    """The sink of `run --script`: our own standard output, at once."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
