"""What is in the package, and what Debian's own tools say of it.

    PACKAGE=target/package/gpu-handoff_*.deb python3 -m unittest -v tests/package/test_package.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import unittest
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import trees  # noqa: E402

TOP = Path(__file__).parents[2]
# Bytes. 'check' and 'prepare' are a quarter of the binary, and it is not to grow for what is not worth it.
PACKAGE_AT_MOST, BINARY_AT_MOST = 2_000_000, 2_949_162
# Debian 12's, which is Proxmox VE 8's.
OLDEST_LIBC = (2, 36)
# What 'systemd-analyze security' gives: 0 is a unit that can do nothing, 10 one that may do all. The reasons are in the units.
EXPOSED_AT_MOST = {
    "gpu-handoff-watch@.service": 1.5,
    "gpu-handoff-home@.service": 9.7,
    "gpu-handoff-recover.service": 9.7,
    "gpu-handoff-stopped.service": 9.7,
    "gpu-handoff-tell@.service": 7.0,
    "gpu-to-nvidia.service": 9.7,
    "gpu-to-vfio.service": 9.7,
}
FILES = """
/etc/gpu-handoff/config.toml 644
/usr/lib/systemd/system/gpu-handoff-home@.service 644
/usr/lib/systemd/system/gpu-handoff-recover.service 644
/usr/lib/systemd/system/gpu-handoff-stopped.service 644
/usr/lib/systemd/system/gpu-handoff-tell@.service 644
/usr/lib/systemd/system/gpu-handoff-watch@.service 644
/usr/lib/systemd/system/gpu-to-nvidia.service 644
/usr/lib/systemd/system/gpu-to-vfio.service 644
/usr/lib/tmpfiles.d/gpu-handoff.conf 644
/usr/sbin/gpu-handoff 755
/usr/share/bash-completion/completions/gpu-handoff 644
/usr/share/doc/gpu-handoff/README.md 644
/usr/share/doc/gpu-handoff/SECURITY.md 644
/usr/share/doc/gpu-handoff/ansible/README.md 644
/usr/share/doc/gpu-handoff/ansible/gpu_handoff/defaults/main.yml 644
/usr/share/doc/gpu-handoff/ansible/gpu_handoff/meta/main.yml 644
/usr/share/doc/gpu-handoff/ansible/gpu_handoff/tasks/main.yml 644
/usr/share/doc/gpu-handoff/changelog.Debian.gz 644
/usr/share/doc/gpu-handoff/copyright 644
/usr/share/doc/gpu-handoff/docs/checks.md 644
/usr/share/doc/gpu-handoff/docs/clusters.md 644
/usr/share/doc/gpu-handoff/docs/commands.md 644
/usr/share/doc/gpu-handoff/docs/comparison.md 644
/usr/share/doc/gpu-handoff/docs/containers-beside-vms.md 644
/usr/share/doc/gpu-handoff/docs/faults.md 644
/usr/share/doc/gpu-handoff/docs/messages.md 644
/usr/share/doc/gpu-handoff/docs/multi-gpu.md 644
/usr/share/doc/gpu-handoff/docs/policies.md 644
/usr/share/doc/gpu-handoff/docs/single-gpu.md 644
/usr/share/doc/gpu-handoff/docs/troubleshooting.md 644
/usr/share/doc/gpu-handoff/examples/inference.toml 644
/usr/share/doc/gpu-handoff/examples/workstation.toml 644
/usr/share/doc/gpu-handoff/grafana/README.md 644
/usr/share/doc/gpu-handoff/grafana/gpu-handoff.json 644
/usr/share/doc/gpu-handoff/guest-probe/probe.ps1 644
/usr/share/doc/gpu-handoff/guest-probe/probe.sh 644
/usr/share/doc/gpu-handoff/schemas/README.md 644
/usr/share/doc/gpu-handoff/schemas/attach.json 644
/usr/share/doc/gpu-handoff/schemas/check.json 644
/usr/share/doc/gpu-handoff/schemas/groups.json 644
/usr/share/doc/gpu-handoff/schemas/history.json 644
/usr/share/doc/gpu-handoff/schemas/holders.json 644
/usr/share/doc/gpu-handoff/schemas/plan.json 644
/usr/share/doc/gpu-handoff/schemas/report.json 644
/usr/share/doc/gpu-handoff/schemas/status.json 644
/usr/share/doc/gpu-handoff/snippets.md 644
/usr/share/fish/vendor_completions.d/gpu-handoff.fish 644
/usr/share/gpu-handoff/snippets/chain 755
/usr/share/gpu-handoff/snippets/removed 755
/usr/share/lintian/overrides/gpu-handoff 644
/usr/share/man/man5/gpu-handoff.toml.5.gz 644
/usr/share/man/man8/gpu-handoff.8.gz 644
/usr/share/pve-manager/templates/default/gpu-handoff-body.txt.hbs 644
/usr/share/pve-manager/templates/default/gpu-handoff-subject.txt.hbs 644
/usr/share/zsh/vendor-completions/_gpu-handoff 644
"""


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Package(unittest.TestCase):
    """The one that tests/build-deb has built."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.deb = Path(os.environ["PACKAGE"]).resolve()
        cls.folder = Path(tempfile.mkdtemp(prefix="gpu-handoff-package-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        cls.root = cls.folder / "root"
        subprocess.run(["dpkg-deb", "--extract", cls.deb, cls.root], check=True)
        cls.binary = cls.root / "usr/sbin/gpu-handoff"

    def control(self, field: str) -> str:
        return output("dpkg-deb", "--field", self.deb, field).strip()

    def test_files_and_modes(self) -> None:
        found = [(f"/{path.relative_to(self.root)}", f"{path.stat().st_mode & 0o7777:o}")
                 for path in sorted(self.root.rglob("*")) if not path.is_dir()]
        self.assertEqual(found, [tuple(line.rsplit(" ", 1)) for line in FILES.strip().splitlines()])
        owners = {line.split()[1] for line in output("dpkg-deb", "--contents", self.deb).splitlines()}
        self.assertLessEqual(owners, {"0/0", "root/root"})
        control = self.folder / "control"
        subprocess.run(["dpkg-deb", "--control", self.deb, control], check=True)
        self.assertEqual((control / "conffiles").read_text().split(), ["/etc/gpu-handoff/config.toml"])
        self.assertEqual(sorted(p.name for p in control.iterdir()), ["conffiles", "control", "postinst", "postrm", "prerm"])

    def test_relations_and_the_oldest_release_it_installs_on(self) -> None:
        depends = self.control("Depends")
        libc = re.search(r"libc6 \(>= (\d+)\.(\d+)\)", depends)
        self.assertEqual((int(libc[1]), int(libc[2])), OLDEST_LIBC, depends)
        # The dependency is written by hand: it has to cover what the binary asks of the loader.
        headers = output("objdump", "-p", self.binary)
        asked = {(int(a), int(b)) for a, b in re.findall(r"GLIBC_(\d+)\.(\d+)", headers)}
        self.assertLessEqual(max(asked), OLDEST_LIBC)
        needed = set(re.findall(r"NEEDED\s+(\S+)", headers))
        self.assertLessEqual(needed, {"libc.so.6", "ld-linux-x86-64.so.2"})
        for relation in ("kmod", "systemd"):
            self.assertIn(relation, depends.split(", "))
        self.assertLess(len(self.control("Description").splitlines()[0]), 80)
        self.assertEqual((self.control("Recommends"), self.control("Enhances")), ("pciutils", "qemu-server"))

    def test_sizes(self) -> None:
        package, binary = self.deb.stat().st_size, self.binary.stat().st_size
        print(f"\n{self.deb.name}: {package} bytes, {self.binary.name}: {binary} bytes")
        self.assertLess(package, PACKAGE_AT_MOST)
        self.assertLess(binary, BINARY_AT_MOST)

    def test_the_binary_has_no_path_of_this_machine_and_no_switch_of_the_tests(self) -> None:
        content = self.binary.read_bytes()
        for text in (str(TOP), str(Path.home() / ".cargo"), "GPU_HANDOFF_TEST"):
            self.assertNotIn(text.encode(), content, text)

    def test_an_error_is_said_where_backtraces_are_asked_for(self) -> None:
        """It has no tables to find one by: who looks for one is ended."""
        for value in ("0", "1", "full"):
            environment = {**os.environ, "RUST_BACKTRACE": value, "RUST_LIB_BACKTRACE": value}
            for words, status in ((["111"], 2), (["plan", "--vm", "999999999"], 3)):
                done = subprocess.run([self.binary, *words], env=environment, capture_output=True, text=True, check=False)
                self.assertEqual(done.returncode, status, done)
                self.assertIn("gpu-handoff: error: ", done.stderr)

    def test_the_binary_lists_its_crates_and_each_direct_one_has_its_reason(self) -> None:
        section = self.folder / "dep-v0"
        # objcopy says what it leaves out; the section holds zlib's form of JSON (cargo-auditable, PARSING.md).
        subprocess.run(["objcopy", f"--dump-section=.dep-v0={section}", self.binary, "/dev/null"], check=True)
        listed = {(p["name"], p["version"]) for p in json.loads(zlib.decompress(section.read_bytes()))["packages"]
                  if p.get("kind") != "build"}
        lock = {(p["name"], p["version"]) for p in tomllib.loads((TOP / "Cargo.lock").read_text())["package"]}
        manifest = (TOP / "Cargo.toml").read_text()
        direct = list(tomllib.loads(manifest)["dependencies"])
        print(f"\n{len(listed) - 1} crates, {len(direct)} of them direct")
        self.assertLessEqual(listed, lock)
        self.assertLessEqual(set(direct), {name for name, _ in listed})
        part = manifest.split("[dependencies]\n", 1)[1].split("\n[", 1)[0]
        for name in direct:
            self.assertRegex(part, rf"(?m)^#.*\n{name} = ", f"{name} has no line that says why it is there")

    def test_units_are_sound_and_as_boxed_in_as_they_say(self) -> None:
        print()
        units = self.root / "usr/lib/systemd/system"
        self.assertEqual({u.name for u in units.iterdir()}, set(EXPOSED_AT_MOST))
        for name, most in EXPOSED_AT_MOST.items():
            said = output("systemd-analyze", "security", "--offline=true", "--no-pager", units / name)
            exposed = re.search(r"Overall exposure level for (\S+): (\S+)", said)
            print(f"{name}: {exposed[2]}")
            self.assertLessEqual(float(exposed[2]), most, name)

    def lintian(self, suite: str, *switches: str) -> None:
        changes = self.folder / suite
        changes.mkdir()
        # An overlay on an overlay cannot be the upper one: a container's root is such.
        subprocess.run(["mount", "-t", "tmpfs", "tmp", changes], check=True)
        self.addCleanup(subprocess.run, ["umount", "--lazy", changes], check=True)
        command = trees.on_overlay(trees.root(suite), changes, ["lintian", "--pedantic", "-I", *switches, f"/{self.deb.name}"],
                                   {self.deb.name: self.deb})
        ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
        # Whether two texts meet so that it reads a word of its own is the linker's choice: see the overrides.
        none = ("N:", "running with root privileges", "I: gpu-handoff: unused-override spelling-error-in-binary")
        said = [line for line in (ran.stdout + ran.stderr).splitlines() if line and not line.startswith(none)]
        self.assertEqual((said, ran.returncode), ([], 0))

    def test_lintian_of_debian_12_finds_nothing(self) -> None:
        # Debian has dropped this one since, and an override of it is an error in Debian 13.
        self.lintian("bookworm", "--suppress-tags=package-supports-alternative-init-but-no-init.d-script")

    def test_lintian_of_debian_13_finds_nothing(self) -> None:
        self.lintian("trixie")


if __name__ == "__main__":
    unittest.main()
