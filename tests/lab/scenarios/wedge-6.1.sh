#!/bin/sh
# A remove() that hangs, on kernel 6.1: the start fails in time, nothing waits for it, and recover brings the card home.
# lab: --kernel 6.1
# tier: full
exec /usr/local/lib/lab-wedge pvedaemon
