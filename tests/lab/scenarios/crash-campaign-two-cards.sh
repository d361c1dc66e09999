#!/bin/sh
# As crash-campaign, but one of two cards leaves, by unbind, while the other one is in use: that use is not disturbed.
# lab: --fault-points --cards 2 --timeout 3600
# tier: named
. /usr/local/lib/lab-home.sh
. /usr/local/lib/lab-crash.sh
campaign_beside 50
