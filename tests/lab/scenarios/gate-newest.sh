#!/bin/sh
# As gate, in fewer rounds, on the newest kernel.
# lab: --kernel newest --cards 2 --driver stub --timeout 1200
# tier: full
rounds=20
. /usr/local/lib/lab-gate.sh
