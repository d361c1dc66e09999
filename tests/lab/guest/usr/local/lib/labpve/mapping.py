"""Resource mappings, /etc/pve/mapping/pci.cfg [GC Mapping/PCI.pm]."""

import os
import re

from . import propstring
from .paths import PVE, SYS_PCI, Died, node_name, read


def _maps(name):
    """The map lines of one section, or None: a section begins with the bare id, its properties are indented."""
    lines, inside = None, False
    for line in read(f"{PVE}/mapping/pci.cfg", "").splitlines():
        if re.fullmatch(rf"{propstring.CONFIG_ID}\s*", line):
            inside = line.strip() == name
            if inside:
                lines = []
        elif inside and line.split(None, 1)[:1] == ["map"]:
            lines.append(line.split(None, 1)[1].strip())
    return lines


def alternatives(name, functions_of):
    """The paths of each map entry of this node, in file order; one bad entry fails the start."""
    maps = _maps(name)
    if maps is None:
        raise Died(f"PCI device mapping not found for '{name}'")
    entries = [propstring.parse(line, propstring.MAP) for line in maps]
    entries = [entry for entry in entries if entry.get("node") == node_name()]
    if not entries:
        raise Died(f"PCI device mapping not found for '{name}'")
    for entry in entries:
        _assert_valid(entry, functions_of)
    return [entry["path"].split(";") for entry in entries]


def _assert_valid(entry, functions_of):
    """Ids, subsystem ids and the IOMMU group must be those of sysfs [assert_valid]. lab: the mdev flag is not compared."""
    for position, path in enumerate(entry["path"].split(";")):
        device = f"{SYS_PCI}/devices/{functions_of(path)[0]}"

        def attribute(file):
            return read(f"{device}/{file}", "0x0000").strip()[2:]

        pairs = [("id", f"{attribute('vendor')}:{attribute('device')}")]
        if "subsystem-id" in entry:
            pairs.append(("subsystem-id", f"{attribute('subsystem_vendor')}:{attribute('subsystem_device')}"))
        if "iommugroup" in entry and position == 0:
            pairs.append(("iommugroup", _group(device)))
        for key, real in pairs:
            if entry.get(key) != real:
                raise Died("PCI device mapping invalid (hardware probably changed): "
                           f"'{key}' does not match for '{path}' ({entry.get(key)} != {real})")


def _group(device):
    return os.path.basename(os.path.realpath(f"{device}/iommu_group"))
