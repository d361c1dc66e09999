"""Debian packages, from the mirror that this machine's own apt uses.

The address is read from the machine's apt sources; none is written down here.
Packages are fetched with a private apt: its lists and its idea of what is
installed are its own, the machine's are neither read nor changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from . import sandbox
from .cache import LabError

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SOURCES = Path("/etc/apt")
# Debian's releases by their own names; some vendors have a "trixie", too, see
# best(). Half of them have a "stable", see may_be().
SUITES = {"bookworm", "trixie", "forky", "sid"}
ALIASES = {"oldstable", "stable", "testing", "unstable"}
DOWNLOAD_TIMEOUT = 1200.0
# apt-cache and apt-config read files only.
LOOK_TIMEOUT = 120.0


def uri() -> str:
    """The URI of the main Debian archive in the machine's apt sources."""
    found: list[str] = []
    for path in [SOURCES / "sources.list",
                 *sorted(SOURCES.glob("sources.list.d/*.list"))]:
        if path.is_file():
            found += one_line_style(path.read_text(errors="replace"))
    for path in sorted(SOURCES.glob("sources.list.d/*.sources")):
        found += deb822_style(path.read_text(errors="replace"))
    if not found:
        raise LabError(
            "no Debian archive in the machine's apt sources\n"
            "Hint: the lab fetches Debian packages from where the machine's own "
            "apt does"
        )
    return best(found)


def best(uris: Sequence[str]) -> str:
    """Which of several is the Debian archive, the first of equals.

    Vendors name their suites after Debian's releases, too; but Debian's mirrors
    all end in /debian, and a vendor's that does has more before it.
    """
    def rank(uri: str) -> tuple[bool, int]:
        path = urlsplit(uri).path.rstrip("/")
        return not path.endswith("/debian"), len(path)

    return min(uris, key=rank)


def may_be(uri: str, suites: set[str]) -> bool:
    """Whether a repository with these suites may be the Debian archive."""
    ends = urlsplit(uri).path.rstrip("/").endswith("/debian")
    return "://" in uri and bool(suites & SUITES or ends and suites & ALIASES)


def one_line_style(text: str) -> Iterator[str]:
    """URIs that may be the main archive in a sources.list (sources.list(5))."""
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line.strip())
        if match and "main" in match[3].split() and may_be(match[1], {match[2]}):
            yield match[1]


def deb822_style(text: str) -> Iterator[str]:
    """URIs that may be the main archive in a .sources file (sources.list(5))."""
    for stanza in re.split(r"\n\s*\n", text):
        plain = "\n".join(
            line for line in stanza.splitlines() if not line.startswith("#")
        )
        fields = {
            key.lower(): value.split()
            for key, value in re.findall(
                r"^(\S+):((?:.*)(?:\n[ \t].*)*)", plain, re.MULTILINE
            )
        }
        if "no" in fields.get("enabled", []):
            continue
        if "deb" in fields.get("types", []) and "main" in fields.get("components", []):
            suites = set(fields.get("suites", []))
            yield from (u for u in fields.get("uris", []) if may_be(u, suites))


def source_line(suite: str, components: str = "main") -> str:
    """A line of a sources.list for `suite` of that archive."""
    return f"deb [signed-by={KEYRING}] {uri()} {suite} {components}"


def bootstrap_options(log: IO[bytes]) -> list[str]:
    """mmdebstrap's switches for the proxies of the machine's apt.

    Not for an artefact's inputs: they say how a tree is fetched, not what it is.
    """
    dump = sandbox.output(sandbox.tied(["apt-config", "dump"]), log, LOOK_TIMEOUT)
    return [f"--aptopt={setting}" for setting in proxies(dump)]


def proxies(dump: str) -> list[str]:
    """The settings of `apt-config dump` that name a proxy."""
    return re.findall(r'^(Acquire::https?::Proxy(?:-Auto-Detect)?(?:::\S+)? "[^"]+");$', dump,
                      re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class Suite:
    """A private apt that knows one suite, in a folder of its own."""

    folder: Path
    name: str
    log: IO[bytes]
    components: str = "main"

    def update(self, timeout: float = DOWNLOAD_TIMEOUT) -> None:
        """Fetch the suite's lists; to be called first."""
        for sub in ("lists/partial", "archives/partial", "parts"):
            (self.folder / sub).mkdir(parents=True)
        (self.folder / "status").touch()
        source = source_line(self.name, self.components)
        (self.folder / "sources.list").write_text(source + "\n")
        # Without it, a list that could not be fetched is no error of update's.
        self._apt("apt-get", "--error-on=any", "update", timeout=timeout)

    def depends(self, package: str) -> list[str]:
        """Names in the Depends of a package; empty when there is none."""
        text = self._output("apt-cache", "show", "--no-all-versions", package)
        match = re.search(r"^Depends: (.*)$", text, re.MULTILINE)
        return re.findall(r"(?:^|, )([a-z0-9.+-]+)", match[1]) if match else []

    def version(self, package: str) -> str:
        """The version of a package that is there."""
        text = self._output("apt-cache", "show", "--no-all-versions", package)
        match = re.search(r"^Version: (\S+)$", text, re.MULTILINE)
        if not match:
            raise LabError(f"{self.name} has no package {package}")
        return match[1]

    def exists(self, package: str) -> bool:
        """Is there a package of that name?"""
        # Unlike show, it is no error of pkgnames that there is none.
        return package in self._output("apt-cache", "pkgnames", package).split()

    def unpack(self, packages: Sequence[str], into: Path) -> None:
        """Download packages, NAME or NAME=VERSION, and unpack their files, without installing."""
        self._apt("apt-get", "download", *packages)
        for package in sorted(self.folder.glob("*.deb")):
            sandbox.run(
                sandbox.tied(["dpkg-deb", "--extract", str(package), str(into)]),
                self.log, timeout=300.0,
            )
            package.unlink()

    def _options(self) -> list[str]:
        settings = {
            "Dir::State": f"{self.folder}",
            "Dir::State::lists": f"{self.folder}/lists",
            "Dir::State::status": f"{self.folder}/status",
            "Dir::Cache": f"{self.folder}",
            "Dir::Etc::SourceList": f"{self.folder}/sources.list",
            "Dir::Etc::SourceParts": f"{self.folder}/parts",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": f"{self.folder}/parts",
            "APT::Sandbox::User": "root",
            "APT::Architecture": "amd64",
            "Acquire::Languages": "none",
        }
        return [f"-o{key}={value}" for key, value in settings.items()]

    def _apt(self, program: str, *arguments: str, timeout: float = DOWNLOAD_TIMEOUT) -> None:
        command = [program, "-q", *self._options(), *arguments]
        sandbox.run(sandbox.tied(command), self.log, timeout, self.folder)

    def _output(self, program: str, *arguments: str) -> str:
        command = sandbox.tied([program, *self._options(), *arguments])
        try:
            return sandbox.output(command, self.log, LOOK_TIMEOUT)
        except sandbox.CommandFailed as error:
            raise sandbox.CommandFailed(
                f"{program} {' '.join(arguments)}: {error}") from error
