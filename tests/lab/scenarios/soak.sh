#!/bin/sh
# 500 handoffs in one boot, a random fault in every third round, settings and gate on: nothing lost, late or left behind.
# lab: --timeout 14400
# tier: named
exec /usr/local/lib/lab-soak 250
