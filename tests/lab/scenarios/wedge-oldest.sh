#!/bin/sh
# A remove() that hangs, on the oldest kernel: the start fails in time, nothing waits for it, and recover brings the card home.
# lab: --kernel oldest
# tier: full
exec /usr/local/lib/lab-wedge pvedaemon
