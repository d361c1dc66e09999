#!/bin/sh
# The tests' model kernel against this one: each text of tests/model_vs_kernel has the same answers and the same end.
# tier: full
# lab: --timeout 1200
. /usr/local/lib/lab.sh
files=0 same=0
for file in /lab/model/*.txt; do
	files=$((files + 1))
	# As after a boot: vfio-pci is not there yet, which decides who is asked first.
	lab-reset && modprobe -r vfio_pci || fail "no clean start for $file"
	autoload off # the model has no udev that loads drivers by their alias
	if bounded 300 /usr/local/lib/lab-model "$file" >/root/is 2>&1 && diff -U 20 "$file" /root/is; then
		same=$((same + 1)); say "${file##*/}: as on the model"
	else
		say "${file##*/}: differs"
	fi
done
say "$files files, $same as on the model"
[ $files -ge 14 ] && [ $same -eq $files ]
