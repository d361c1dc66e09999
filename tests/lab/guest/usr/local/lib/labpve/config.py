"""VM configuration files [QS9 QemuServer.pm parse_vm_config, write_vm_config], and the lock that guards them."""

import contextlib
import errno
import fcntl
import os
import re
import time

from . import propstring
from .paths import LOCKS, Died, config_path, node_name, read, say, unlink, warn, write

LINE = re.compile(r"([a-z][a-z_-]*\d*):\s*(.+?)\s*", re.ASCII)
HOSTPCI_KEY = re.compile(r"hostpci(\d|1[0-5])")
# Options that apply at once to a running VM [QS9 QemuServer.pm $fast_plug_option]; the rest waits in [PENDING].
FAST_PLUG = {"name", "onboot", "startup", "description", "protection", "hookscript", "tags", "lock"}


def _text_of(comment):
    from urllib.parse import unquote
    return unquote(comment[1:].rstrip())


def _comment(text):
    from urllib.parse import quote
    return f"#{quote(text, safe=' /:,.=()')}\n"


class Config:
    """The current section, [PENDING], and all further sections as raw text."""

    def __init__(self, text):
        self.values, self.pending, self.rest, self.description = {}, {}, "", ""
        section = self.values
        for line in text.split("\n"):
            bracket = re.fullmatch(r"\[(.*?)\]\s*", line, re.ASCII)
            if bracket:
                section = self.pending if bracket[1].upper() == "PENDING" else None
            if section is None:
                self.rest += line + "\n"
            elif not bracket:
                self._line(line, section)

    def _line(self, line, section):
        if not line.strip() or re.search(r"snapstate:\s*\S+$", line):
            return
        if line.startswith("#"):
            self.description += _text_of(line) + "\n"
            return
        match = LINE.fullmatch(line)
        if not match:
            warn(f"vm config - unable to parse config: {line}")
            return
        key, value = match.groups()
        reason = invalid(key, value)
        if reason:          # a malformed line does not stop a start: the VM runs without that device
            warn(f"vm config - unable to parse value of '{key}' - {reason}")
        else:
            section[key] = value

    def text(self):
        head = "".join(map(_comment, self.description.splitlines()))
        parts = [head + "".join(f"{key}: {self.values[key]}\n" for key in sorted(self.values))]
        if self.pending:
            parts.append("[PENDING]\n" + "".join(f"{key}: {self.pending[key]}\n" for key in sorted(self.pending)))
        if self.rest:
            parts.append(self.rest)
        return "\n".join(parts).rstrip("\n") + "\n"

    def hostpci(self):
        """(N, properties) in the order hostpci0 to hostpci15."""
        entries = ((n, self.values.get(f"hostpci{n}")) for n in range(16))
        return [(n, propstring.parse(value, propstring.HOSTPCI, "host")) for n, value in entries if value]

    def true(self, key):
        return propstring.is_true(self.values.get(key))

    def apply_pending(self):
        """[QS9 vmconfig_apply_pending]; True where something changed."""
        if not self.pending:
            return False
        for key in re.split(r"[\s,;]+", self.pending.pop("delete", "")):
            self.values.pop(key, None)
        self.values.update(self.pending)
        self.pending = {}
        return True


def invalid(key, value):
    """Why Proxmox would not take this line, or None. lab: only hostpciN is checked against its schema."""
    if key.startswith("hostpci"):
        if not HOSTPCI_KEY.fullmatch(key):
            return "unknown setting"
        try:
            propstring.parse(value, propstring.HOSTPCI, "host")
        except ValueError as error:
            return f"format error: {error}"
    return None


def load(vmid):
    text = read(config_path(vmid))
    if text is None:
        raise Died(f"Configuration file 'nodes/{node_name()}/qemu-server/{vmid}.conf' does not exist")
    return Config(text)


def store(vmid, config):
    write(config_path(vmid), config.text())


def destroy(vmid):
    unlink(config_path(vmid))


def check_lock(config):
    """[GC AbstractConfig.pm check_lock]"""
    if "lock" in config.values:
        raise Died(f"VM is locked ({config.values['lock']})")


@contextlib.contextmanager
def flock(vmid, timeout=10):
    """The VM's lock, held through a whole start or stop, hooks included [COM Tools.pm lock_file_full]."""
    path = f"{LOCKS}/lock-{vmid}.conf"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)     # close-on-exec: no hook inherits it
    try:
        acquire(fd, path, timeout)
        yield
    finally:
        os.close(fd)


def acquire(fd, path, timeout):
    end, told = time.monotonic() + timeout, False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise
        if not told:
            say("trying to acquire lock...")
            told = True
        if time.monotonic() > end:
            raise Died(f"can't lock file '{path}' - got timeout")
        time.sleep(0.05)
    if told:
        say(" OK")
