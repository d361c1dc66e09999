"""The pretend card: PCI functions served to QEMU over vfio-user.

    pci        what every function has: config space, BARs, faults
    functions  the functions of the card: GPU, audio, USB, serial bus
    hda        the registers of the audio function and its codec
    protocol   vfio-user, the conversation with QEMU
    server     the process: a thread per function, and the control socket
"""
