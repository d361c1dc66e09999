"""Which accelerator the guest runs on: TCG, or KVM where that really works.

A /dev/kvm proves nothing: behind some of them no Debian kernel gets to its
first program. So the guest's own kernel is booted on it, to that program.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from . import sandbox
from .images import Images
from .progress import say

TCG = "tcg,thread=multi,tb-size=512"
# Instructions are counted by one thread only.
COUNTING = "tcg,thread=single,tb-size=512"
KVM = "kvm"
# A working KVM takes three seconds to the first program.
PROBE_TIMEOUT = 15.0
WORD = b"lab-probe-reached-user-space"


def choose(wanted: str, clock: str, images: Images, cache: Path) -> str:
    """The value of QEMU's -accel."""
    if clock == "instructions":
        return COUNTING
    if wanted == "tcg":
        return TCG
    if Path("/dev/kvm").exists() and _boots_on_kvm(images, cache):
        return KVM
    say("KVM does not boot the guest's kernel here: TCG")
    return TCG


def _boots_on_kvm(images: Images, cache: Path) -> bool:
    words = [
        "qemu-system-x86_64", "-nodefaults", "-display", "none",
        "-accel", KVM, "-cpu", "host", "-smp", "2", "-m", "512M",
        "-machine", "q35", "-no-reboot", "-serial", "stdio",
        "-kernel", f"/cache/{images.kernel.relative_to(cache)}",
        "-initrd", f"/cache/{images.initrd.relative_to(cache)}",
        # The first program is echo; when it ends, the kernel panics and
        # with panic=-1 and -no-reboot that ends QEMU.
        "-append", "console=ttyS0 panic=-1 quiet rdinit=/bin/echo -- "
                   + WORD.decode(),
    ]
    probe = sandbox.start(
        sandbox.in_chroot(images.toolbox, words, {"/cache": cache}),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )
    try:
        output, _ = probe.communicate(timeout=PROBE_TIMEOUT)
    except subprocess.TimeoutExpired:
        sandbox.end(probe)
        output, _ = probe.communicate()
    return WORD in output
