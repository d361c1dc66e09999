#!/bin/sh
# Thirty handoffs of the long soak.
# lab: --timeout 14400
# tier: named
exec /usr/local/lib/lab-soak 15
