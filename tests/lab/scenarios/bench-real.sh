#!/bin/sh
# What it costs with NVIDIA's own modules, by unload: the bare calls, ours.
# lab: --clock instructions --driver real --timeout 14400
# tier: named
rm -f /usr/bin/nvidia-smi # a card without a GSP does not answer it
exec /usr/local/lib/lab-bench tools unload 3
