#!/bin/sh
# As crash-campaign, but one of two cards leaves, by unbind, while the other one is in use: that use is not disturbed.
# lab: --fault-points --cards 2 --timeout 3600
# tier: named
. /usr/local/lib/lab-home.sh
. /usr/local/lib/lab-crash.sh
setting 'deadlines.grace = 1' 'deadlines.look = 60' 'deadlines.verify = 90'; card_vm # a busy machine loses no GPU
hold_open /dev/nvidia1
every out before in after; comes_home 60 "a way out that was not killed, without a QEMU"
every home before in after; comes_home 60 "a way home that was not killed"
lost_none 50
kill -0 $holder || fail "the other card's user has ended"; kill $holder
