"""What takes minutes and the network: the same package from another folder, a release that apt installs, and Debian's own
ways of trying a package out, piuparts and autopkgtest.

    PACKAGE=target/package/gpu-handoff_*.deb python3 -m unittest -v tests/package/test_full.py
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import trees  # noqa: E402
from test_scripts import packed_as  # noqa: E402

TOP = Path(__file__).parents[2]
PATIENCE = 3000.0
APT = """
set -eu
cd /repository
apt_get() { apt-get -q -o Dir::Etc::sourcelist=/dev/null "$@"; }
mkdir -p /etc/apt/keyrings; cp gpu-handoff.asc /etc/apt/keyrings/
cp gpu-handoff.sources /etc/apt/sources.list.d/; rm -f /etc/apt/sources.list
apt_get update; apt_get install --yes --no-install-recommends gpu-handoff; gpu-handoff --version
apt-cache policy gpu-handoff | grep -F 'file:/repository'
apt_get purge --yes gpu-handoff
# Whoever changes a byte of the package, or of the list of packages, is found out.
printf x >>gpu-handoff_*.deb; ! apt_get install --yes gpu-handoff
echo >>Packages; gzip --no-name --force --keep Packages; rm -rf /var/lib/apt/lists/*; ! apt_get update || ! apt-cache show gpu-handoff
"""


class Full(unittest.TestCase):
    """Each in a folder of its own on a tmpfs: an overlay on an overlay cannot be the upper one."""

    def setUp(self) -> None:
        self.package = Path(os.environ["PACKAGE"]).resolve()
        self.folder = Path(tempfile.mkdtemp(prefix="gpu-handoff-full-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def on_tmpfs(self) -> Path:
        place = self.folder / "tmpfs"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmp", place], check=True)
        self.addCleanup(subprocess.run, ["umount", "--lazy", place], check=True)
        return place

    def runs(self, *command: str | Path, **options: object) -> str:
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE, **options)
        self.assertEqual(ran.returncode, 0, ran.stdout[-8000:])
        return ran.stdout

    def test_another_folder_gives_the_same_bytes(self) -> None:
        tree = self.folder / "some other place"
        tree.mkdir()
        files = self.runs("git", "-C", TOP, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        self.runs("tar", "--create", f"--file={self.folder}/tree.tar", "--null", "--files-from=-", cwd=TOP, input=files)
        self.runs("tar", "--extract", f"--file={self.folder}/tree.tar", "-C", tree)
        environment = {key: value for key, value in os.environ.items() if key not in ("CARGO_TARGET_DIR", "RUSTFLAGS")}
        built = Path(self.runs(tree / "tests/build-deb", env=environment, umask=0o077).splitlines()[-1])
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (self.package, built)]
        print(*("", *digests), sep="\n")
        self.assertEqual(*digests)

    def test_apt_installs_from_what_a_release_makes_and_from_nothing_that_was_changed(self) -> None:
        repository = self.folder / "repository"
        self.runs(TOP / "tests/release", repository, "--throw-away-key",
                  env={**os.environ, "LAB_DEB": str(self.package), "RELEASE_URI": "file:/repository"})
        print(*sorted(path.name for path in repository.iterdir()))
        self.runs(*trees.on_overlay(trees.root("trixie"), self.on_tmpfs(), ["/bin/sh", "-c", APT],
                                    {"repository": repository}))

    def test_piuparts_installs_upgrades_removes_and_purges_without_a_trace(self) -> None:
        before = self.folder / "before"
        before.mkdir()
        shutil.move(packed_as("0.0.9", self.package, self.folder), before / "gpu-handoff_0.0.9_amd64.deb")
        (before / "Packages").write_text(self.runs("apt-ftparchive", "packages", ".", cwd=before))
        said = self.runs("piuparts", "--distribution=trixie", f"--basetgz={trees.tarball('trixie')}",
                         f"--mirror={trees.mirror.uri()} main", f"--bindmount={before}",
                         f"--extra-repo=deb [trusted=yes] file:{before} ./", "--no-eatmydata",
                         "--ignore=/var/cache/debconf/tmp.ci/",  # debconf's own, from whatever asks through it
                         self.package)
        self.assertIn("Setting up gpu-handoff (0.0.9)", said)
        self.assertRegex(said, r"Unpacking gpu-handoff \([^)]*\) over \(0\.0\.9\)")
        print("", said.splitlines()[-1], sep="\n")

    def test_autopkgtest_passes_on_debian_13(self) -> None:
        source, place = self.folder / "source", self.on_tmpfs()
        shutil.copytree(TOP / "debian", source / "debian")
        control = subprocess.run(["dpkg-deb", "--field", self.package], check=True, capture_output=True, text=True).stdout
        maintainer = next(line for line in control.splitlines() if line.startswith("Maintainer:"))
        (source / "debian" / "control").write_text(
            f"Source: gpu-handoff\n{maintainer}\n\nPackage: gpu-handoff\nArchitecture: amd64\nDescription: as built\n")
        overlay = trees.mounted(trees.root("trixie"), place)
        overlay += f"\nmount -t proc proc {place}/merged/proc\nmount --rbind /dev {place}/merged/dev"
        said = self.runs(*trees.sandbox.isolated(["/bin/sh", "-c", overlay + '\nexec "$@"', "sh", "autopkgtest",
                         "--apt-upgrade", str(self.package), f"{source}/", "--", "chroot", str(place / "merged")]))
        print("", *said.splitlines()[-1:], sep="\n")
        self.assertRegex(said, r"(?m)^installed +PASS")


if __name__ == "__main__":
    unittest.main()
