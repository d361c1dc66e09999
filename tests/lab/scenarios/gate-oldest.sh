#!/bin/sh
# As gate, in fewer rounds, on the oldest kernel.
# lab: --kernel oldest --cards 2 --driver stub --timeout 1200
# tier: full
rounds=20
. /usr/local/lib/lab-gate.sh
