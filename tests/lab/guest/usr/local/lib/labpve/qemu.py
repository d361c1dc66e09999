"""The real QEMU of a VM: its command line, its systemd scope, its monitor, and whether it runs."""

import os
import shlex
import time

from . import propstring
from .paths import Died, read, run_path

EVENT_SOCKET = "/run/qmeventd.sock"
FIRST_PCI_SLOT = 0x10       # hostpci0 on the i440fx's pci.0 [QS9 QemuServer/PCI.pm $pci_addr_map]


def pidfile(vmid):
    return f"/var{run_path(vmid, 'pid')}"       # /var/run, as on Proxmox's command lines


def running_pid(vmid):
    """The pid, or None: pidfile, a command line with that pidfile, no zombie [QS9 Helpers.pm vm_running_locally]."""
    pid = (read(run_path(vmid, "pid")) or "").strip()
    if not pid.isdigit():
        return None
    arguments = (read(f"/proc/{pid}/cmdline") or "").split("\0")
    state = (read(f"/proc/{pid}/stat") or ") Z").rpartition(")")[2].split()[0]
    ours = "qemu-system" in arguments[0] and pidfile(vmid) in arguments
    return int(pid) if ours and state != "Z" else None


def paused_at_start(config):
    """lab: a VM without `args` has nothing to boot and stays paused: that holds the devices, and takes a second."""
    return "args" not in config.values or config.true("freeze")


def command(vmid, config, devices):
    """[QS9 config_to_command], less all that a hookscript cannot see."""
    q35, kvm = "q35" in config.values.get("machine", ""), config.true("kvm")
    paused = paused_at_start(config)
    # lab: TCG unless `kvm: 1`, and 64 MiB while paused, since vfio pins all of it.
    memory = 64 if paused else config.values.get("memory", "512")
    argv = ["qemu-system-x86_64", "-name", f"{config.values.get('name', f'vm{vmid}')},debug-threads=on",
            "-chardev", f"socket,id=qmp,path={run_path(vmid, 'qmp')},server=on,wait=off",
            "-mon", "chardev=qmp,mode=control"]
    if os.path.exists(EVENT_SOCKET):
        argv += ["-no-shutdown", "-chardev", f"socket,id=qmp-event,path={EVENT_SOCKET},reconnect-ms=5000",
                 "-mon", "chardev=qmp-event,mode=control"]
    argv += ["-pidfile", pidfile(vmid), "-daemonize", "-nodefaults", "-display", "none",
             "-machine", "q35" if q35 else "pc", "-m", str(memory),
             *(["-accel", "kvm", "-cpu", "qemu64"] if kvm else ["-accel", "tcg"])]
    for position, device in enumerate(devices):
        if not device.mdev:
            argv += _passthrough(position, device, q35)
    argv += ["-S"] if paused else []
    return argv + shlex.split(config.values.get("args", ""))


def _passthrough(position, device, q35):
    """One `-device vfio-pci` per function, the first one multifunction [QS9 print_hostpci_devices]."""
    properties, argv = device.properties, []
    if q35 and propstring.is_true(properties.get("pcie")):
        bus, slot = f"ich9-pcie-port-{position + 1}", 0
        argv += ["-device", f"pcie-root-port,id={bus},chassis={position + 1},slot={position + 1}"]
    else:
        bus, slot = "pcie.0" if q35 else "pci.0", FIRST_PCI_SLOT + position
    several = len(device.functions) > 1
    for number, function in enumerate(device.functions):
        name = f"hostpci{device.index}" + (f".{number}" if several else "")
        text = f"vfio-pci,host={function},id={name},bus={bus},addr={slot:#x}" + (f".{number}" if several else "")
        if several and number == 0:
            text += ",multifunction=on"
        if "rombar" in properties and not propstring.is_true(properties["rombar"]):
            text += ",rombar=0"
        if "romfile" in properties and number == 0:
            text += f",romfile=/usr/share/kvm/{properties['romfile']}"
        argv += ["-device", text]
    return argv


def start_timeout(config):
    """Seconds QEMU may take [QS9 Helpers.pm config_aware_timeout]."""
    memory = int(config.values.get("memory", "512").split(",")[0].replace("current=", ""))
    seconds = max(30, memory // 1024)
    return seconds * 4 if config.hostpci() else seconds


def start(vmid, config, devices):
    """Start it in the scope qemu.slice/VMID.scope [QS9 vm_start_nolock, PVE::Systemd::enter_systemd_scope]."""
    import subprocess
    subprocess.run(["systemctl", "reset-failed", f"{vmid}.scope"], stderr=subprocess.DEVNULL, check=False)
    scope = ["systemd-run", "--quiet", "--scope", "--collect", "--unit", str(vmid), "--slice", "qemu",
             "--description", f"Proxmox VE VM {vmid}", "--property", "KillMode=process",
             "--property", "TimeoutStopSec=infinity"]
    try:
        result = subprocess.run(scope + command(vmid, config, devices), stdin=subprocess.DEVNULL,
                                timeout=start_timeout(config), check=False)
    except subprocess.TimeoutExpired:
        raise Died("start failed: got timeout") from None
    if result.returncode:
        raise Died(f"start failed: QEMU exited with code {result.returncode}")
    return running_pid(vmid)


def monitor(vmid, execute, timeout=5):
    """One QMP command on the VM's own socket [QS9 Monitor.pm mon_cmd]."""
    import json
    import socket
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(run_path(vmid, "qmp"))
        stream = connection.makefile("rw", encoding="utf-8")
        stream.readline()           # the greeting
        for name in ("qmp_capabilities", execute):
            stream.write(json.dumps({"execute": name}) + "\n")
            stream.flush()
            answer = _answer(stream)
    return answer


def _answer(stream):
    import json
    for line in stream:
        message = json.loads(line)
        if "error" in message:
            raise Died(message["error"]["desc"])
        if "return" in message:
            return message["return"]
    return None                     # closed: how `quit` may end


def is_paused(vmid):
    return monitor(vmid, "query-status")["status"] in ("paused", "prelaunch")


def wait_gone(vmid, seconds):
    """True once the VM is not running; as in Proxmox that is no proof that the kernel has taken the process down."""
    end = time.monotonic() + seconds
    while running_pid(vmid):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
