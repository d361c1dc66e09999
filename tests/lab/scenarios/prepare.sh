#!/bin/sh
# prepare: what guides have left is shown, taken out, comes through a kill, lets a handoff work, and is back to the byte.
# The guest's kernel comes from outside, and no boot loader of its own starts it: the files are real, the programs that
# make an initramfs and a boot loader's menu are stand-ins that write down that they ran.
# tier: full
. /usr/local/lib/lab-card.sh
conf=/etc/modprobe.d/scenario-prepare.conf load=/etc/modules-load.d/gpu-handoff.conf
hashes() { find /etc -path /etc/pve -prune -o -type f -exec sha256sum {} + -exec stat -c '%a %u:%g %n' {} + | sort
	find /etc -path /etc/pve -prune -o -type l -printf '%p -> %l\n' | sort; }
same() { hashes >/root/now; diff /root/before /root/now || fail "/etc is not as it was $1"; say "/etc is as it was $1"; }
standin() { printf '#!/bin/sh\necho "$(basename "$0") $*" >>/root/ran\n%s\n' "${2:-}" >/usr/sbin/"$1"; chmod 755 /usr/sbin/"$1"; }
clean() { rm -f /usr/sbin/update-initramfs $conf /etc/default/grub; mv /root/update-grub /usr/sbin; }
[ ! -e /usr/sbin/update-initramfs ] || fail "update-initramfs is there already"
mv /usr/sbin/update-grub /root || fail "no update-grub of GRUB's" # without a disk that it boots from it has nothing to do
[ ! -e /etc/default/grub ] || fail "/etc/default/grub is there already"
trap clean EXIT
standin update-initramfs; standin update-grub; : >/root/ran
mkdir -p /etc/default
printf 'GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX_DEFAULT="quiet iommu=off"\n' >/etc/default/grub
printf 'options vfio-pci ids=10de:%s\nblacklist nvidia\ninstall nvidia /bin/false' \
	"$(cut -c3- $devices/"$gpu"/device)" >$conf
chmod 640 $conf; hashes >/root/before
card_vm; within 30 255 qm start 111; said "exit code 3"; said "nvidia cannot be loaded"; at_home "with an install line"

say "it is shown, and nothing is touched"
within 10 0 gpu-handoff prepare
for text in "$conf:1:" "$conf:2:" "$conf:3:" "-blacklist nvidia" "+# gpu-handoff: blacklist nvidia" \
	"/etc/default/grub:2: 'iommu=off'" "    update-initramfs -u -k all" "    update-grub" "rebooted"; do said "$text"; done
same "after a look"

say "a boot loader whose configuration is not understood is left alone, and that is said"
cp /etc/default/grub /root/grub; echo 'if true; then X=1; fi' >>/etc/default/grub; cp /etc/default/grub /root/odd
within 20 0 gpu-handoff prepare --apply; said "is left as it is (/etc/default/grub:3: it is no plain assignment)"
cmp /root/odd /etc/default/grub || fail "it was changed"
within 20 0 gpu-handoff prepare --revert; cp /root/grub /etc/default/grub; same "after that"

say "a program that fails leaves it so that it goes on, or back"
standin update-grub 'exit 1'
within 20 4 gpu-handoff prepare --apply; said "'update-grub' failed"; said "--revert"
standin update-grub
within 20 0 gpu-handoff prepare --revert; same "after a program that failed"

say "killed while a program runs: the next run goes on"
standin update-initramfs 'echo $$ >/root/standin; exec sleep 1000'
gpu-handoff prepare --apply >/root/said 2>&1 & run=$!
wait_for 20 test -s /root/standin; kill -9 $run; wait $run; kill "$(cat /root/standin)"; rm /root/standin
standin update-initramfs
expect_text "was broken off" gpu-handoff prepare
: >/root/ran; within 20 0 gpu-handoff prepare --apply; said "prepared"; said "Reboot"
is "$(tr '\n' ';' </root/ran)" "update-initramfs -u -k all;update-grub ;" "what ran"
is "$(grep -c '^# gpu-handoff: ' $conf)" 3 "lines that are commented out"
is "$(stat -c %a $conf)" 640 "its rights"
grep -qx vfio_pci $load || fail "$load does not load vfio_pci"
! grep -q iommu=off /etc/default/grub || fail "iommu=off is there still"
hashes >/root/prepared; : >/root/ran
within 20 0 gpu-handoff prepare --apply; said "nothing to change"
hashes >/root/now; diff /root/prepared /root/now || fail "twice is not as once"; is "$(wc -l </root/ran)" 0 "programs that ran again"

say "a handoff works, and taking back does not touch what is lent"
within 60 0 qm start 111; away "prepared"
within 20 0 gpu-handoff prepare --revert; said "keeps it"; said "as it was before"
same "taken back"; away "while it is lent"
[ ! -e /var/lib/gpu-handoff/prepared ] || fail "something is kept still"
within 20 0 gpu-handoff prepare --revert; said "nothing to take back"
rm $conf; within 90 0 qm stop 111; at_home "in the end"
