# Helpers of scenarios that take the first card away and home: `. /usr/local/lib/lab-card.sh`.
. /usr/local/lib/lab.sh
gpu=$(gpus | sed -n 1p) audio=$(audio_of "$gpu") hook=/var/lib/vz/snippets/gpu-handoff

# setting LINE...: our settings; no line: the defaults
setting() { mkdir -p /etc/gpu-handoff/conf.d; printf '%s\n' "$@" >/etc/gpu-handoff/conf.d/scenario.toml; }
card_vm() { mkvm 111 "${gpu%.*},pcie=1"; qm set 111 --hookscript local:snippets/gpu-handoff >/dev/null || fail "qm set"; }
both() { echo "$(driver_of "$gpu") $(driver_of "$audio") $(override_of "$gpu") $(override_of "$audio")"; }
has_driver() { [ "$(driver_of "$1")" = "$2" ]; }

# at_home WHEN: the whole card and its modules, without a trace of us
at_home() {
	is "$(both)" "nvidia snd_hda_intel (null) (null)" "$1"
	is "$(records)" "" "records $1"
	for m in nvidia nvidia_modeset nvidia_drm nvidia_uvm; do [ -d /sys/module/$m ] || fail "$m is not loaded $1"; done
	[ -c /dev/nvidia0 ] || fail "no /dev/nvidia0 $1"
}
away() { is "$(both)" "vfio-pci vfio-pci (null) (null)" "$1"; }

# within SECONDS STATUS COMMAND...: it ends in that time with that exit status; `said` looks at what it printed
within() {
	_limit=$1 _want=$2; shift 2; _from=$(date +%s%3N)
	"$@" >/root/said 2>&1; _rc=$?; _took=$(($(date +%s%3N) - _from))
	cat /root/said; say "$_took ms, exit status $_rc: $*"
	[ $_rc -eq "$_want" ] || fail "exit status $_rc, should be $_want: $*"
	[ $_took -le $((_limit * 1000)) ] || fail "$_took ms, should be $_limit s at most: $*"
}
said() { grep -qF -- "$1" /root/said || fail "it does not say: $1"; }
