#!/bin/sh
# Who opens the GPU again and again, in the host, a unit, a container, or through another node, never meets an unbind; a killed run leaves no gate.
# lab: --cards 2 --driver stub --timeout 2400
# tier: named
rounds=200
. /usr/local/lib/lab-gate.sh
