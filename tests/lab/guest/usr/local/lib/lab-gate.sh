# What the gate scenarios do: `. /usr/local/lib/lab-gate.sh`, with $rounds, how often the GPU goes out and home beside the openers.
. /usr/local/lib/lab-home.sh
# Perl, for it takes an emulated processor a tenth of the time that Python takes: the openers are to be in the way, not the load.
cat >/usr/local/bin/opener <<'END'
my ($path, $for, $shut, $opened) = ($ARGV[0], $ARGV[1] // 0, 0, 0); # the node, and for how many seconds it is held
until (-e "/tmp/enough") {
    if (sysopen my $node, $path, 2) { select undef, undef, undef, $for if $for; close $node; $opened++ } elsif ($! == 1) { $shut++ } # O_RDWR, EPERM
    select undef, undef, undef, 0.01;
}
print "$opened $shut\n";
END
# opens NODE: what comes of an open of it
opens() { perl -e 'print sysopen(my $node, $ARGV[0], 2) ? "open\n" : "$!\n"' "$1"; }
rm -f /tmp/enough; mknod /root/elsewhere c 195 0; mknod /root/control c 195 255
setting 'way = "unbind"'
perl /usr/local/bin/opener /dev/nvidia0 >/root/of-host & perl /usr/local/bin/opener /root/elsewhere 0.003 >/root/of-node &
systemd-run -q --unit opener -p DevicePolicy=closed -p "DeviceAllow=/dev/nvidia0 rwm" sh -c 'perl /usr/local/bin/opener /dev/nvidia0 >/root/of-unit'
mkdir -p /etc/pve/lxc; printf 'arch: amd64\nunprivileged: 1\ndev0: /dev/nvidia0\nlxc.init.cmd: sh -c "perl /usr/local/bin/opener /dev/nvidia0 >/tmp/of-container"\n' >/etc/pve/lxc/104.conf
within 60 0 pct start 104
drm=$(find "$devices/$gpu/drm/" -maxdepth 1 -name 'renderD*' -printf '/dev/dri/%f\n') sound=$(find "$devices/$audio/sound/" -name 'controlC*' -printf '/dev/snd/%f\n' -quit)
perl /usr/local/bin/opener "$drm" >/root/of-drm & perl /usr/local/bin/opener "$sound" >/root/of-sound &
sleep 1; dmesg --follow-new >/root/kernel & kernel=$!; n=0
while [ $n -lt $rounds ]; do
	gpu-handoff to_vfio --gpu "$gpu" >/root/said 2>&1 || { cat /root/said; fail "round $n: to_vfio"; }
	grep -q "$gpu .*unbind from nvidia, gate shut" /root/said || { cat /root/said; fail "round $n: no gate"; }
	is "$(opens /root/control)" open "round $n: what others need" >/dev/null
	gpu-handoff to_nvidia --gpu "$gpu" >/root/said 2>&1 || { cat /root/said; fail "round $n: to_nvidia"; }
	n=$((n + 1))
done
echo "the last line" >/dev/kmsg; wait_for 20 grep -q "the last line" /root/kernel; kill $kernel
grep "non-zero usage" /root/kernel && fail "an unbind has met a user"
pct exec 104 -- touch /tmp/enough; touch /tmp/enough; wait; wait_for 20 test -s /root/of-unit; wait_for 20 test -s /run/lab-ct/104/upper/tmp/of-container
cp /run/lab-ct/104/upper/tmp/of-container /root/
for of in host node unit container drm sound; do
	read -r opened shut </root/of-$of || fail "$of has ended early"
	say "$of: opened $opened times, kept out $shut times"
	[ "$opened" -gt 0 ] && [ "$shut" -gt 0 ] || fail "$of was never at the gate"
done
is "$(opens /dev/nvidia0)" open "afterwards"; has_ended() { [ "$(pct status 104)" = "status: stopped" ]; }
wait_for 20 has_ended; rm /etc/pve/lxc/104.conf

say "a run that is killed, at 20 moments of both ways"
for pause in 0.05 0.1 0.15 0.2 0.25 0.3 0.35 0.4 0.5 0.6; do for way in to_vfio to_nvidia; do
	[ $way = to_vfio ] || gpu-handoff to_vfio --gpu "$gpu" >/dev/null 2>&1
	gpu-handoff $way --gpu "$gpu" >/root/said 2>&1 & run=$!
	sleep $pause; kill -KILL $run 2>/dev/null; wait $run 2>/dev/null
	not_shut() { [ "$(opens /root/elsewhere)" != "Operation not permitted" ]; }
	wait_for 2 not_shut
	within 90 0 gpu-handoff recover >/dev/null; [ -z "$(records)" ] || within 90 0 gpu-handoff to_nvidia --gpu "$gpu" >/dev/null
	is "$(driver_of "$gpu") $(driver_of "$audio")" "nvidia snd_hda_intel" "$way, killed after $pause s"
done; done
say "a run that is killed as soon as somebody is kept out: by the GPU's node on the way out, by the VFIO group's on the way home"
cat >/usr/local/bin/at-gate <<'END'
# at-gate NODE PID FILE TEXT: once that file has that text, and an open of the node is not permitted, the process is killed
my ($node, $pid, $file, $text) = @ARGV;
alarm 60;
until (`cat $file` =~ /\Q$text/) { exit 1 if `cat $file` =~ / after \d+ ms/ }
until (!sysopen(my $held, $node, 2) && $! == 1) { exit 1 if `cat $file` =~ /let others open/ }
exit !kill "KILL", $pid;
END
for way in to_vfio to_nvidia; do
	kept=0 node=/root/elsewhere text="steps, at most"
	for round in 1 2 3 4 5; do
		[ $way = to_vfio ] || { gpu-handoff to_vfio --gpu "$gpu" >/dev/null 2>&1; node=/dev/vfio/$(group_of "$gpu") text="keep others from opening it"; }
		: >/root/said; gpu-handoff $way --gpu "$gpu" >/root/said 2>&1 & run=$!
		if perl /usr/local/bin/at-gate "$node" $run /root/said "$text"; then
			kept=$((kept + 1)); wait $run; is $? 137 "$way, round $round" >/dev/null
			opened() { [ "$(opens "$node")" != "Operation not permitted" ]; }
			wait_for 2 opened
		else wait $run; fi
		within 90 0 gpu-handoff recover >/dev/null; [ -z "$(records)" ] || within 90 0 gpu-handoff to_nvidia --gpu "$gpu" >/dev/null
		is "$(driver_of "$gpu") $(driver_of "$audio")" "nvidia snd_hda_intel" "$way, killed with the gate shut, round $round"
	done
	say "$way: killed behind a shut gate $kept times of 5"; [ $kept -gt 0 ] || fail "$way: nobody was kept out"
done
say "where cgroups are not of version 2 alone there is none, and a line says so"
within 60 0 unshare -m sh -c "mount -t tmpfs none /sys/fs/cgroup && exec gpu-handoff to_vfio --gpu $gpu"
said "there is no gate on this host: /sys/fs/cgroup is not of cgroup version 2 alone"; within 60 0 gpu-handoff to_nvidia --gpu "$gpu"
say "VFIO's own counts have whoever has something of VFIO's: a group, a device's node, a device whose group is closed"
# counts: references of vfio and vfio_pci that are not other modules'
counts() { awk '{ n = split($4, users, ",") - 1; if ($4 == "-") n = 0; beside[$1] = $3 - n } END { print beside["vfio"] + 0, beside["vfio_pci"] + 0 }' /proc/modules; }
cat >/usr/local/bin/has-device <<'END'
#!/usr/bin/python3 -IS
# has-device GROUP FUNCTION: has that device, and nothing else (linux, include/uapi/linux/vfio.h: SET_CONTAINER, SET_IOMMU, GET_DEVICE_FD)
import fcntl, os, struct, sys, time
container, group = os.open("/dev/vfio/vfio", os.O_RDWR), os.open(sys.argv[1], os.O_RDWR)
fcntl.ioctl(group, 0x3B68, struct.pack("i", container))
fcntl.ioctl(container, 0x3B66, 1)
fcntl.ioctl(group, 0x3B6A, bytearray(sys.argv[2].encode() + b"\0"))
os.close(group), os.close(container)
print("has it", flush=True)
time.sleep(600)
END
chmod +x /usr/local/bin/has-device; within 60 0 gpu-handoff to_vfio --gpu "$gpu"; node=/dev/vfio/$(group_of "$gpu")
idle=$(counts) own=${idle% *}; say "with nobody: $idle"; [ "$own" -le 1 ] && [ "${idle#* }" = 0 ] || fail "VFIO's counts with nobody: $idle"
refused() { within 60 3 gpu-handoff to_nvidia --gpu "$gpu"; is "$(driver_of "$gpu") $(driver_of "$audio")" "vfio-pci vfio-pci" "$1"; kill $holder; wait $holder 2>/dev/null; }
hold_open "$node"; is "$(counts)" "$((own + 2)) 0" "with a group"; refused "with a group"; is "$(counts)" "$idle" "without it"
for device in $devices/$gpu/vfio-dev/*; do device=/dev/vfio/devices/${device##*/}; [ -c "$device" ] || continue
	hold_open "$device"; is "$(counts)" "$((own + 2)) 0" "with a device's node"; refused "with a device's node"; is "$(counts)" "$idle" "without it"; done
has-device "$node" "$gpu" >/run/lab-device.out & holder=$!; wait_for 20 grep -q "has it" /run/lab-device.out
has=$(counts); say "with a device: $has"; [ "${has% *}" -ge 2 ] && [ "${has#* }" = 1 ] || fail "VFIO's counts with a device: $has"
gpu-handoff to_nvidia --gpu "$gpu" && fail "it came home beside one that has it"
is "$(driver_of "$gpu") $(driver_of "$audio")" "vfio-pci vfio-pci" "with a device"; kill $holder; wait $holder 2>/dev/null
is "$(counts)" "$idle" "without it"; within 60 0 gpu-handoff to_nvidia --gpu "$gpu"
say "switched off, it is not there, and the time between look and act is said"
setting 'way = "unbind"' 'gate = "off"'
within 60 0 gpu-handoff to_vfio --gpu "$gpu"; said "ms later"; grep -q "gate shut" /root/said && fail "there is one"
within 60 0 gpu-handoff to_nvidia --gpu "$gpu"; setting; at_home "in the end"
