"""qmeventd: notices that a QEMU has hung up, and calls `qm cleanup` [QS9 src/qmeventd/qmeventd.c].

Each VM's QEMU connects to /run/qmeventd.sock with a monitor. SHUTDOWN events tell how it ended; after one (QEMU runs
with -no-shutdown) it is asked to quit; once the connection is closed, `qm cleanup VMID CLEAN GUEST` is started and not
waited for. Its output lands where this service's does: in the journal.
"""

import json
import re
import selectors
import signal
import socket
import struct
import subprocess

from .paths import read

LISTEN_FD = 3       # systemd's socket activation


class Client:
    def __init__(self, connection):
        pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        match = re.search(r"/(\d+)\.scope", read(f"/proc/{pid}/cgroup", ""))    # [get_vmid_from_pid]
        self.vmid = match and match[1]
        self.connection, self.pending, self.clean, self.guest = connection, b"", False, False

    def send(self, command):
        try:
            self.connection.sendall(json.dumps({"execute": command}).encode() + b"\n")
        except OSError:
            pass

    def on_message(self, message):
        if "QMP" in message:
            self.send("qmp_capabilities")
        elif message.get("event") == "SHUTDOWN":
            self.clean, self.guest = True, bool(message.get("data", {}).get("guest"))
            self.send("quit")

    def receive(self):
        """False once QEMU has hung up."""
        try:
            chunk = self.connection.recv(65536)
        except OSError:
            chunk = b""
        *lines, self.pending = (self.pending + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                self.on_message(json.loads(line))
        return bool(chunk)

    def hung_up(self):
        if self.vmid:
            subprocess.Popen(["/usr/local/sbin/qm", "cleanup", self.vmid, str(int(self.clean)), str(int(self.guest))],
                             stdin=subprocess.DEVNULL)


def main():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)       # as qmeventd.c; perl below it resets that, and so does qm here
    listener = socket.socket(fileno=LISTEN_FD)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    client = Client(listener.accept()[0])
                    selector.register(client.connection, selectors.EVENT_READ, client)
                elif not key.data.receive():
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    key.data.hung_up()
