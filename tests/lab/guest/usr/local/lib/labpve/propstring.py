"""Property strings such as `0000:01:00,pcie=1` [COM JSONSchema.pm parse_property_string]."""

import re

BDF = r"(?:[0-9a-f]{4,}:)?[0-9a-f]{2}:[0-9a-f]{2}(?:\.[0-9a-f])?"
CONFIG_ID = r"[A-Za-z][A-Za-z0-9_-]+"
BOOLEAN = r"(?i:1|on|yes|true|0|off|no|false)"
TRUE = {"1", "on", "yes", "true"}

# [QS9 QemuServer/PCI.pm $hostpci_fmt]; `driver` exists from 9.0.25 on.
HOSTPCI = {
    "host": rf"{BDF}(?:;{BDF})*",
    "mapping": CONFIG_ID,
    "rombar": BOOLEAN, "pcie": BOOLEAN, "x-vga": BOOLEAN, "legacy-igd": BOOLEAN,
    "romfile": r"[^,;]+",
    "mdev": r"[^/.:]+",
    "vendor-id": r"0x[0-9A-Fa-f]{4}", "device-id": r"0x[0-9A-Fa-f]{4}",
    "sub-vendor-id": r"0x[0-9A-Fa-f]{4}", "sub-device-id": r"0x[0-9A-Fa-f]{4}",
    "driver": r"vfio|keep",
}
MAP = {
    "node": r"\S+", "id": r"[0-9A-Fa-f]{4}:[0-9A-Fa-f]{4}", "subsystem-id": r"[0-9A-Fa-f]{4}:[0-9A-Fa-f]{4}",
    "iommugroup": r"\d+", "path": rf"[0-9a-f]{{4,}}:{BDF}(?:;[0-9a-f]{{4,}}:{BDF})*|{BDF}(?:;{BDF})*",
    "description": r".*",
}


def parse(text, schema, default_key=None):
    """The properties as a dict; ValueError with a reason for anything Proxmox refuses."""
    found = {}
    for part in text.split(","):
        if not part.strip():
            continue
        key, equals, value = part.partition("=")
        if not equals:
            key, value = default_key, part
        if key is None or key not in schema:
            raise ValueError(f"{part}: property is not defined in schema and the schema does not allow additional properties")
        if key in found:
            raise ValueError(f"duplicate key in comma-separated list property: {key}")
        if not re.fullmatch(schema[key], value):
            raise ValueError(f"{key}: value '{value}' does not match the regex pattern")
        found[key] = value
    if not found:
        raise ValueError("no properties")
    return found


def is_true(value):
    return value is not None and value.lower() in TRUE
