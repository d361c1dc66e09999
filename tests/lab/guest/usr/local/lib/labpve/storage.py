"""Volume ids of snippets [STO Storage.pm path, Plugin.pm]. lab: storages of type dir only."""

import os
import re

from .paths import PVE, Died, read


def directories():
    """Storage id -> path. `local` is always /var/lib/vz [STO Plugin.pm check_config: forced]."""
    found, name = {}, None
    for line in read(f"{PVE}/storage.cfg", "").splitlines():
        head = re.fullmatch(r"(\S+):\s*(\S+)\s*", line)
        if head:
            name = head[2] if head[1] == "dir" else None
        elif name and line.strip().startswith("path "):
            found[name] = line.split(None, 1)[1].strip()
    found["local"] = "/var/lib/vz"
    return found


def snippet_path(volid):
    """Path of a snippets volume. The storage's content list is not consulted."""
    storage, _, name = volid.partition(":")
    path = directories().get(storage)
    if path is None:
        raise Died(f"storage '{storage}' does not exist")
    if not re.fullmatch(r"snippets/[^/]+", name):
        raise Died(f"'{volid}' is not in the snippets directory")
    return f"{path}/{name}"


def check_hookscript(volid):
    """[GC GuestHelpers.pm check_hookscript]; both tests follow symlinks."""
    path = snippet_path(volid)
    if not os.path.isfile(path):
        raise Died(f"script '{volid}' does not exist")
    if not os.access(path, os.X_OK):
        raise Died(f"script '{volid}' is not executable")
    return path
