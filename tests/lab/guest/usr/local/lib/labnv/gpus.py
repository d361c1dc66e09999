"""The GPUs on the driver, as NVML would list them: in the order of the bus."""

import os
import re
import subprocess

PROC = "/proc/driver/nvidia"


class Gpu:
    def __init__(self, bdf):
        with open(f"{PROC}/gpus/{bdf}/information", encoding="ascii") as file:
            lines = (line.partition(":") for line in file)
            facts = {key.strip(): value.strip() for key, _, value in lines}
        self.bdf, self.uuid, self.name = bdf, facts["GPU UUID"], facts["Model"]
        self.minor = int(facts["Device Minor"])

    @property
    def bus_id(self):
        """nvidia-smi writes eight digits of domain and capitals."""
        domain, rest = self.bdf.split(":", 1)
        return f"0000{domain}:{rest}".upper()

    @property
    def node(self):
        return f"/dev/nvidia{self.minor}"


def all_gpus():
    try:
        return [Gpu(bdf) for bdf in sorted(os.listdir(f"{PROC}/gpus"))]
    except FileNotFoundError:
        return []


def driver_version():
    """From the version line; None where the driver is not loaded."""
    try:
        with open(f"{PROC}/version", encoding="ascii") as file:
            return re.search(r"  (\d+\.[\d.]+)  ", file.readline())[1]
    except FileNotFoundError:
        return None


def load_driver():
    """NVML runs the setuid nvidia-modprobe where the driver or a node is missing: any query can bring the module back."""
    subprocess.run(["/usr/bin/nvidia-modprobe"], stderr=subprocess.DEVNULL, check=False)
    for gpu in all_gpus():
        if not os.path.exists(gpu.node):
            subprocess.run(["/usr/bin/nvidia-modprobe", "-c", str(gpu.minor)], stderr=subprocess.DEVNULL, check=False)


def select(gpus, wanted):
    """By index, UUID or bus id, as `-i` takes them."""
    if wanted is None:
        return gpus
    def named(index, gpu):
        bus = wanted.upper()
        return wanted == str(index) or wanted == gpu.uuid or bus in (gpu.bus_id, gpu.bdf.upper(), gpu.bus_id[4:])
    return [gpu for index, gpu in enumerate(gpus) if named(index, gpu)]
