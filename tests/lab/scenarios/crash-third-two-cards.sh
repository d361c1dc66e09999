#!/bin/sh
# As crash-campaign-two-cards, at a third of the acts, each day another one.
# lab: --fault-points --cards 2 --timeout 1800
# tier: full
stride=3
. /usr/local/lib/lab-home.sh
. /usr/local/lib/lab-crash.sh
setting 'deadlines.grace = 1' 'deadlines.look = 60' 'deadlines.verify = 90'; card_vm # a busy machine loses no GPU
hold_open /dev/nvidia1
every out before in after; comes_home 60 "a way out that was not killed, without a QEMU"
every home before in after; comes_home 60 "a way home that was not killed"
lost_none 16
kill -0 $holder || fail "the other card's user has ended"; kill $holder
