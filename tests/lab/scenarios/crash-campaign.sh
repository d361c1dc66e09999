#!/bin/sh
# The hook is killed with SIGKILL before, in and after every act of a start and of a stop: each time the GPU comes home by itself.
# lab: --fault-points --timeout 3600
# tier: named
. /usr/local/lib/lab-home.sh
. /usr/local/lib/lab-crash.sh
campaign 60
