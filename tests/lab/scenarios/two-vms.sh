#!/bin/sh
# Two VMs: one card is not given twice, and nobody's post-stop touches another one's card; a mapping of two cards serves both.
# lab: --cards 2
mechanism=new
. /usr/local/lib/lab-two-vms.sh
