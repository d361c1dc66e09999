#!/bin/sh
# A driver that could not be loaded again: the start is refused, the module is named, and nothing is changed.
. /usr/local/lib/lab-card.sh
card_vm
refused() { # MODULE WHY
	within 30 255 qm start 111; said "exit code 3"; said "$1 cannot be loaded"; said "Hint: "
	at_home "with $2"
}
for module in nvidia nvidia_drm nvidia_uvm; do
	file=$(modinfo -n $module); mv "$file" /root/gone.ko || fail "mv $file"
	refused $module "the file of $module gone"
	mv /root/gone.ko "$file"
done
echo "install nvidia /bin/false" >/etc/modprobe.d/scenario-none.conf; refused nvidia "an install line"; said "install ... /bin/false"
rm /etc/modprobe.d/scenario-none.conf
say "a blacklist is no obstacle: it is for udev, not for those who ask by name"
autoload off
within 60 0 qm start 111; away "with a blacklist"
within 90 0 qm stop 111; at_home "with a blacklist"
