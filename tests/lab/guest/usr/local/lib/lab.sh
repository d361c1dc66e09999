# Helpers for scenarios: `. /usr/local/lib/lab.sh`. A scenario passes if it exits 0.
set -u
devices=/sys/bus/pci/devices

say() { printf '%s\n' "-- $*"; }
fail() { printf '%s\n' "FAILED: $*"; exit 1; }

# The BDFs of the lab's GPUs and of the audio function of one.
gpus() { grep -l '^0x030[02]' $devices/*/class | while read -r f; do d=${f%/class}
	[ "$(cat "$d/vendor")" = 0x10de ] && echo "${d##*/}"; done; }
audio_of() { echo "${1%.*}.1"; }
driver_of() { [ -e "$devices/$1/driver" ] && basename "$(readlink "$devices/$1/driver")" || echo none; }
override_of() { cat "$devices/$1/driver_override"; }
group_of() { basename "$(readlink "$devices/$1/iommu_group")"; }
state_of() { sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null; }

records() { ls /run/gpu-handoff 2>/dev/null | grep '\.json$'; } # not what a run is just writing
left() { ls /run/gpu-handoff | grep -vx -e lock -e tell; } # all but what stays for good

# is ACTUAL EXPECTED WHAT
is() { [ "$1" = "$2" ] || fail "$3: is '$1', should be '$2'"; say "$3: $1"; }
# bounded SECONDS COMMAND...: with a limit, where it is a program and no function of ours; 124 if it is too late
bounded() { _limit=$1; shift; case $(command -v "$1") in /*) timeout -k 5 "$_limit" "$@" ;; *) "$@" ;; esac; }
# wait_for SECONDS CONDITION...: a command that is tried until it succeeds
wait_for() { _for=$1 _end=$(($(date +%s) + $1)); shift
	until bounded "$_for" "$@" >/dev/null 2>&1; do [ "$(date +%s)" -le $_end ] || fail "not within $_for s: $*"; sleep 0.2; done; }
# is_stuck PID WHAT: it sits in the kernel, in D; looked at more than once, as it is in R for a moment whenever it looks itself
stuck() { [ "$(state_of "$1")" = D ]; }
is_stuck() { wait_for 2 stuck "$1"; say "$2: D"; }
# expect_rc N COMMAND...; no limit here: who the hook's caller is, and when it ends, matters to the hook
expect_rc() { _want=$1; shift; "$@"; _rc=$?; [ $_rc -eq "$_want" ] || fail "exit status $_rc, should be $_want: $*"; }
# expect_text TEXT COMMAND...: the output contains TEXT
expect_text() { _text=$1; shift; _out=$("$@" 2>&1); printf '%s\n' "$_out"
	case $_out in *"$_text"*) ;; *) fail "'$_text' is not in the output of: $*" ;; esac; }

# mkvm VMID [HOSTPCI...]: a VM with one hostpciN per argument, such as 01:00,pcie=1
mkvm() { _vm=$1; shift; qm create "$_vm" --name "vm$_vm" --machine q35 >/dev/null || fail "qm create $_vm"; _n=0
	for _dev; do qm set "$_vm" "--hostpci$_n" "$_dev" >/dev/null || fail "hostpci $_dev"; _n=$((_n + 1)); done; }
# mkmapping NAME BDF...: a resource mapping of this node, an alternative per GPU
mkmapping() { printf '%s\n' "$1"; shift; for _gpu; do printf '\tmap node=%s,id=10de:%s,subsystem-id=10de:1467,iommugroup=%s,path=%s\n' \
	"$(hostname -s)" "$(cut -c3- "$devices/$_gpu/device")" "$(group_of "$_gpu")" "${_gpu%.*}"; done; } >/etc/pve/mapping/pci.cfg
# mkhook NAME: a snippet from standard input
mkhook() { mkdir -p /var/lib/vz/snippets; cat >"/var/lib/vz/snippets/$1" && chmod 755 "/var/lib/vz/snippets/$1"; }
# stub KEY VALUE: a fault of the stub driver, at run time
stub() { echo "$2" >"/sys/module/nvidia/parameters/$1" || fail "stub $1=$2"; }
# hold_open PATH...: a process that holds them; its pid in $holder
hold_open() { hold "$@" >/run/lab-hold.out & holder=$!; wait_for 10 grep -q . /run/lab-hold.out; }
# autoload on|off: whether udev loads nvidia by its alias; modprobe by name works either way
autoload() { rm -f /etc/modprobe.d/scenario-autoload.conf
	[ "$1" = on ] || echo blacklist nvidia >/etc/modprobe.d/scenario-autoload.conf; udevadm control --reload; }
unload_nvidia() { modprobe -r nvidia_uvm nvidia_drm nvidia_modeset nvidia; }
