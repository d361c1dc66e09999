#!/bin/sh
# A remove() that hangs: the start fails in time and says what to do, nothing waits for it, and recover brings the card home.
# tier: full
exec /usr/local/lib/lab-wedge pvedaemon pve-guests
