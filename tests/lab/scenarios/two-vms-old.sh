#!/bin/sh
# As two-vms, where post-stop is called by the older mechanism.
# tier: full
# lab: --cards 2
mechanism=old
. /usr/local/lib/lab-two-vms.sh
