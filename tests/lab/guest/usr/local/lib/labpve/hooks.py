"""Calling a hookscript [GC GuestHelpers.pm exec_hookscript, COM Cmd.pm run]."""

import os
import shlex
import sys

from .paths import Died, warn
from .storage import check_hookscript


def exec_hookscript(config, vmid, phase, stop_on_error=False):
    """Run the VM's hookscript, if it has one. A failure is fatal where asked for, else a warning."""
    volid = config.values.get("hookscript")
    if volid is None:
        return
    try:
        _run([check_hookscript(volid), str(vmid), phase])
    except (Died, OSError) as error:
        text = f"hookscript error for {vmid} on {phase}: {error}"
        if stop_on_error:
            raise Died(text) from None
        warn(text)


def _run(argv):
    import subprocess
    text = " ".join(map(shlex.quote, argv))
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             env=dict(os.environ, LC_ALL="C", LVM_SUPPRESS_FD_WARNINGS="1"))
    child.stdin.close()             # at EOF from the start
    try:
        _copy_until_eof(child)      # of both pipes: whoever inherited one keeps the VM's start waiting
    except Died as error:           # a signal to the task: the hook itself goes on, as measured
        raise Died(f"command '{text}' failed: {error}") from None
    code = child.wait()
    if code < 0:
        raise Died(f"command '{text}' failed: got signal {-code}")
    if code > 0:
        raise Died(f"command '{text}' failed: exit code {code}")


def _copy_until_eof(child):
    import selectors
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ, sys.stdout)
        selector.register(child.stderr, selectors.EVENT_READ, sys.stderr)
        while selector.get_map():
            for key, _ in selector.select():
                chunk = os.read(key.fd, 4096)
                if chunk:
                    key.data.buffer.write(chunk)
                    key.data.flush()
                else:
                    selector.unregister(key.fileobj)
