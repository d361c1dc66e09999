#!/bin/sh
# As crash-campaign, at a third of the acts, each day another one.
# lab: --fault-points --timeout 1800
# tier: full
stride=3
. /usr/local/lib/lab-home.sh
. /usr/local/lib/lab-crash.sh
setting 'deadlines.grace = 1' 'deadlines.look = 60' 'deadlines.verify = 90'; card_vm # a busy machine loses no GPU
every qm_out before in after; away "a start that was not killed"; qm stop 111 >/dev/null 2>&1; comes_home 60 "after it"
every qm_home in; comes_home 60 "a stop that was not killed"
every home before after; comes_home 60 "a way home that was not killed"
lost_none 20
