#!/bin/sh
# As gate, in fewer rounds.
# lab: --cards 2 --driver stub --timeout 1200
# tier: full
rounds=40
. /usr/local/lib/lab-gate.sh
