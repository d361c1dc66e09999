#!/bin/sh
# A guest whose changes survive a reboot.
# tier: full
# lab: --persist
. /usr/local/lib/lab.sh
if [ "$LAB_BOOT" = 1 ]; then
    cat /proc/sys/kernel/random/boot_id > /root/first-boot
    sync
    systemctl reboot
    sleep 300 # we are not to come back from this
fi
is "$LAB_BOOT" 2 "boot"
[ -s /root/first-boot ] || fail "the file of the first boot is gone"
[ "$(cat /root/first-boot)" != "$(cat /proc/sys/kernel/random/boot_id)" ] ||
    fail "it has not rebooted"
