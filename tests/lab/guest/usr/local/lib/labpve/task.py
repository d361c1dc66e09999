"""A worker, as the API starts one for each task [COM RESTEnvironment.pm fork_worker]."""

import os
import signal
import sys

from .paths import Died, read, run_path, unlink, warn, write

INTERRUPTED = "received interrupt"


def run(vmid, work):
    """Run `work` in a child with a session of its own and wait for it; returns what `qm` exits with.

    The hook belongs to the worker's process group, so that stopping the task ends it too.
    lab: the group's id is in /run/qemu-server/VMID.task, for qm-task.
    """
    sys.stdout.flush()
    worker = os.fork()
    if worker == 0:
        os._exit(_worker(vmid, work))
    # Ctrl-C and a TERM to qm itself are for the task [RESTEnvironment.pm, sync worker].
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.kill(worker, number))
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    if (read(run_path(vmid, "task")) or "").strip() == str(worker):
        unlink(run_path(vmid, "task"))
    return status if status >= 0 else 255


def _interrupted(number, frame):
    raise Died(INTERRUPTED)


def was_interrupted(error):
    return INTERRUPTED in str(error)


def _worker(vmid, work):
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, _interrupted)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    earlier = (read(run_path(vmid, "task")) or "").strip()
    if not earlier or not os.path.exists(f"/proc/{earlier}"):   # a second task only waits for the flock
        write(run_path(vmid, "task"), f"{os.getpid()}\n")
    try:
        work()
        return 0
    except (Died, OSError) as error:
        warn(str(error))
        return 255          # Perl's `exit(-1)` [COM CLIHandler.pm]
    finally:
        sys.stdout.flush()
