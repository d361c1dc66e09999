#!/bin/sh
# Containers of Podman's (the real one) and of Docker's (a stand-in) use the GPU: refused, or stopped and started again by their own client, by both ways, one that is deaf as well; one of --rm is left alone, as is one whose namespaces another one shares, and what does not start again is named.
# lab: --timeout 2400
# tier: long
. /usr/local/lib/lab-home.sh
printf '[storage]\ndriver = "vfs"\nrunroot = "/run/containers/storage"\ngraphroot = "/run/containers/graph"\n' >/etc/containers/storage.conf
root=/run/lab-pod/root; mkdir -p /run/lab-pod/root /run/lab-pod/upper /run/lab-pod/work
mount -t overlay overlay -o lowerdir=/,upperdir=/run/lab-pod/upper,workdir=/run/lab-pod/work $root || fail "no overlay"
holds="/usr/local/bin/hold /dev/nvidia0 /dev/nvidiactl"; deaf="/usr/bin/python3 /usr/local/lib/lab-uses deaf"; program=$holds
pod() { podman run -d --network none --log-driver none --security-opt seccomp=unconfined --device /dev/nvidia0 --device /dev/nvidiactl "$@" \
	--rootfs $root $program; }
# begin OPTION...: a container of $client's; its id is in $id, and what its client shows of that in $short
begin() { case $client in podman) id=$(pod "$@") ;; docker) id=$(docker run "$@" $program) ;; esac
	[ ${#id} -eq 64 ] || fail "$client has started none: $id"; wait_for 60 uses $client "$id"; short=$(echo "$id" | cut -c-12); }
scope() { case $1 in podman) echo "/sys/fs/cgroup/machine.slice/libpod-$2.scope" ;; *) echo "/sys/fs/cgroup/system.slice/docker-$2.scope" ;; esac; }
pids() { find "$(scope "$1" "$2")" -name cgroup.procs -exec cat {} + 2>/dev/null; }
user() { for _p in $(pids "$1" "$2"); do [ -z "$(find "/proc/$_p/fd" -lname '*/nvidia0' 2>/dev/null)" ] || echo "$_p"; done; }
uses() { [ -n "$(user "$1" "$2")" ]; }
users() { podman ps -a --no-trunc --format '{{.ID}} {{.State}}' | sort
	for _id in /var/lib/lab-docker/*; do [ ! -e "$_id" ] || { echo "$_id"; docker container inspect --format - "${_id##*/}"; }; done; }
hears_term() { for _p in $(pids "$1" "$2"); do is "$(sed -n 's/^SigBlk:[[:space:]]*//p' "/proc/$_p/status")" 0000000000000000 "what $1's process is deaf to"; done; }
card_vm; setting 'deadlines.holder-wait = 2'
for client in podman docker; do
	begin --stop-timeout 45; remember
	say "$client: refused, with the line that allows it"
	before_pids=$(pids $client "$id"); setting 'deadlines.holder-wait = 2'; within 90 255 qm start 111
	said "in use by process $(user $client "$id") (hold, "; said "container $short). Hint: $client stop $short, or containers = \"release\""; settled || fail "not as before"
	is "$(pids $client "$id")" "$before_pids" "its processes"
	for way in unload unbind; do
		setting 'containers = "release"' "way = \"$way\"" 'deadlines.unit = 30'
		expect_text "container $short has the GPU node of $gpu, /dev/nvidiactl open and is stopped, as 'containers' says" gpu-handoff plan --vm 111
		expect_text "at most 120 s" gpu-handoff plan --vm 111 # its own 45 s, twice, and deadlines.unit
		within 120 0 qm start 111; said "container $short"; away "$client, $way"; is "$(pids $client "$id")" "" "$client, $way: its processes"
		within 120 0 qm stop 111; comes_home 90 "$client, $way"; wait_for 60 uses $client "$id"; as_before "$client, $way"
		hears_term $client "$id"
		qm set 111 --args --no-such-option >/dev/null; may_begin=8000; fails "$client, $way, a start that fails" qm start 111
		qm set 111 --delete args >/dev/null; wait_for 60 uses $client "$id"
		gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!
		wait_for 60 sh -c "! uses() { find $(scope $client "$id") -name cgroup.procs -exec cat {} + 2>/dev/null | grep -q .; }; ! uses"
		kill -KILL $run; wait $run 2>/dev/null
		within 120 0 gpu-handoff 111 post-stop; comes_home 90 "$client, $way, killed when it was stopped"; wait_for 60 uses $client "$id"
		is_stopped() { [ -z "$(pids $client "$id")" ]; }
		undone "$client, $way" is_stopped; wait_for 60 uses $client "$id"
		killed "$client, $way" is_stopped; wait_for 60 uses $client "$id"; as_before "$client, $way, killed"
	done
	say "$client: one that is gone once it is stopped is not stopped"
	$client stop "$id" >/dev/null
	begin --rm; before_pids=$(pids $client "$id"); within 90 255 qm start 111
	said "may be stopped for it, but it was started with --rm, and is gone for good once it is stopped"
	is "$(pids $client "$id")" "$before_pids" "its processes"; $client stop "$id" >/dev/null; settled || fail "not as before"
	say "$client: one whose namespaces another one shares is not stopped"
	begin; program="/usr/bin/sleep 1000"
	case $client in podman) other=$(pod --pid "container:$id") ;; docker) other=$(docker run --pid "container:$id" $program) ;; esac; program=$holds
	before_pids=$(pids $client "$id"); within 90 255 qm start 111; said "container $(echo "$other" | cut -c-12) shares its namespaces, and would end with it or be cut off"
	is "$(pids $client "$id")" "$before_pids" "its processes"; $client stop -t 1 "$other" >/dev/null; $client stop -t 1 "$id" >/dev/null; settled || fail "not as before"
	say "$client: one that is deaf to TERM is ended, and started again"
	program=$deaf; begin --stop-timeout 3; program=$holds
	for way in unload unbind; do
		setting 'containers = "release"' "way = \"$way\"" 'deadlines.unit = 30' 'deadlines.container = 5'
		within 120 0 qm start 111; said "container $short"; away "$client, $way, deaf"; is "$(pids $client "$id")" "" "$client, $way, deaf: its processes"
		within 120 0 qm stop 111; comes_home 90 "$client, $way, deaf"; wait_for 60 uses $client "$id"
	done
	$client stop -t 1 "$id" >/dev/null
done
say "a client that is not there, or gives no answer"
setting 'containers = "release"' 'deadlines.unit = 5' 'deadlines.holder-wait = 2'
id=$(pod); wait_for 60 uses podman "$id"; mv /usr/bin/podman /root/podman; printf '#!/bin/sh\nsleep 1000\n' >/usr/bin/podman; chmod 755 /usr/bin/podman
within 60 255 qm start 111; said "since Podman gives no answer"; uses podman "$id" || fail "it was stopped"; mv /root/podman /usr/bin/podman; podman stop "$id" >/dev/null
id=$(docker run /usr/local/bin/hold /dev/nvidia0); wait_for 60 uses docker "$id"; mv /usr/bin/docker /root/docker
within 60 255 qm start 111; said "since Docker gives no answer: docker cannot be run"
printf '#!/bin/sh\nsleep 1000\n' >/usr/bin/docker; chmod 755 /usr/bin/docker
within 60 255 qm start 111; said "since Docker gives no answer"; uses docker "$id" || fail "it was stopped"
cp /root/docker /usr/bin/docker; docker stop "$id" >/dev/null
say "a client that is not there when the GPU is home: that is said, and the GPU is home all the same"
setting 'containers = "release"' 'deadlines.unit = 30' 'deadlines.container = 5'
named() { journalctl -q -b -o cat -t gpu-handoff | grep -q "container $1 was stopped for the handoff and does not start again"; }
for client in podman docker; do
	begin; within 120 0 qm start 111; away "before $client goes"; mv /usr/bin/$client /root/$client
	within 120 0 qm stop 111; comes_home 90 "without $client"; mv /root/$client /usr/bin/$client; wait_for 20 named "$short"; is "$(pids $client "$id")" "" "its processes"
	$client start "$id" >/dev/null; wait_for 60 uses $client "$id"; $client stop -t 1 "$id" >/dev/null
done
umount -l $root; setting; at_home "in the end"
