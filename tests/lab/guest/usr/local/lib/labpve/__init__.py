"""Stand-in for the part of Proxmox VE that a hookscript meets: qm, its locks, hooks, reservations and qmeventd.

Every behaviour names its model in brackets: QS9 is qemu-server 9.2.6, QS8 qemu-server 8.4.10, COM pve-common 9.2.1,
GC pve-guest-common 6.0.2, STO pve-storage 9.1.7. What is a lab's own is marked "lab:".

The modules in the order of a start: cli, task, config, hooks, storage, hostpci, mapping, reservations, prepare, qemu, vm.

What only some commands need is imported where it is used: in the guest a call of qm is mostly the start of Python.
"""
