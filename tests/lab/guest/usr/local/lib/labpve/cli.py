"""The command lines of qm that the lab's scenarios use [QS9 CLI/qm.pm, API2/Qemu.pm]."""

import os
import re
import shlex
import signal
from types import SimpleNamespace

from . import config as vmconfig
from . import hostpci, qemu, task, vm
from .paths import PVE, Died, config_path, make_directories, node_name, run_path, say, warn, write
from .storage import check_hookscript


def main(argv):
    os.environ["PATH"] = "/sbin:/bin:/usr/sbin:/usr/bin"      # [COM CLIHandler.pm setup_environment]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)             # ignored below qmeventd; perl resets it at its start
    make_directories()
    if len(argv) < 2 or argv[1] not in COMMANDS:
        warn("ERROR: unknown command\nUSAGE: qm <COMMAND> [ARGS] [OPTIONS]: " + " ".join(COMMANDS))
        return 255
    try:
        return COMMANDS[argv[1]](argv[2:]) or 0
    except (Died, OSError) as error:
        warn(str(error))
        return 255


def arguments(argv, *options):
    """VMID and options such as `--timeout 5`; flags may come bare, as `--skiplock`.

    Not by argparse, whose import takes half as long as all the rest of a call of qm.
    """
    given, plain, words = dict.fromkeys(options), [], list(argv)
    while words:
        word = words.pop(0)
        name, has_value, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            plain.append(word)
        elif name not in given:
            raise Died(f"Unknown option: {name}\n400 unable to parse option")
        elif has_value:
            given[name] = value
        else:
            given[name] = words.pop(0) if words and not words[0].startswith("-") else "1"
    if len(plain) != 1 or not plain[0].isdigit():
        raise Died("400 not enough arguments, or too many")
    return SimpleNamespace(vmid=int(plain[0]), **given)


def _must_exist(vmid):
    vmconfig.load(vmid)


def start(argv):
    options = arguments(argv, "skiplock", "timeout")
    _must_exist(options.vmid)
    return task.run(options.vmid, lambda: vm.start(options.vmid, skiplock=bool(options.skiplock)))


def stop(argv):
    options = arguments(argv, "skiplock", "timeout")
    _must_exist(options.vmid)
    timeout = options.timeout and int(options.timeout)
    return task.run(options.vmid, lambda: vm.stop(options.vmid, bool(options.skiplock), timeout=timeout))


def shutdown(argv):
    """[API2/Qemu.pm vm_shutdown]: a paused VM cannot answer, so it is an error or a stop."""
    options = arguments(argv, "skiplock", "timeout", "forceStop")
    vmid, force = options.vmid, options.forceStop == "1"
    _must_exist(vmid)
    if not qemu.running_pid(vmid):
        raise Died(f"VM {vmid} not running")
    paused = qemu.is_paused(vmid)
    if paused and not force:
        raise Died("VM is paused - cannot shutdown")
    if paused:
        warn("VM is paused - stopping instead of shutdown")
    timeout = options.timeout and int(options.timeout)
    return task.run(vmid, lambda: vm.stop(vmid, bool(options.skiplock), not paused, timeout, force))


def reboot(argv):
    """pre-stop and QEMU's end in the task, the start in `qm cleanup`. lab: a paused VM is ended at once."""
    options = arguments(argv, "timeout")
    write(run_path(options.vmid, "reboot"), "")
    paused = qemu.is_paused(options.vmid)
    return task.run(options.vmid, lambda: vm.stop(options.vmid, shutdown=not paused))


def set_(argv):
    """`qm set VMID --KEY VALUE ... --delete KEYS`. hostpci of a running VM waits in [PENDING]."""
    vmid, pairs = int(argv[0]), iter(argv[1:])
    changes = {}
    for option in pairs:
        key, equals, value = option.lstrip("-").partition("=")
        if not option.startswith("-") or not re.fullmatch(r"[a-z][a-z_-]*\d*", key):
            raise Died(f"400 unable to parse option: {option}")
        changes[key] = value if equals else next(pairs, "1")
    if "hookscript" in changes:
        check_hookscript(changes["hookscript"])
    for key, value in changes.items():
        reason = key != "delete" and vmconfig.invalid(key, value)
        if reason:
            raise Died(f"400 Parameter verification failed.\n{key}: {reason}")
    with vmconfig.flock(vmid):
        config = vmconfig.load(vmid)
        if "lock" not in changes and "lock" not in changes.get("delete", ""):
            vmconfig.check_lock(config)
        _apply(vmid, config, changes)
        vmconfig.store(vmid, config)
    return 0


def _apply(vmid, config, changes):
    running = bool(qemu.running_pid(vmid))
    for key in re.split(r"[\s,;]+", changes.pop("delete", "")):
        if not running or key in vmconfig.FAST_PLUG:
            config.values.pop(key, None)
        elif key:
            config.pending["delete"] = ",".join(filter(None, (config.pending.get("delete"), key)))
    for key, value in changes.items():
        say(f"update VM {vmid}: -{key} {value}")
        section = config.pending if running and key not in vmconfig.FAST_PLUG else config.values
        section[key] = value


def create(argv):
    """`qm create VMID --KEY VALUE ...`. lab: no disks."""
    vmid = int(argv[0])
    if os.path.exists(config_path(vmid)):
        raise Died(f"unable to create VM {vmid} - VM {vmid} already exists on node '{node_name()}'")
    write(config_path(vmid), "memory: 512\n")
    return set_(argv)


def destroy(argv):
    vmid = arguments(argv, "purge").vmid
    _must_exist(vmid)
    if qemu.running_pid(vmid):
        raise Died(f"VM {vmid} is running - destroy failed")
    with vmconfig.flock(vmid):
        vmconfig.check_lock(vmconfig.load(vmid))
        vmconfig.destroy(vmid)
    return 0


def config(argv):
    """Shows pending values where there are any, unless --current."""
    options = arguments(argv, "current")
    loaded = vmconfig.load(options.vmid)
    if not options.current:
        loaded.apply_pending()
    if loaded.description:
        say(f"description: {loaded.description.strip()}")
    for key in sorted(loaded.values):
        say(f"{key}: {loaded.values[key]}")
    return 0


def status(argv):
    vmid = arguments(argv, "verbose").vmid
    _must_exist(vmid)
    say("status: " + ("running" if qemu.running_pid(vmid) else "stopped"))
    return 0


def list_(argv):
    say(f"{'VMID':>10} {'NAME':<20} {'STATUS':<10} {'MEM(MB)':<10} {'BOOTDISK(GB)':>12} PID")
    for name in sorted(os.listdir(f"{PVE}/qemu-server")):
        if name.endswith(".conf"):
            vmid, values = int(name[:-5]), vmconfig.load(int(name[:-5])).values
            pid = qemu.running_pid(vmid) or 0
            say(f"{vmid:>10} {values.get('name', f'VM {vmid}'):<20} {'running' if pid else 'stopped':<10} "
                f"{values.get('memory', '512'):<10} {'0.00':>12} {pid}")
    return 0


def showcmd(argv):
    """Never reserves [QS9, dry run]."""
    vmid = arguments(argv, "pretty").vmid
    loaded = vmconfig.load(vmid)
    say(shlex.join(qemu.command(vmid, loaded, hostpci.parse(loaded, vmid, lambda id_: False))))
    return 0


def cleanup(argv):
    """`qm cleanup VMID CLEAN-SHUTDOWN GUEST-REQUESTED`: no worker, no task; output goes where qmeventd's goes."""
    vm.cleanup(int(argv[0]))
    return 0


COMMANDS = {
    "start": start, "stop": stop, "shutdown": shutdown, "reboot": reboot, "set": set_, "create": create,
    "destroy": destroy, "config": config, "status": status, "list": list_, "showcmd": showcmd, "cleanup": cleanup,
}


def vzdump(argv):
    """`vzdump VMID...`: one task, which goes on when one VM's backup has failed [MGR9 VZDump.pm exec_backup].

    lab: of stopped VMs only.
    """
    make_directories()
    if not argv[1:] or not all(word.isdigit() for word in argv[1:]):
        raise Died("lab: vzdump takes the numbers of VMs alone")
    vmids = [int(word) for word in argv[1:]]
    if any(qemu.running_pid(vmid) for vmid in vmids):
        raise Died("lab: vzdump of a running VM is not modelled")
    return task.run(vmids[0], lambda: _back_up(vmids))


def _back_up(vmids):
    failed = False
    for vmid in vmids:
        try:
            vm.backup_stopped(vmid)
        except (Died, OSError) as error:
            if task.was_interrupted(error):
                raise
            warn(f"ERROR: Backup of VM {vmid} failed - {error}")
            failed = True
    if failed:
        raise Died("job errors")
