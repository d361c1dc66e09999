#!/bin/sh
# As crash-campaign, at a third of the acts, each day another one.
# lab: --fault-points --timeout 1800
# tier: named
stride=3
. /usr/local/lib/lab-home.sh
. /usr/local/lib/lab-crash.sh
campaign 20
