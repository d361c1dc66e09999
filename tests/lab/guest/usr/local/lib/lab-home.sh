# Helpers of scenarios in which nobody calls us back: `. /usr/local/lib/lab-home.sh`.
. /usr/local/lib/lab-card.sh
lock=/var/lock/qemu-server/lock-111.conf record=/run/gpu-handoff/vm-111.json
watch=gpu-handoff-watch@111.service home=gpu-handoff-home@111.service
STARTING=7d4958e842da4a758f6c1cdc7b36dcc5 # systemd's SD_MESSAGE_UNIT_STARTING

# host: all that must be after as it was before: each function's driver, override, power and ways to reset, the modules, the nodes
# with their numbers (nvidia-uvm's is another one after each load) and who may open them, who has which console. Whether a reset of
# the bus is among the ways depends on which function of the card was found last (linux, pci_parent_bus_reset, which is asked only then)
host() {
	for _f in $(grep -l 0x10de $devices/*/vendor); do _f=${_f%/vendor}; _f=${_f##*/}; echo "$_f $(driver_of "$_f") $(override_of "$_f")"
		(cd "$devices/$_f" && grep -s . power/control d3cold_allowed reset_method) | sed '/^reset_method:/s/ bus$//'; done
	grep -o '^nvidia[a-z_]*' /proc/modules | sort; grep -s . /sys/class/vtconsole/*/bind
	stat -c '%n %t:%T %a %u:%g' /dev/nvidia* /dev/dri/[cr]* | sed '/^.dev.nvidia-uvm/s/ [0-9a-f]*:/ -:/'; } 2>&1
before=$(host)
# quiet: nobody is at it, or about to be, to tell what became of a handoff
quiet() { [ -z "$(systemctl list-units --no-legend --plain 'gpu-handoff-tell@*')" ]; }
# unrecorded: no handoff is on record, which costs no process to see
unrecorded() { for _r in /run/gpu-handoff/*.json; do [ ! -e "$_r" ] || return 1; done; }
# settled: the host is as before, and nothing of us is left: no record, no process, no unit that failed; what is cheap comes first
settled() { unrecorded || return 1; _looks=0; until quiet || [ $((_looks += 1)) -gt 100 ]; do sleep 0.1; done
	unrecorded && ! pgrep -x 'gpu-handoff.*' >/dev/null && [ "$(host)" = "$before" ] &&
	[ -z "$(systemctl list-units --no-legend --failed 'gpu-handoff*')" ]; }
ticks() { read -r _up _ </proc/uptime; echo "${_up%.*}${_up#*.}"; } # hundredths of a second since the boot
# comes_home SECONDS WHEN: it does so by itself in that time; how long it took is in $took, ms
comes_home() {
	_since=$(ticks)
	until settled; do
		[ $(($(ticks) - _since)) -le $(($1 * 100)) ] || { explain; fail "not home within $1 s: $2"; }
		sleep 0.2
	done
	took=$((($(ticks) - _since) * 10)); say "all is as before $took ms later: $2"; }
# remember: what the scenario's own `users` prints of those who use the GPU, and what has failed; as_before WHEN: it is so again, word for word
have_now() { users; systemctl list-units --failed --no-legend --plain; }
remember() { had=$(have_now); }
as_before() {
	for _look in $(seq 20); do _has=$(have_now); [ "$_has" != "$had" ] || return 0; sleep 0.5; done
	printf '%s\n' "-- before:" "$had" "-- now:" "$_has"; fail "who uses the GPU is not as before: $1"; }
stays() { _until=$(($(ticks) + $1 * 100)); while [ "$(ticks)" -lt $_until ]; do sleep 0.5; done; } # that many seconds pass
explain() {
	echo "-- before:"; echo "$before"; echo "-- now:"; host; ls -l /run/gpu-handoff; cat /run/gpu-handoff/*.json
	ps -e -o pid,ppid,stat,etimes,args | grep '[g]pu-handoff'; systemctl list-units --all --no-legend 'gpu-handoff*'
	journalctl -q -n 40 -o short-monotonic -t gpu-handoff -t systemd | cut -c1-200; } 2>&1
# number: nvidia-uvm's major; first_free: who loads it next gets this one (linux, fs/char_dev.c, find_dynamic_major)
number() { awk '$2 == "nvidia-uvm" { print $1 }' /proc/devices; }
first_free() { for _major in $(seq 254 -1 234) $(seq 511 -1 384); do awk -v n="$_major" '/^Block/ { exit } $1 == n { f = 1 } END { exit f }' /proc/devices && { echo "$_major"; return; }; done; }
# another NUMBER: it gets another one than that, which hid may take in its place; called while it is not loaded
another() {
	[ "$(first_free)" != "$1" ] || [ ! -d /sys/module/hid ] || modprobe -r hid_generic hid
	[ "$(first_free)" != "$1" ] || modprobe hid; [ "$(first_free)" != "$1" ] || fail "nvidia-uvm gets $1 again"; }
# nobody_listens: QEMU's end calls nobody; as after `systemctl stop` of Proxmox's event daemon
nobody_listens() { systemctl stop qmeventd.socket qmeventd.service 2>/dev/null; }
somebody_listens() { systemctl start qmeventd.socket; }
end_qemu() { _qemu=$(cat /run/qemu-server/111.pid); kill -"$1" "$_qemu"; wait_for 20 test ! -e "/proc/$_qemu"; }
watcher() { systemctl show -P MainPID $watch; }
# begun: when the way home was last begun by systemd
begun() { journalctl -q -b -o short-monotonic UNIT=$home MESSAGE_ID=$STARTING | tail -n 1 | sed 's/^\[ *\([0-9]*\)\.\([0-9][0-9]\).*/\1\2/'; }
# halfway WHAT CONDITION...: a start that is halted when all users of the GPU have been stopped, and that holds; $_hooks goes on then
halfway() {
	_of=$1; shift; qm start 111 >/root/said 2>&1 & _start=$!
	_hooks=$(/usr/local/lib/lab-when "$gpu") || fail "$_of: the start was not halted"
	"$@" || fail "$_of: by then it is not so: $*"; }
has_failed() { wait $_start; _rc=$?; cat /root/said; [ $_rc -ne 0 ] || fail "$_of: the start did not fail"; }
# killed WHAT CONDITION...: the hook of such a start is killed; nobody does anything about it, and all comes home
killed() { halfway "$@"; kill -KILL $_hooks; has_failed; comes_home 120 "$_of, killed"; }
# undone WHAT CONDITION...: somebody comes in such a start, and stays: all that was done is undone
undone() {
	mknod /root/late-comer c 195 0 2>/dev/null; echo 'gate = "off"' >/etc/gpu-handoff/conf.d/late.toml
	halfway "$@"; hold /root/late-comer >/run/lab-late.out 2>&1 & _late=$!; wait_for 20 grep -q holding /run/lab-late.out
	kill -CONT $_hooks; has_failed; kill $_late; wait $_late 2>/dev/null; rm /etc/gpu-handoff/conf.d/late.toml
	comes_home 60 "$_of, undone"; }
# fails WHAT COMMAND...: a start fails after pre-start, nobody calls us, and the way home begins when the VM's lock is let go
fails() {
	_what=$1; shift; rm -f /root/released; _last=$(begun)
	{ wait_for 90 test -e $record; flock -s $lock cat /proc/uptime >/root/released; } & _observer=$!
	"$@" >/root/said 2>&1; _rc=$?; cat /root/said; [ $_rc -ne 0 ] || fail "$_what: it did not fail"; wait $_observer
	comes_home 60 "$_what"; _begun=$(begun)
	[ "$_begun" != "$_last" ] || fail "$_what: systemd has started no way home"
	began=$(((_begun - $(cut -d' ' -f1 /root/released | tr -d .)) * 10))
	say "$_what: the way home began $began ms after the lock was let go"
	# Two seconds are wanted; five are allowed on a machine that does other things as well, and what a scenario says.
	[ $began -le "${may_begin:-5000}" ] || fail "$_what: it began after $began ms"; }
