"""Stand-ins for NVIDIA's userland, as far as a handoff meets it: what is opened, printed, returned, and what hangs.

Models: nvidia-smi and nvidia-persistenced of driver 580 (their man pages, NVIDIA/nvidia-persistenced on GitHub), the MPS
control daemon (docs.nvidia.com/deploy/mps), DCGM 4.5 (NVIDIA/DCGM on GitHub). Facts taken from the kernel only:
/proc/driver/nvidia and the nodes.
"""
