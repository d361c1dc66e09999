"""The command line of the virtual machine: pure text, nothing is started.

The machine is a q35 with one root port per card. Devices of ours sit in high
slots, so that no root port finds its slot taken.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .images import Images
from .options import Options

# Folders as QEMU sees them, see toolbox.MOUNT_POINTS.
RUN, CACHE = "/lab", "/cache"

FIRST_PORT_SLOT = 0x4  # sixteen cards end at 0x13
SLOT_IOMMU = 0x1
SLOT_DISPLAY = 0x2
SLOT_SOUTHBRIDGE = 0x14  # of AMD's boards, see card/functions.py
SLOT_BOOT = 0x15  # free on every board
SLOT_TOP = 0x19
SLOT_SERIAL = 0x1A
SLOTS_LAYERS = (0x16, 0x17, 0x18)
SLOT_SHARE = 0x1D
CPUS = 2

# IOMMU -> its device, the machine's chip set option, kernel arguments.
# Interrupt remapping of Intel and AMD asks for a split interrupt controller.
IOMMUS: dict[str, tuple[str, str, str]] = {
    "intel": ("intel-iommu,intremap=on,caching-mode=on", "split",
              "intel_iommu=on iommu=pt"),
    "amd": ("amd-iommu,intremap=on,dma-remap=on", "split", "iommu=pt"),
    # It does not remap interrupts, and vfio asks for that unless told not to.
    "virtio": (f"virtio-iommu-pci,bus=pcie.0,addr={SLOT_IOMMU:#x}", "split",
               "iommu=pt vfio_iommu_type1.allow_unsafe_interrupts=1"),
    "none": ("", "split", ""),
}

# Drivers of this machine's chip set and processor that udev would load, and
# that do nothing for us but take an emulated processor's time; and nouveau,
# which hosts with NVIDIA's driver keep out in the same way.
NOT_LOADED = (
    "nouveau", "ahci", "iTCO_wdt", "lpc_ich", "i2c_i801", "pcspkr", "psmouse",
    "button", "evdev", "joydev", "parport_pc", "floppy", "serio_raw", "rapl",
    "aesni_intel", "ghash_clmulni_intel", "sha512_ssse3", "sha256_ssse3",
    "sha1_ssse3", "crct10dif_pclmul", "crc32_pclmul", "crc32c_intel",
    "polyval_clmulni", "kvm_amd", "kvm_intel", "qemu_fw_cfg", "efi_pstore",
    "intel_rapl_msr",
)
# Units that prepare what no scenario looks at; each costs a second here.
MASKED = (
    "modprobe@configfs.service",
    "modprobe@efi_pstore.service", "modprobe@fuse.service",
    "modprobe@drm.service", "modprobe@dm_mod.service", "modprobe@loop.service",
    "dev-hugepages.mount", "dev-mqueue.mount", "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount", "sys-kernel-tracing.mount", "tmp.mount",
    "run-lock.mount", "systemd-random-seed.service", "systemd-sysctl.service",
    "systemd-update-utmp.service", "systemd-user-sessions.service",
    "systemd-remount-fs.service", "kmod-static-nodes.service",
)
# A machine that reboots wants it; the others get along.
LOGIND = "systemd-logind.service"
# Checks of the kernel that take long on an emulated processor, and nothing
# that a device or its driver can tell the difference by.
QUICKER = "lsm=capability audit=0 mitigations=off cryptomgr.notests nowatchdog"
# Debian allows some of the keyboard's system requests; frozen.py wants all.
ASKABLE = "sysrq_always_enabled"

# QEMU hands vga= to the kernel's setup code, which has the BIOS set the mode
# (1024x768, 24 bits); without the card's own driver the picture stays its.
FIRMWARE = "vga=0x318 modprobe.blacklist=bochs"


def command(
    options: Options, images: Images, cache: Path, accel: str, from_disk: bool = False
) -> list[str]:
    """The words of the command line; from_disk: the firmware is to find what boots on the boot disk."""
    iommu, irqchip, arguments = IOMMUS[options.iommu]
    words = [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config",
        "-display", "none", "-vga", "none",
        "-accel", accel, "-cpu", "max", *_processors(options),
        "-m", f"{options.memory}M",
        # share=on: the device server reads and writes the guest's memory.
        "-object", f"memory-backend-memfd,id=mem,size={options.memory}M,share=on",
        "-machine", f"q35,kernel-irqchip={irqchip},memory-backend=mem"
                    ",sata=off,smbus=off,vmport=off",
        "-chardev", f"file,id=console,path={RUN}/console.log,append=on",
        "-serial", "chardev:console",
    ]
    if not from_disk:
        words += [
            "-kernel", _seen(images.kernel, cache),
            "-initrd", _seen(images.initrd, cache),
            "-append", kernel_arguments(options, arguments),
        ]
    # The boot after the first of one with a boot disk is another machine's.
    if not options.persist or options.boot_disk:
        words.append("-no-reboot")
    if iommu:
        words += ["-device", iommu]
    if options.display != "none":
        words += ["-device", f"VGA,bus=pcie.0,addr={SLOT_DISPLAY:#x}"]
    for number, disk in enumerate(images.disks):
        slot = SLOTS_LAYERS[number]
        words += _disk(f"layer{number}", _seen(disk, cache), slot, readonly=True)
    if options.persist:
        words += _disk("top", f"{RUN}/top.img", SLOT_TOP)
    if options.boot_disk:
        words += _disk("boot", f"{RUN}/boot.img", SLOT_BOOT)
    if from_disk:
        # The first one in the order of boots; and what the firmware and its boot loader print goes to the serial line.
        words[-1] += ",bootindex=0"
        words += ["-machine", "graphics=off"]
    words += [
        "-fsdev", f"local,id=share,path={RUN}/share,security_model=none",
        "-device", f"virtio-9p-pci,fsdev=share,mount_tag=lab,bus=pcie.0,"
                   f"addr={SLOT_SHARE:#x}",
        "-device", f"virtio-serial-pci,bus=pcie.0,addr={SLOT_SERIAL:#x}",
    ]
    for port in ("agent", "inject"):
        words += [
            "-chardev", f"socket,id={port},path={RUN}/{port}.sock",
            "-device", f"virtserialport,chardev={port},name=lab.{port}",
        ]
    # For a look from outside at a guest that no longer answers, see frozen.py.
    words += ["-qmp", f"unix:{RUN}/qmp.sock,server=on,wait=off"]
    return words + _cards(options)


def _processors(options: Options) -> list[str]:
    if options.clock == "wall":
        return ["-smp", str(CPUS)]
    # One instruction is 2^0 ns, and who waits for a timer is there at once.
    return ["-smp", "1", "-icount", "shift=0,sleep=off"]


def kernel_arguments(options: Options, iommu: str) -> str:
    """The kernel's command line."""
    masked = MASKED if options.persist else (*MASKED, LOGIND)
    # On a host with much to do the guest would take its timer for broken.
    words = ["console=ttyS0", "panic=-1", "loglevel=4", "no_timer_check",
             "systemd.show_status=0",
             "modprobe.blacklist=" + ",".join(NOT_LOADED),
             *(f"systemd.mask={unit}" for unit in masked), QUICKER, ASKABLE, iommu,
             FIRMWARE if options.display == "firmware" else "",
             options.append]
    return " ".join(word for word in words if word)


def _seen(path: Path, cache: Path) -> str:
    """A file of the cache as QEMU sees it."""
    return f"{CACHE}/{path.relative_to(cache)}"


def _disk(name: str, path: str, slot: int, readonly: bool = False) -> list[str]:
    mode = "on" if readonly else "off"
    return [
        "-drive", f"file={path},if=none,id={name},format=raw,readonly={mode}",
        "-device", f"virtio-blk-pci,drive={name},serial={name},bus=pcie.0,addr={slot:#x}",
    ]


def _cards(options: Options) -> Sequence[str]:
    words: list[str] = []
    if options.iommu == "amd":
        words += ["-device", json.dumps({
            "driver": "vfio-user-pci", "bus": "pcie.0", "addr": f"{SLOT_SOUTHBRIDGE:#x}.0",
            "socket": {"type": "unix", "path": f"{RUN}/southbridge.sock"},
        })]
    for card in range(options.cards):
        words += _port(options, card)
        for function in range(options.functions):
            words += ["-device", json.dumps({
                "driver": "vfio-user-pci",
                "socket": {"type": "unix",
                           "path": f"{RUN}/card{card}.{function}.sock"},
                "bus": f"port{card}",
                "addr": f"0.{function}",
                # On each: a rescan makes two groups of them otherwise.
                "multifunction": True,
            })]
    if options.group == "stranger":
        # A USB controller behind a port of the first card's slot.
        words += _port_at(options.cards, FIRST_PORT_SLOT, 1, acs=False)
        words += ["-device", f"qemu-xhci,bus=port{options.cards}"]
    return words


def _port(options: Options, card: int) -> list[str]:
    """The root port of a card.

    Functions of one slot that lack ACS, and all that is behind them, are one
    IOMMU group (Linux, pci_device_group): that is how real boards do it too.
    """
    if options.group == "shared":
        return _port_at(card, FIRST_PORT_SLOT + card // 2, card % 2, acs=False)
    if options.group == "stranger" and card == 0:
        return _port_at(card, FIRST_PORT_SLOT, 0, acs=False)
    return _port_at(card, FIRST_PORT_SLOT + card, 0, acs=True)


def _port_at(number: int, slot: int, function: int, acs: bool) -> list[str]:
    # QEMU's own root port has ACS, its model of Intel's 3420 has not.
    kind = "pcie-root-port" if acs else "ioh3420"
    return ["-device", f"{kind},id=port{number},bus=pcie.0,"
                       f"chassis={number + 1},slot={number + 1},"
                       f"addr={slot:#x}.{function},multifunction=on"]
