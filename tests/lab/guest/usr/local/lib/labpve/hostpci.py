"""From hostpciN lines to PCI functions [QS9 QemuServer/PCI.pm parse_hostpci_devices]."""

import os
import re

from . import mapping, propstring
from .paths import SYS_PCI, Died


class Device:
    """One hostpciN: its properties, and the functions that become one device of the guest."""

    def __init__(self, index, properties, functions):
        self.index, self.properties, self.functions = index, properties, functions

    @property
    def mdev(self):
        return has_mdev(self.properties)

    @property
    def keep(self):
        return self.properties.get("driver") == "keep"


def has_mdev(properties):
    """As Perl has it: "0" is false, and the whole function is passed."""
    return properties.get("mdev", "0") not in ("", "0")


def functions_of(id_):
    """Every sysfs name that begins with the id: `01:00` and `0000:01:00` mean all functions [COM SysFSTools.pm lspci]."""
    prefix = id_ if re.match(r"[0-9a-f]{4,}:[0-9a-f]{2}:", id_) else f"0000:{id_}"
    found = sorted(name for name in os.listdir(f"{SYS_PCI}/devices") if name.startswith(prefix))
    if not found:
        raise Died(f"no PCI device found for '{id_}'")
    return found


def _alternatives(properties):
    host, name = properties.get("host"), properties.get("mapping")
    if host and name:
        raise Died("Cannot set both 'host' and 'mapping'.")
    if not host and not name:
        raise Died("Either 'host' or 'mapping' must be set.")
    choices = [host.split(";")] if host else mapping.alternatives(name, functions_of)
    return [[function for id_ in choice for function in functions_of(id_)] for choice in choices]


def parse(config, vmid, reserved):
    """All devices of the config; `reserved(id)` tells whether another VM has it. Chooses as choose_hostpci_devices does."""
    devices, used = [], set()
    for index, properties in config.hostpci():
        choices = _alternatives(properties)
        if has_mdev(properties):
            devices.append(Device(index, properties, choices[0]))   # physical device stays on its host driver
            continue
        functions = _choose(index, choices, used, reserved)
        for id_ in functions:
            if id_ in used:
                raise Died(f"device '{id_}' assigned more than once")
            used.add(id_)
        devices.append(Device(index, properties, functions))
    _check_machine(config, devices)
    return devices


def _choose(index, choices, used, reserved):
    if len(choices) == 1:
        return choices[0]           # a conflict shows when it is reserved
    for functions in choices:
        if not any(id_ in used or reserved(id_) for id_ in functions):
            return functions
    raise Died(f"could not find a free device for 'hostpci{index}'")


def _check_machine(config, devices):
    q35 = "q35" in config.values.get("machine", "")
    if not q35 and any(propstring.is_true(device.properties.get("pcie")) for device in devices):
        raise Died("q35 machine model is not enabled")
