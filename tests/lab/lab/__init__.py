"""The lab: a real kernel in a virtual machine with a pretend NVIDIA card.

Modules, in the order in which a run uses them:

    cli        the commands run, demo and shell: switches and exit codes
    options    what a boot is made of: the switches, and their tables
    scenarios  scenario files: reading, grouping, running, reporting
    terminal   the raw terminal of tests/lab/shell
    session    one booted guest: start, run scripts, keep its logs, end
    channel    the line between this side and the agent in the guest
    frozen     a look from outside at a guest that says nothing any more
    qemu       the command line of the virtual machine
    accel      TCG, or KVM where it really boots something
    card/      the pretend card: a vfio-user server, one for all functions
    images     what a boot needs, built or taken from the cache
    drivers    a layer with the driver's modules, per kernel and driver
    kernels    Debian's kernels: image, modules, headers, initrd
    userland   the guest's Debian, as one erofs image
    toolbox    a Debian chroot with the QEMU and the compiler we need
    mirror     Debian packages from where this machine gets its own
    cache      artefacts keyed by their inputs, shared by all clones
    sandbox    processes that cannot outlive us, mounts nobody else sees
    progress   what is said on the terminal while one waits
"""
