"""What can be looked at without booting anything; takes a second."""

from __future__ import annotations

import atexit
import contextlib
import importlib.machinery
import importlib.util
import io
import json
import os
import shlex
import signal
import socket
import tempfile
import threading
import time
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from lab import (cache, drivers, frozen, images, kernels, lanes, mirror, options, packages, qemu, scenarios,
                 session, suite)
from lab.cache import LabError, NoSuchBoot
from lab.card import functions, hda, pci, server
from lab.channel import Channel, GuestDied, GuestFrozen, TooLate, address
from lab.images import Images
from lab.sandbox import CommandFailed

AGENT = Path(__file__).parent.parent / "guest/usr/local/lib/lab/agent"
IMAGES = Images(
    toolbox=Path("/c/toolbox"), kernel=Path("/c/k/vmlinuz"),
    initrd=Path("/c/k/initrd"), version="6.12.1-amd64",
    disks=(Path("/c/u/userland.erofs"), Path("/c/k/modules.erofs")),
)


class Mirror(unittest.TestCase):
    def test_one_line_style_gives_the_main_archive_only(self) -> None:
        text = """
            # deb http://old.example/debian trixie main
            deb http://other.example/apt any-suite main
            deb [arch=amd64] https://browser.example/linux/deb/ stable main
            deb [arch=amd64] https://containers.example/linux/debian trixie stable
            deb http://pve.example/debian/pve trixie pve-no-subscription # not main
            deb [arch=amd64 signed-by=/k] http://m.example/debian trixie main
            deb http://m.example/debian-security trixie-security main
        """
        self.assertEqual(
            list(mirror.one_line_style(text)), ["http://m.example/debian"])
        alias = "deb http://m.example/debian/ stable main\n"
        self.assertEqual(list(mirror.one_line_style(alias)), ["http://m.example/debian/"])

    def test_deb822_style_gives_the_main_archive_only(self) -> None:
        text = """Types: deb
URIs: http://m.example/security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: https://containers.example/linux/debian
Suites: bookworm
Components: stable

Types: deb
URIs: https://browser.example/linux/deb
Suites: stable
Components: main

Types: deb deb-src
# URIs: http://comment.example/debian
URIs: http://m.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
"""
        self.assertEqual(
            list(mirror.deb822_style(text)), ["http://m.example/debian"])

    def test_best_is_what_ends_like_debians_mirrors_and_not_a_vendors(self) -> None:
        vendors = ["https://a.example", "https://vpn.example/stable/debian"]
        for one in ("http://m.example/debian", "http://m.example/debian/"):
            self.assertEqual(mirror.best([*vendors, one, "http://second.example/debian"]), one)
        snapshot = "http://s.example/archive/debian/20250520T000000Z"
        self.assertEqual(mirror.best([snapshot]), snapshot)

    def test_every_kind_of_sources_file_is_looked_at_before_one_is_taken(self) -> None:
        with tempfile.TemporaryDirectory() as name, \
                mock.patch.object(mirror, "SOURCES", Path(name)):
            self.assertRaises(LabError, mirror.uri)
            parts = Path(name) / "sources.list.d"
            parts.mkdir()
            (parts / "vendor.list").write_text("deb https://v.example/apt trixie main\n")
            self.assertEqual(mirror.uri(), "https://v.example/apt")
            (parts / "debian.sources").write_text(
                "Types: deb\nURIs: http://m.example/debian\nSuites: trixie\nComponents: main\n")
            self.assertEqual(mirror.uri(), "http://m.example/debian")

    def test_proxies_of_apt_and_no_other_setting(self) -> None:
        dump = ('Acquire "";\nAcquire::http "";\nAcquire::http::Proxy "http://p.example:3142";\n'
                'Acquire::http::Proxy::m.example "DIRECT";\nAcquire::https::Proxy "";\n'
                'Acquire::https::Timeout "30";\n')
        self.assertEqual(mirror.proxies(dump), ['Acquire::http::Proxy "http://p.example:3142"',
                                                'Acquire::http::Proxy::m.example "DIRECT"'])

    def test_a_program_that_fails_is_named(self) -> None:
        with tempfile.TemporaryFile() as log:
            suite = mirror.Suite(Path("/nowhere"), "trixie", log)
            with self.assertRaisesRegex(CommandFailed, "^false x: exit status 1$"):
                suite._output("false", "x")


class Cache(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def place(self, value: str) -> Path:
        with mock.patch.dict(os.environ, XDG_CACHE_HOME=value):
            return cache.root()

    def test_relative_cache_home_is_ignored(self) -> None:
        home = Path.home() / ".cache/gpu-handoff-lab"
        self.assertEqual([self.place(""), self.place("here"), self.place("/c")],
                         [home, home, Path("/c/gpu-handoff-lab")])

    def test_folder_that_another_run_removes_is_not_swept_and_no_error(self) -> None:
        root = self.folder / "gpu-handoff-lab"
        for name in ("run-abc", "toolbox-0123456789ab", "toolbox-ba9876543210"):
            (root / name).mkdir(parents=True)
            os.utime(root / name, (0, 0))
        gone = root / "toolbox-0123456789ab", root / "run-abc"
        real = Path.stat

        def stat(path: Path, **options: bool) -> os.stat_result:
            answer = real(path, **options)
            if path in gone:  # right after it was seen
                path.rmdir()
            return answer

        with mock.patch.dict(os.environ, XDG_CACHE_HOME=str(self.folder)), \
                mock.patch.object(Path, "stat", stat):
            cache.sweep()
        self.assertEqual(sorted(path.name for path in root.iterdir()), ["locks"])

    def test_package_is_the_runs_own_and_goes_with_it(self) -> None:
        package = self.folder / "one_1_amd64.deb"
        package.write_text("first")
        with mock.patch.dict(os.environ, XDG_CACHE_HOME=str(self.folder), LAB_DEB=str(package)), \
                mock.patch.object(atexit, "register") as at_exit:
            copy = packages.package()
            cache.sweep()
            assert copy
            package.write_text("second")
            self.assertEqual((copy.name, copy.read_text()), (package.name, "first"))
            for end in reversed(at_exit.call_args_list):
                end.args[0](*end.args[1:], **end.kwargs)
            self.assertFalse(copy.parent.exists())
            package.unlink()
            self.assertRaisesRegex(LabError, "there is no package /.*deb$", packages.package)

    def ask(self, answer: str | Exception, use: bool = True) -> tuple[str, int]:
        """What comes of a question, and how often it was put."""
        question = mock.Mock(side_effect=[answer])
        with mock.patch.dict(os.environ, XDG_CACHE_HOME=str(self.folder)), \
                contextlib.redirect_stderr(io.StringIO()) as self.told:
            return cache.ask("who", question, lambda _: use), question.call_count

    def test_answer_from_outside_is_asked_for_once_a_day_and_the_last_one_counts(self) -> None:
        record = self.folder / "gpu-handoff-lab/who.txt"
        with self.assertRaisesRegex(LabError, "^who: no answer: away\n"):
            self.ask(CommandFailed("away"))
        self.assertEqual(self.ask("first"), ("first", 1))
        self.assertEqual(self.ask("second"), ("first", 0))
        # What is not in the cache would have to be fetched anyway.
        self.assertEqual(self.ask("second", use=False), ("second", 1))
        os.utime(record, (0, time.time() - cache.ASK_AGAIN - 1))
        self.assertEqual(self.ask(CommandFailed("away")), ("second", 1))
        self.assertIn("who: no answer (away), what it was 1.0 days ago is used", self.told.getvalue())
        self.assertEqual(self.ask("third"), ("third", 1))
        self.assertEqual(self.ask("fourth"), ("third", 0))
        names = sorted(path.name for path in record.parent.iterdir())
        self.assertEqual(names, ["locks", "who.log", "who.txt"])

    def test_new_version_of_a_kernel_is_another_artefact(self) -> None:
        one, two = (kernels._artefact("newest", f"linux-image-amd64={version}\n")
                    for version in ("7.2.1-1", "7.3.4-1"))
        self.assertEqual((one.name, two.name), ("kernel-newest", "kernel-newest"))
        self.assertNotEqual(one.key, two.key)

    def test_socket_below_a_long_path(self) -> None:
        deep = self.folder / ("d" * 200)
        deep.mkdir()
        channel = Channel.listen(deep / "agent.sock")
        self.addCleanup(channel.listener.close)
        line = socket.socket(socket.AF_UNIX)
        self.addCleanup(line.close)
        with address(deep / "agent.sock") as short:
            line.connect(short)
        channel.accept(1.0)
        assert channel.line
        channel.line.close()


class Header(unittest.TestCase):
    def test_every_scenario_of_the_tree_says_what_it_shows(self) -> None:
        for one in scenarios.all_of_them():
            self.assertTrue(one.shows, one.name)

    def test_switches_and_tier_are_read_from_the_top_comment(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "two.sh"
            path.write_text(
                "#!/bin/sh\n# Both cards.\n# More text.\n"
                "# lab: --cards 2 --stub a=1 --timeout 5\n# tier: full\n"
                "echo\n# lab: --cards 9\n")
            one = scenarios.read(path)
        self.assertEqual(one.shows, "Both cards.")
        self.assertEqual((one.tier, one.timeout), ("full", 5.0))
        self.assertEqual(one.boot, options.Options(cards=2, stub=("a=1",)))


    def test_what_is_run_by_its_name_only_is_in_no_tier(self) -> None:
        named = {one.name for one in scenarios.all_of_them() if one.tier == "named"}
        long = {one.name for one in scenarios.select([], "long")}
        self.assertIn("soak", named)
        self.assertIn("desktop", long)
        self.assertFalse(long & {one.name for one in scenarios.select([], "all")})
        for tier in ("fast", "full", "all", "long"):
            self.assertFalse(named & {one.name for one in scenarios.select([], tier)}, tier)
        self.assertEqual([one.name for one in scenarios.select(["soak"], "fast")], ["soak"])


class Suite(unittest.TestCase):
    def test_every_situation_is_one_that_ours_is_judged_by(self) -> None:
        judged: set[str] = set()
        for path in scenarios.FOLDER.glob("anchors*.sh"):
            judged.update(shlex.split(path.read_text().splitlines()[-1]))
        self.assertEqual(judged, set(suite.situations()))

    def test_commands_arrive_in_the_guest_as_they_were_given(self) -> None:
        text = suite.script(["a 'b'; c {gpu}", "d \"$x\""], "", "A'")
        words = shlex.split(text.splitlines()[1])[2:]
        self.assertEqual(words, ["--out", "a 'b'; c {gpu}", "--home", "d \"$x\"", "A'"])

    def test_rows_are_told_from_what_a_tool_prints(self) -> None:
        self.assertEqual(suite.row("-- row: x\nrow: B(a) | held | hangs; names nobody\n"),
                         [["B(a)", "held", "hangs; names nobody"]])


class Possible(unittest.TestCase):
    """What a kernel can do is asked of the kernel, and a boot that cannot be says why."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.kernel = kernels.Kernel(Path(folder.name))
        (self.kernel.folder / "version").write_text("6.1.0-1-amd64\n")
        (self.kernel.folder / "config").write_text(
            "CONFIG_INTEL_IOMMU=y\nCONFIG_INTEL_IOMMU_SVM=m\n# CONFIG_VIRTIO_IOMMU is not set\n")
        obtain = mock.patch.object(kernels, "obtain", return_value=self.kernel)
        obtain.start()
        self.addCleanup(obtain.stop)

    def test_option_is_built_in_or_a_module_or_neither(self) -> None:
        options_of = ("INTEL_IOMMU", "INTEL_IOMMU_SVM", "VIRTIO_IOMMU", "INTEL", "AMD_IOMMU")
        self.assertEqual([self.kernel.has(f"CONFIG_{one}") for one in options_of],
                         [True, True, False, False, False])

    @mock.patch.object(images.cache, "sweep")
    @mock.patch.object(images.toolbox, "root", return_value=Path("/c/toolbox"))
    @mock.patch.object(images.userland, "image", return_value=Path("/c/userland.erofs"))
    def test_iommu_without_a_driver_is_refused_with_role_and_version(self, *_: object) -> None:
        boot = options.Options(kernel="oldest", driver="none")
        self.assertEqual(images.obtain(boot).version, "6.1.0-1-amd64")
        with self.assertRaisesRegex(NoSuchBoot, "oldest kernel, 6.1.0-1-amd64, .*VIRTIO_IOMMU is not"):
            images.obtain(options.Options(kernel="oldest", driver="none", iommu="virtio"))

    @mock.patch.object(drivers, "_not_built", {})
    def test_driver_that_does_not_build_is_tried_once(self) -> None:
        artefact = cache.Artefact("driver-real-oldest", ("x",), mock.Mock())
        with mock.patch.object(drivers, "artefact", return_value=artefact), \
                mock.patch.object(cache, "obtain", side_effect=LabError("no")) as tries:
            for _ in range(2):
                with self.assertRaisesRegex(NoSuchBoot, "driver real, .* of trixie, for .* 6.1.0-1-amd64\nno$"):
                    drivers.layer("real", "oldest")
        self.assertEqual(tries.call_count, 1)


class CommandLine(unittest.TestCase):
    def words(self, **switches: object) -> list[str]:
        boot = options.Options(**switches)  # type: ignore[arg-type]
        return qemu.command(boot, IMAGES, Path("/c"), "tcg")

    def test_sixteen_cards_leave_the_high_slots_alone(self) -> None:
        ports = [word for word in self.words(cards=16)
                 if word.startswith("pcie-root-port")]
        self.assertEqual(len(ports), 16)
        self.assertIn("addr=0x13.0", ports[-1])

    def test_each_function_has_a_socket(self) -> None:
        text = " ".join(self.words(cards=2, functions=4))
        for card in range(2):
            for function in range(4):
                self.assertIn(f"/lab/card{card}.{function}.sock", text)

    def test_amds_iommu_comes_with_what_its_board_has(self) -> None:
        for iommu, count in (("amd", 1), ("intel", 0)):
            found = [json.loads(word) for word in self.words(iommu=iommu) if "southbridge" in word]
            self.assertEqual([one["addr"] for one in found], ["0x14.0"] * count)
        self.assertEqual(functions.southbridge().read_config(pci.PCI_CLASS_REVISION + 2, 2), b"\x05\x0c")

    def test_no_iommu_device_without_iommu(self) -> None:
        self.assertNotIn("iommu", " ".join(self.words(iommu="none")))


class Life(unittest.TestCase):
    """The line to an agent that lives, sleeps, or has gone."""

    def setUp(self) -> None:
        ours, self.agent = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(self.agent.close)
        self.channel = Channel(ours, ours)

    def say(self, *messages: dict[str, object]) -> None:
        for message in messages:
            self.agent.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float) -> dict[str, object]:
        deadline = time.monotonic() + seconds
        return self.channel.receive_from_living(deadline, every=0.05, pings=3)[0]

    def asked(self) -> int:
        """How many pings have reached the agent."""
        self.agent.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            return self.agent.recv(4096).count(b'"ping"')
        return 0

    def test_silence_is_a_freeze_after_so_many_pings(self) -> None:
        with self.assertRaises(GuestFrozen):
            self.receive(60)
        self.assertEqual(self.asked(), 3)

    def test_an_agent_that_answers_pings_is_waited_for(self) -> None:
        def answer() -> None:
            while self.agent.recv(4096):
                self.say({"event": "pong"})

        threading.Thread(target=answer, daemon=True).start()
        with self.assertRaises(TooLate):
            self.receive(1.0)
        self.agent.shutdown(socket.SHUT_RDWR)

    def test_any_word_starts_the_count_again(self) -> None:
        for _ in range(3):
            with self.assertRaises(TooLate):
                self.receive(0.12)
            self.say({"event": "pong"}, {"event": "done"})
            self.assertEqual(self.receive(1.0)["event"], "done")

    def test_no_ping_while_there_is_something_to_receive(self) -> None:
        self.say({"event": "output"})
        self.assertEqual(self.receive(60)["event"], "output")
        self.assertEqual(self.asked(), 0)

    def test_a_guest_that_hangs_up_has_died(self) -> None:
        self.agent.close()
        with self.assertRaises(GuestDied):
            self.receive(60)


def agent_on(port: int) -> Any:
    """The guest's agent, with `port` as its line and no kernel log."""
    loader = importlib.machinery.SourceFileLoader("agent", str(AGENT))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader("agent", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    module.HOME = "/"  # type: ignore[attr-defined]
    with mock.patch.object(os, "open", lambda *_: port), \
            mock.patch.object(module.Agent, "follow_kernel_log"):
        return module.Agent()


class Agent(unittest.TestCase):
    """The guest's agent, on this machine, its events in any order."""

    def setUp(self) -> None:
        ours, theirs = socket.socketpair()
        self.agent = agent_on(theirs.detach())
        self.addCleanup(os.close, self.agent.port)
        self.addCleanup(self.agent.waiting.close)
        self.addCleanup(ours.close)
        self.channel = Channel(ours, ours)

    def start(self, script: str) -> tuple[int, int, int]:
        with open(os.devnull, "rb") as nothing:
            output, end = os.pipe()
            self.agent.spawn({"words": ["/bin/sh", "-c", script]}, output, end,
                             os.dup(nothing.fileno()))
        child: tuple[int, int, int] = self.agent.child
        return child

    def answers(self, count: int) -> list[tuple[str, object]]:
        got = (self.channel.receive(time.monotonic() + 10) for _ in range(count))
        return [(message["event"], data.decode() or message.get("status"))
                for message, data in got]

    def ready(self, *files: int) -> dict[int, Callable[[], object]]:
        """What the agent would call, once all of these files are ready."""
        waiting = self.agent.waiting
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            events = {key.fd: key.data for key, _ in waiting.select(0.1)}
            if set(files) <= set(events):
                return events
        raise AssertionError("not ready")

    def test_output_and_end_in_one_batch_in_either_order(self) -> None:
        for first in (1, 2):
            child = self.start("echo said; exit 3")
            events = self.ready(*child[1:])
            events[child[first]]()
            events[child[3 - first]]()
            self.assertEqual(self.answers(2), [("output", "said\n"), ("done", 3)])
            self.assertIsNone(self.agent.child)

    def test_script_that_was_given_up_is_not_taken_for_the_next_one(self) -> None:
        stuck = self.start("exec sleep 1000")
        second = self.start("echo second")
        os.kill(stuck[0], signal.SIGKILL)
        os.waitpid(stuck[0], 0)
        events = self.ready(*second[1:])
        events[second[2]]()
        events[second[1]]()
        self.assertEqual(self.answers(2), [("output", "second\n"), ("done", 0)])
        self.assertEqual(list(self.agent.waiting.get_map()), [self.agent.port])

    def test_script_without_an_interpreter_line_is_run_by_sh(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            guest = session.Guest.__new__(session.Guest)
            guest.share = Path(name)
            mine = Path(name) / "mine"
            for text, answer in (("echo $1 $0; exit 3", 3), ("", 0), ("#!/bin/false\n", 1)):
                mine.write_text(text)
                mine.chmod(0o644)
                with mock.patch.object(guest, "_run", return_value=0) as run:
                    guest.run(mine, lambda _: None, 1.0)
                # What the lab would have the agent run, but not in /lab.
                self.assertEqual(run.call_args.args[0], ["/lab/script"])
                with open(os.devnull, "rb") as nothing:
                    output, end = os.pipe()
                    self.agent.spawn({"words": [f"{name}/script", "word"]}, output, end,
                                     os.dup(nothing.fileno()))
                child = self.agent.child
                self.ready(child[2])[child[2]]() if "echo" in text else None
                self.ready(child[1])[child[1]]()
                expected: list[tuple[str, object]] = [("done", answer)]
                if "echo" in text:
                    expected.insert(0, ("output", f"word {name}/script\n"))
                self.assertEqual(self.answers(len(expected)), expected)

    def test_ping_is_answered_while_a_script_runs(self) -> None:
        child = self.start("exec sleep 1000")
        self.channel.send({"do": "ping"})
        self.ready(self.agent.port)[self.agent.port]()
        self.assertEqual(self.answers(1), [("pong", None)])
        self.channel.send({"do": "kill"})
        self.ready(self.agent.port)[self.agent.port]()
        self.ready(child[1])[child[1]]()
        self.assertEqual(self.answers(1), [("done", 128 + signal.SIGKILL)])

    def test_what_runs_is_shown(self) -> None:
        child = self.start("exec sleep 1000")
        self.addCleanup(os.waitpid, child[0], 0)
        self.addCleanup(os.kill, child[0], signal.SIGKILL)
        deadline = time.monotonic() + 10
        while b"sleep" not in Path(f"/proc/{child[0]}/cmdline").read_bytes():
            self.assertLess(time.monotonic(), deadline)
        self.agent.do_stuck({}, b"")
        message, data = self.channel.receive(time.monotonic() + 10)
        self.assertEqual(message["event"], "stuck")
        self.assertRegex(data.decode(), rf"-- runs: {child[0]} S \S+ sleep 1000")


class FakeGuest:
    """A guest that freezes so many times, and passes after that."""

    freezes = 0
    boots = 0

    def __init__(self, *_: object) -> None:
        FakeGuest.boots += 1

    def __enter__(self) -> FakeGuest:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, *_: object) -> int:
        if FakeGuest.boots <= FakeGuest.freezes:
            raise GuestFrozen
        return 0

    def reset(self, *_: object) -> int:
        return 0

    def kill(self) -> None:
        pass

    def diagnose(self, into: Path) -> list[str]:
        (into / "frozen.log").write_text("all of it\n")
        return ["what says most"]

    def keep_logs(self, into: Path, answers: bool = True) -> None:
        pass


class Tier(unittest.TestCase):
    """What is counted when it is the lab that fails."""

    def results(self, broken: object, method: str) -> tuple[object, int, str]:
        """What two scenarios of two boots end in and print, and how often it was tried."""
        FakeGuest.freezes, FakeGuest.boots = 0, 0
        two = [scenarios.Scenario(Path(name), "", "fast", options.Options(cards=cards), 1.0, "", False)
               for cards, name in enumerate(("one.sh", "two.sh"), 1)]
        output = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, \
                mock.patch("lab.session.Guest", FakeGuest), \
                mock.patch.object(FakeGuest, method, side_effect=broken) as tries, \
                contextlib.redirect_stdout(output):
            try:
                end: object = scenarios.run(two, Path(folder), lambda: None)
            except BaseException as error:
                end = type(error)
        return end, tries.call_count, output.getvalue()

    def test_image_that_does_not_build_ends_the_tier(self) -> None:
        self.assertEqual(self.results(LabError("building x failed"), "__init__"),
                         (LabError, 1, "0 passed, 2 failed\n"))

    def test_boot_that_cannot_be_fails_its_scenarios_and_no_others(self) -> None:
        def boot(*_: object) -> None:
            FakeGuest.boots += 1
            if FakeGuest.boots == 1:
                raise NoSuchBoot("no driver")

        end, tries, output = self.results(boot, "__init__")
        self.assertEqual((end, tries), (1, 2))
        self.assertRegex(output, r"^one: FAILED \(0.0 s\)\n    the lab: no driver\ntwo: ok .*\n"
                                 r"1 passed, 1 failed\n$")

    def test_boot_that_fails_is_one_scenarios_failure_each(self) -> None:
        for error in (LabError("no"), CommandFailed("no"), OSError("no")):
            end, tries, output = self.results(error, "__enter__")
            self.assertEqual((end, tries), (1, 2))
            self.assertEqual(output.count("FAILED (0.0 s)\n    the lab: no\n"), 2)
            self.assertTrue(output.endswith("\n0 passed, 2 failed\n"))

    def test_full_disk_is_the_failure_of_the_scenario_that_meets_it(self) -> None:
        end, tries, output = self.results([OSError("disk full"), 0], "run")
        self.assertEqual((end, tries), (1, 2))
        self.assertIn("one: FAILED (0.0 s)\n    the lab: disk full\ntwo: ok", output)
        self.assertTrue(output.endswith("\n1 passed, 1 failed\n"))

    def test_what_a_signal_leaves_out_counts_as_failed(self) -> None:
        end, tries, output = self.results([0, SystemExit(143)], "run")
        self.assertEqual((end, tries), (SystemExit, 2))
        self.assertRegex(output, r"one: ok \(.*\)\n1 passed, 1 failed\n$")

    def test_package_that_does_not_build_leaves_a_count(self) -> None:
        output = io.StringIO()
        one = scenarios.Scenario(Path("one.sh"), "", "fast", options.Options(), 1.0, "", False)
        with contextlib.redirect_stdout(output), self.assertRaises(LabError):
            scenarios.run([one], Path("/nowhere"), mock.Mock(side_effect=LabError))
        self.assertEqual(output.getvalue(), "0 passed, 1 failed\n")


class Lanes(unittest.TestCase):
    """Several guests at a time."""

    def results(self, run: Callable[..., int], lane_died: list[str]) -> tuple[object, str]:
        """What three scenarios of one boot, two guests at a time, end in and print."""
        FakeGuest.freezes, FakeGuest.boots = 0, 0
        three = [scenarios.Scenario(Path(name), "", "fast", options.Options(), 1.0, "", False)
                 for name in ("one.sh", "two.sh", "three.sh")]
        output = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, \
                mock.patch("lab.session.Guest", FakeGuest), \
                mock.patch.object(FakeGuest, "run", run), \
                mock.patch.object(FakeGuest, "kill", lambda _: lane_died.append("killed")), \
                mock.patch("lab.images.obtain"), contextlib.redirect_stdout(output):
            try:
                end: object = scenarios.run(three, Path(folder), lambda: None, guests=2)
            except BaseException as error:
                end = error
        return end, output.getvalue()

    def test_two_guests_run_at_once_and_share_what_waits(self) -> None:
        both, met = threading.Barrier(2), []

        def run(_: object, path: Path, *__: object) -> int:
            if path.stem != "three":
                both.wait(60)  # as long as it takes: alone, none passes
                met.append(path.stem)
            return 0

        end, output = self.results(run, [])
        self.assertEqual((end, FakeGuest.boots), (0, 2))
        self.assertEqual(sorted(met), ["one", "two"])
        self.assertTrue(output.endswith("3 passed, 0 failed\n"), output)

    def test_what_leaves_something_on_a_disk_has_a_guest_of_its_own(self) -> None:
        for persist, boots in ((False, 1), (True, 2)):
            FakeGuest.freezes, FakeGuest.boots = 0, 0
            two = [scenarios.Scenario(Path(name), "", "fast", options.Options(persist=persist), 1.0, "", False)
                   for name in ("one.sh", "two.sh")]
            output = io.StringIO()
            with tempfile.TemporaryDirectory() as folder, mock.patch("lab.session.Guest", FakeGuest), \
                    mock.patch("lab.images.obtain"), contextlib.redirect_stdout(output):
                self.assertEqual(scenarios.run(two, Path(folder), lambda: None), 0)
            self.assertEqual(FakeGuest.boots, boots, persist)

    def test_a_signal_ends_the_guests_and_what_they_ran_is_no_result(self) -> None:
        ended: list[str] = []

        def run(_: object, path: Path, *__: object) -> int:
            if path.stem == "one":
                os.kill(os.getpid(), signal.SIGUSR1)
            deadline = time.monotonic() + 60
            while not ended and time.monotonic() < deadline:
                time.sleep(0.01)
            raise GuestDied

        def leave(*_: object) -> None:
            raise SystemExit(138)

        before = signal.signal(signal.SIGUSR1, leave)
        self.addCleanup(signal.signal, signal.SIGUSR1, before)
        end, output = self.results(run, ended)
        self.assertIsInstance(end, SystemExit)
        self.assertTrue(ended)
        self.assertEqual(output, "0 passed, 3 failed\n")

    def test_what_the_lab_cannot_build_ends_both(self) -> None:
        ended: list[str] = []

        def run(_: object, path: Path, *__: object) -> int:
            if path.stem == "one":
                raise LookupError("a fault of the lab's own")
            deadline = time.monotonic() + 60
            while not ended and time.monotonic() < deadline:
                time.sleep(0.01)
            raise GuestDied

        end, output = self.results(run, ended)
        self.assertIsInstance(end, LookupError)
        self.assertEqual(output, "0 passed, 3 failed\n")

    def test_the_boot_that_may_take_longest_is_the_first(self) -> None:
        def scenario(name: str, cards: int, timeout: float) -> scenarios.Scenario:
            return scenarios.Scenario(
                Path(name), "", "fast", options.Options(cards=cards), timeout, "", False)

        work = lanes.Work([scenario("a", 1, 600), scenario("b", 2, 600), scenario("c", 2, 700)])
        first, second = work.boots()
        self.assertEqual((first.cards, second.cards), (2, 1))
        self.assertEqual([one.name for one in iter(lambda: work.take(first), None)], ["c", "b"])


class Frozen(unittest.TestCase):
    def results(self, freezes: int) -> tuple[int, str, list[str]]:
        """Exit status, output and folders of two scenarios of one boot."""
        FakeGuest.freezes, FakeGuest.boots = freezes, 0
        two = [scenarios.Scenario(Path(name), "", "fast", options.Options(), 1.0, "", False)
               for name in ("one.sh", "two.sh")]
        output = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, \
                mock.patch("lab.session.Guest", FakeGuest), \
                contextlib.redirect_stdout(output):
            status = scenarios.run(two, Path(folder), lambda: None)
            logs = [str(path.relative_to(folder))
                    for path in sorted(Path(folder).glob("*/frozen.log"))]
        return status, output.getvalue(), logs

    def test_no_freeze_is_not_spoken_of(self) -> None:
        status, output, logs = self.results(0)
        self.assertEqual((status, FakeGuest.boots, logs), (0, 1, []))
        self.assertEqual(output.count("ok (0.0 s)\n"), 2)
        self.assertNotIn("froze", output.lower())

    def test_one_freeze_is_a_second_boot_and_a_loud_pass(self) -> None:
        status, output, logs = self.results(1)
        self.assertEqual((status, FakeGuest.boots, logs), (0, 2, ["one/frozen.log"]))
        for text in ("one: FROZEN", "    what says most\n",
                     "one: ok, AFTER THE GUEST FROZE ONCE", "two: ok (0.0 s)\n",
                     "guests froze under: one\n2 passed, 0 failed\n"):
            self.assertIn(text, output)

    def test_two_freezes_are_a_failure_and_the_next_one_is_run(self) -> None:
        status, output, logs = self.results(2)
        self.assertEqual((status, FakeGuest.boots), (1, 3))
        self.assertEqual(logs, ["one/frozen.log", "one.again/frozen.log"])
        for text in ("one: FAILED", "froze for the second time", "two: ok (0.0 s)\n",
                     "1 passed, 1 failed\n"):
            self.assertIn(text, output)

    def test_each_thread_of_a_process_and_its_children_has_a_line(self) -> None:
        lines = frozen.threads(os.getpid())
        self.assertRegex(lines[os.getpid(), os.getpid()], r"^\d+ \S.*: R, waits in ")

    def test_where_each_processor_is(self) -> None:
        text = ("CPU#0\nRAX=00 RBX=01\nRIP=ffffffff81 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\n"
                "\nCPU#1\nRIP=00007f0000 RFL=00000202 [-------] CPL=3 II=0 A20=1 SMM=0 HLT=0\n")
        self.assertEqual(frozen.processors(text.splitlines()),
                         ["CPU#0 RIP=ffffffff81 HLT=1", "CPU#1 RIP=00007f0000 HLT=0"])

    def monitor(self, answers: list[bytes]) -> Path:
        """The socket of a QEMU that says these things and no more."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name) / "qmp.sock"
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            line, _ = listener.accept()
            self.addCleanup(line.close)
            for answer in answers:
                line.sendall(answer + b"\n")
                line.recv(4096)

        threading.Thread(target=serve, daemon=True).start()
        return path

    def test_monitor_passes_over_events_and_returns_the_answer(self) -> None:
        path = self.monitor([b'{"QMP": {}}', b'{"return": {}}',
                             b'{"event": "STOP"}\n{"return": {"status": "paused"}}'])
        with contextlib.closing(frozen.Monitor(path)) as monitor:
            self.assertEqual(monitor.ask("query-status"), {"status": "paused"})

    def test_monitor_that_says_nothing_is_given_up_in_time(self) -> None:
        for answers in ([], [b'{"QMP": {}}'], [b'{"QMP": {}}', b'{"return": {}}']):
            path = self.monitor(answers)
            with self.assertRaises(OSError), \
                    contextlib.closing(frozen.Monitor(path, 0.2)) as monitor:
                monitor.ask("query-status")


class Card(unittest.TestCase):
    def setUp(self) -> None:
        self.card = [functions.make(kind, f"card0.{kind}") for kind in (0, 1)]

    def test_identifiers_and_classes(self) -> None:
        gpu, audio = self.card
        self.assertEqual(gpu.read_config(0, 4), b"\xde\x10\x04\x22")
        self.assertEqual(gpu.read_config(9, 3), b"\x00\x00\x03")
        self.assertEqual(audio.read_config(0, 4), b"\xde\x10\xef\x1a")
        self.assertEqual(audio.read_config(9, 3), b"\x00\x03\x04")

    def test_bar_gives_its_size_when_ones_are_written(self) -> None:
        gpu = self.card[0]
        gpu.write_config(pci.PCI_BASE_ADDRESS_0, b"\xff" * 4)
        self.assertEqual(gpu.read_config(pci.PCI_BASE_ADDRESS_0, 4),
                         (0x100000000 - (16 << 20)).to_bytes(4, "little"))

    def test_flr_resets_unless_it_is_made_not_to(self) -> None:
        gpu = self.card[0]
        flr = pci.EXP_DEVCTL_FLR.to_bytes(2, "little")
        gpu.write_config(pci.EXP_DEVCTL, flr)
        self.assertEqual(gpu.resets, 1)
        self.assertEqual(server.obey([self.card], "card0 noflr"), "ok")
        gpu.write_config(pci.EXP_DEVCTL, flr)
        self.assertEqual(gpu.resets, 1)

    def test_dead_reads_ones_and_well_undoes_it(self) -> None:
        gpu = self.card[0]
        server.obey([self.card], "card0 dead")
        self.assertEqual(gpu.read_config(0, 4), b"\xff" * 4)
        self.assertEqual(gpu.read_bar(0, 0, 4), b"\xff" * 4)
        server.obey([self.card], "card0 well")
        self.assertEqual(gpu.read_bar(0, 0, 4), b"\xa1\x00\x20\xb7")

    def test_what_cannot_be_done_is_said(self) -> None:
        for line in ("", "card0", "card1 dead", "cardx dead", "card0 slow x"):
            self.assertRegex(server.obey([self.card], line), "^error")

    def test_codec_has_one_output_pin(self) -> None:
        self.assertEqual(hda.codec(0x000F0000), hda.CODEC_ID)
        self.assertEqual(hda.codec(0x003F0009), 0x00400381)


if __name__ == "__main__":
    unittest.main()
