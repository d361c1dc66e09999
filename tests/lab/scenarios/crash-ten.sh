#!/bin/sh
# The hook is killed with SIGKILL at ten points of its way out and home: each time the GPU comes home by itself.
# lab: --fault-points
. /usr/local/lib/lab-home.sh
. /usr/local/lib/lab-crash.sh
setting 'deadlines.grace = 1' 'deadlines.look = 60' 'deadlines.verify = 90'; card_vm # a busy machine loses no GPU
for point in 1:before 3:in 6:in 9:after 11:in; do out $point || fail "out $point: not killed"; done
for point in 1:after 5:in 6:before 11:in 16:after; do home $point || fail "home $point: not killed"; done
lost_none 10
