"""Whatever is killed, nothing stays mounted or running, and the next run works;
what takes too long is ended, and a guest that freezes is tried once more.

Takes a few minutes: it boots guests. Run it with
    PYTHONPATH=tests/lab python3 -m unittest discover -s tests/lab/unit
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

from lab import scenarios

LAB = Path(__file__).parent.parent
PATIENCE = 240.0


def processes(run: str) -> list[int]:
    """Processes of the run whose folder's name contains `run`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            here = (path / "cwd").readlink(), (path / "root").readlink()
            words = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if run in str(here) or f"/runs/{run}".encode() in words:
            found.append(int(path.name))
    return found


class Kill(unittest.TestCase):
    def setUp(self) -> None:
        self.mounts = Path("/proc/self/mounts").read_text()
        self.keep = tempfile.mkdtemp(prefix="lab-kill-")
        self.addCleanup(shutil.rmtree, self.keep, ignore_errors=True)

    def start(self, script: str, *switches: str) -> subprocess.Popen[bytes]:
        """A run of a script that we can be sure to be in when it prints."""
        file = Path(self.keep) / "script.sh"
        file.write_text(f"#!/bin/sh\n{script}\n")
        return subprocess.Popen(
            [LAB / "run", "--driver", "none", "--keep", self.keep,
             "--script", file, *switches],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=dict(os.environ, LAB_DEB=""),
        )

    def check_clean(self, run: int) -> None:
        """Nothing of that run is left within a few seconds."""
        deadline = time.monotonic() + 10
        while processes(f"{run}-") and time.monotonic() < deadline:
            time.sleep(0.1)
        self.assertEqual(processes(f"{run}-"), [])
        self.assertEqual(Path("/proc/self/mounts").read_text(), self.mounts)

    def check_next_run(self) -> None:
        done = self.start("echo fine")
        output, _ = done.communicate(timeout=PATIENCE)
        self.assertEqual((done.returncode, output), (0, b"fine\n"))

    def test_script_killed_during_the_boot(self) -> None:
        run = self.start("echo up; sleep 1000")
        time.sleep(8)  # any moment of the boot will do
        run.send_signal(signal.SIGKILL)
        run.wait()
        self.check_clean(run.pid)

    def test_script_killed_then_the_next_run_works(self) -> None:
        run = self.start("echo up; sleep 1000")
        assert run.stdout
        self.assertEqual(run.stdout.readline(), b"up\n")
        self.assertNotEqual(processes(f"{run.pid}-"), [])
        run.send_signal(signal.SIGKILL)
        run.wait()
        self.check_clean(run.pid)
        self.check_next_run()

    def test_qemu_killed(self) -> None:
        run = self.start("echo up; sleep 1000")
        assert run.stdout
        self.assertEqual(run.stdout.readline(), b"up\n")
        for pid in processes(f"{run.pid}-"):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if re.match(rb"qemu", words) or b"chroot" in words:
                os.kill(pid, signal.SIGKILL)
        for path in Path("/proc").glob(f"{run.pid}/task/*/children"):
            for child in path.read_text().split():
                if b"qemu-system" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)
        self.assertEqual(run.wait(30), 126)
        self.check_clean(run.pid)

    def test_script_that_takes_too_long_is_ended_and_what_it_waits_for_is_shown(self) -> None:
        # With it, that --ids reaches the card: each boot costs half a minute.
        run = self.start(
            "lspci -n -s 01:00.0; modprobe -r nvidia_drm; hold /dev/nvidia0 &\n"
            "until fuser -s /dev/nvidia0; do sleep 0.1; done\n"
            "echo 0000:01:00.0 >/sys/bus/pci/drivers/nvidia/unbind",
            "--driver", "stub", "--ids", "10de:2684", "--timeout", "15")
        output, _ = run.communicate(timeout=PATIENCE)
        text = output.decode()
        self.assertEqual(run.returncode, 124, text)
        self.assertIn("01:00.0 0300: 10de:2684", text)
        self.assertRegex(text, r"-- runs: \d+ S \S+ /usr/bin/python3 -IS /usr/local/bin/hold")
        self.assertRegex(text, r"-- blocked: \d+ script\n(--  .*\n)*--  .* nv_remove\S*\+")
        self.check_clean(run.pid)

    def test_script_terminated(self) -> None:
        run = self.start("echo up; sleep 1000")
        assert run.stdout
        self.assertEqual(run.stdout.readline(), b"up\n")
        run.terminate()
        self.assertEqual(run.wait(60), 128 + signal.SIGTERM)
        self.check_clean(run.pid)


class Freeze(unittest.TestCase):
    def test_agent_that_stops_is_a_freeze_and_the_look_from_outside_says_much(self) -> None:
        with tempfile.TemporaryDirectory(prefix="lab-freeze-") as name:
            folder, output = Path(name), io.StringIO()
            script = folder / "stopped.sh"
            script.write_text("#!/bin/sh\n# Stops its parent, the agent.\n"
                              "# lab: --driver none\n"
                              "kill -STOP $PPID\nexec sleep 1000\n")
            # Of two minutes a test can spare ten seconds.
            with mock.patch("lab.session.PING_EVERY", 2.0), \
                    contextlib.redirect_stdout(output):
                status = scenarios.run([scenarios.read(script)], folder, lambda: None)
            logs = [folder / "stopped/frozen.log", folder / "stopped.again/frozen.log"]
            text = logs[0].read_text()
            self.assertTrue(logs[1].exists())
        self.assertEqual(status, 1)
        self.assertRegex(output.getvalue(), r"stopped: FROZEN \([12]\d\.")
        self.assertIn("the guest froze for the second time", output.getvalue())
        self.assertIn("    CPU#1 RIP=", output.getvalue())
        # QEMU, its processors, its threads; then the guest's own kernel.
        for words in ('QEMU says: {', 'RIP=', ' CPU 0/TCG: ',
                      'threads of the device server', 'sysrq: Show Blocked State',
                      'sysrq: Show backtrace of all active CPUs'):
            self.assertIn(words, text)


if __name__ == "__main__":
    unittest.main()
