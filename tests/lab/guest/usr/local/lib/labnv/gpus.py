"""The GPUs on the driver, as NVML would list them: in the order of the bus."""

import os

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
            return next(word for word in file.readline().split() if word[0].isdigit() and "." in word)
    except FileNotFoundError:
        return None


def load_driver():
    """NVML runs the setuid nvidia-modprobe where the driver or a node is missing: any query can bring the module back."""
    modprobe()
    for gpu in all_gpus():
        if not os.path.exists(gpu.node):
            modprobe("-c", str(gpu.minor))


def modprobe(*arguments):
    words = ["/usr/bin/nvidia-modprobe", *arguments]
    quiet = [(os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)]
    os.waitpid(os.posix_spawn(words[0], words, os.environ, file_actions=quiet), 0)


def select(gpus, wanted):
    """By index, UUID or bus id, as `-i` takes them."""
    if wanted is None:
        return gpus
    def named(index, gpu):
        bus = wanted.upper()
        return wanted == str(index) or wanted == gpu.uuid or bus in (gpu.bus_id, gpu.bdf.upper(), gpu.bus_id[4:])
    return [gpu for index, gpu in enumerate(gpus) if named(index, gpu)]
