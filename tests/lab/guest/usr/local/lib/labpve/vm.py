"""Starting, stopping and cleaning up a VM [QS9 QemuServer.pm vm_start, vm_stop, vm_stop_cleanup, CLI/qm.pm cleanup].

Two mechanisms call post-stop. New (qemu-server 9.1.13 and later): the task that stopped the VM does, under the flock;
the flag /run/qemu-server/VMID.cleanup says that it is due. Old: `qm cleanup` does, started by qmeventd once QEMU has
hung up, after the task has let go of the flock.
lab: `new` or `old` in /etc/lab/cleanup-mechanism, or LAB_CLEANUP, read at the VM's start.
"""

import os
import signal
import time

from . import config as vmconfig
from . import hostpci, prepare, qemu, reservations
from .hooks import exec_hookscript
from .paths import RUN, Died, config_path, read, run_path, say, unlink, warn, write

FAULTS = ("before-reserve", "before-prepare", "qemu")
CLEANUP_WAIT = 60       # `qm cleanup` waits so long for the flock
EXIT_WAIT = 30          # and, from 9.1.13 on, so long for QEMU's end


def mechanism():
    if os.path.exists(f"{RUN}/force-legacy-cleanup"):       # [QS9 RunState.pm, debian/preinst]
        return "old"
    return os.environ.get("LAB_CLEANUP") or (read("/etc/lab/cleanup-mechanism") or "new").strip()


def fail_point(vmid, name):
    """lab: the start fails here where LAB_FAIL or /etc/lab/fail-start-VMID names this point."""
    if name in (os.environ.get("LAB_FAIL"), (read(f"/etc/lab/fail-start-{vmid}") or "").strip()):
        raise Died(f"start failed: lab's fault at '{name}'")


def start(vmid, skiplock=False, skiptemplate=False, paused=False):
    """[vm_start]: the flock is held through all of it."""
    with vmconfig.flock(vmid):
        config = vmconfig.load(vmid)
        if config.true("template") and not skiptemplate:
            raise Died("you can't start a vm if it's a template")
        if not skiplock and config.values.get("lock") != "suspended":
            vmconfig.check_lock(config)
        if qemu.running_pid(vmid):
            raise Died(f"VM {vmid} already running")
        start_nolock(vmid, config, paused)


def start_nolock(vmid, config, paused=False):
    """[vm_start_nolock] in its order: pending changes, hook, command line, reservation, devices, QEMU, hook."""
    unlink(run_path(vmid, "reboot"))                # a stale reboot request
    if config.apply_pending():
        vmconfig.store(vmid, config)
    os.environ["PVE_MIGRATED_FROM"] = ""            # assigned undef, which reaches the child as an empty string
    exec_hookscript(config, vmid, "pre-start", stop_on_error=True)
    fail_point(vmid, "before-reserve")

    devices = _devices(vmid, config)
    ids = [id_ for device in devices if not device.mdev for id_ in device.functions]
    reservations.reserve(ids, vmid, timeout=qemu.start_timeout(config) + 5)
    try:
        fail_point(vmid, "before-prepare")
        for device in devices:
            if not device.mdev and not device.keep:
                for id_ in device.functions:
                    prepare.prepare(id_)
        fail_point(vmid, "qemu")
        if paused:
            config.values["freeze"] = "1"
        # A QEMU that dies after it has greeted qmeventd gets a `qm cleanup`, and with the old mechanism its post-stop.
        write(run_path(vmid, "lab-mechanism"), mechanism() + "\n")
        pid = qemu.start(vmid, config, devices)
        reservations.reserve(ids, vmid, pid=pid)
    except (Died, OSError):
        reservations.remove(vmid)                   # nothing is bound back, and no hook is called
        raise
    if mechanism() == "new":
        write(run_path(vmid, "cleanup"), "")
    exec_hookscript(config, vmid, "post-start")


def _devices(vmid, config):
    if config.true("template"):
        return []           # the command line of a template is made without hostpci [QS9 3111-3136]

    def reserved(id_):
        entry = reservations.current().get(id_)
        return bool(entry) and entry[0] != vmid and reservations.live(entry)

    return hostpci.parse(config, vmid, reserved)


def stop(vmid, skiplock=False, shutdown=False, timeout=None, force=True):
    """[vm_stop]: pre-stop, QEMU's end, clean-up, all under the flock."""
    with vmconfig.flock(vmid):
        if not qemu.running_pid(vmid):
            return
        config = vmconfig.load(vmid)
        if not skiplock:
            vmconfig.check_lock(config)
        exec_hookscript(config, vmid, "pre-stop")
        _end_qemu(vmid, shutdown, timeout or (60 if not shutdown else 180), force)
        stop_cleanup(vmid)


def _end_qemu(vmid, shutdown, timeout, force):
    """[_do_vm_stop]: the monitor, then SIGTERM, then SIGKILL with one second's grace."""
    try:
        qemu.monitor(vmid, "system_powerdown" if shutdown else "quit")
    except (Died, OSError) as error:
        if not force:
            raise
        warn(str(error))
    if qemu.wait_gone(vmid, timeout):
        return
    if not force:
        raise Died("VM quit/powerdown failed - got timeout")
    for number, grace in ((signal.SIGTERM, 10), (signal.SIGKILL, 1)):
        pid = qemu.running_pid(vmid)
        if pid:
            warn(f"VM still running - terminating now with {number.name}")
            os.kill(pid, number)
        if qemu.wait_gone(vmid, grace):
            return


def stop_cleanup(vmid):
    """[vm_stop_cleanup]: reservation, pending changes, and with the new mechanism post-stop.

    The flag goes after the hook: if the task is killed meanwhile, `qm cleanup` calls post-stop once more.
    """
    new = (read(run_path(vmid, "lab-mechanism")) or "new").strip() == "new"
    if new and not os.path.exists(run_path(vmid, "cleanup")):
        return
    reservations.remove(vmid)
    unlink(run_path(vmid, "qmp"))
    config = vmconfig.load(vmid)
    if config.apply_pending():                      # so post-stop may read other devices than the VM ran with
        vmconfig.store(vmid, config)
    if new:
        exec_hookscript(config, vmid, "post-stop")
        unlink(run_path(vmid, "cleanup"))


def cleanup(vmid):
    """`qm cleanup`, called by qmeventd [QS9 and QS8 CLI/qm.pm cleanup]. Ignores the `lock:` property."""
    if not os.path.exists(config_path(vmid)):
        return
    with vmconfig.flock(vmid, CLEANUP_WAIT):
        if (read(run_path(vmid, "lab-mechanism")) or "new").strip() == "new":
            if not os.path.exists(run_path(vmid, "cleanup")):
                pass                                # the stop task did it all
            elif qemu.wait_gone(vmid, EXIT_WAIT):
                stop_cleanup(vmid)
            else:
                raise Died(f"aborting cleanup, VM is still running after {EXIT_WAIT} seconds")
        else:
            if qemu.running_pid(vmid):
                raise Died("vm still running")      # post-stop is lost [bug 7119]
            stop_cleanup(vmid)
            exec_hookscript(vmconfig.load(vmid), vmid, "post-stop")
        _start_again(vmid)


def _start_again(vmid):
    """The second half of `qm reboot` [QS9 clear_reboot_request]."""
    if os.path.exists(run_path(vmid, "reboot")) and not qemu.running_pid(vmid):
        unlink(run_path(vmid, "reboot"))
        start_nolock(vmid, vmconfig.load(vmid))


def backup_stopped(vmid):
    """vzdump of a stopped VM [QS9 VZDump/QemuServer.pm]: `lock: backup`, a paused start with hostpci, a stop."""
    _set_lock(vmid, "backup")
    try:
        start(vmid, skiplock=True, skiptemplate=True, paused=True)
        say("INFO: lab: pretending to read the disks")
        time.sleep(float(os.environ.get("LAB_BACKUP_SECONDS", "2")))
        stop(vmid, skiplock=True)
    finally:
        _set_lock(vmid, None)


def _set_lock(vmid, lock):
    with vmconfig.flock(vmid):
        config = vmconfig.load(vmid)
        if lock:
            vmconfig.check_lock(config)
            config.values["lock"] = lock
        else:
            config.values.pop("lock", None)
        vmconfig.store(vmid, config)
