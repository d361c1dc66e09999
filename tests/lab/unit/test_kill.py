"""Whatever is killed, nothing stays mounted or running, and the next run works.

Takes a few minutes: it boots guests. Run it with
    PYTHONPATH=tests/lab python3 -m unittest discover -s tests/lab/unit
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

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

    def start(self, script: str) -> subprocess.Popen[bytes]:
        """A run of a script that we can be sure to be in when it prints."""
        file = Path(self.keep) / "script.sh"
        file.write_text(f"#!/bin/sh\n{script}\n")
        return subprocess.Popen(
            [LAB / "run", "--driver", "none", "--keep", self.keep,
             "--script", file],
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

    def test_script_terminated(self) -> None:
        run = self.start("echo up; sleep 1000")
        assert run.stdout
        self.assertEqual(run.stdout.readline(), b"up\n")
        run.terminate()
        self.assertEqual(run.wait(60), 128 + signal.SIGTERM)
        self.check_clean(run.pid)


if __name__ == "__main__":
    unittest.main()
