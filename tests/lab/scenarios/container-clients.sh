#!/bin/sh
# Containers of Podman's (the real one) and of Docker's (a stand-in) use the GPU: refused, or stopped and started again by their own client, by both ways; one of --rm is left alone.
# lab: --timeout 1500
# tier: long
. /usr/local/lib/lab-home.sh
printf '[storage]\ndriver = "vfs"\nrunroot = "/run/containers/storage"\ngraphroot = "/run/containers/graph"\n' >/etc/containers/storage.conf
root=/run/lab-pod/root; mkdir -p /run/lab-pod/root /run/lab-pod/upper /run/lab-pod/work
mount -t overlay overlay -o lowerdir=/,upperdir=/run/lab-pod/upper,workdir=/run/lab-pod/work $root || fail "no overlay"
pod() { podman run -d --network none --log-driver none --security-opt seccomp=unconfined --device /dev/nvidia0 --device /dev/nvidiactl "$@" \
	--rootfs $root /usr/local/bin/hold /dev/nvidia0 /dev/nvidiactl; }
scope() { case $1 in podman) echo "/sys/fs/cgroup/machine.slice/libpod-$2.scope" ;; *) echo "/sys/fs/cgroup/system.slice/docker-$2.scope" ;; esac; }
pids() { find "$(scope "$1" "$2")" -name cgroup.procs -exec cat {} + 2>/dev/null; }
uses() { for _p in $(pids "$1" "$2"); do [ -n "$(find "/proc/$_p/fd" -lname '*/nvidia0' 2>/dev/null)" ] && return 0; done; return 1; }
hears_term() { for _p in $(pids "$1" "$2"); do is "$(sed -n 's/^SigBlk:[[:space:]]*//p' "/proc/$_p/status")" 0000000000000000 "what $1's process is deaf to"; done; }
card_vm; setting 'deadlines.holder-wait = 2'
for client in podman docker; do
	case $client in podman) id=$(pod --stop-timeout 45) ;; docker) id=$(docker run --stop-timeout 45 /usr/local/bin/hold /dev/nvidia0 /dev/nvidiactl) ;; esac
	[ ${#id} -eq 64 ] || fail "$client has started none: $id"; wait_for 60 uses $client "$id"; short=$(echo "$id" | cut -c-12)
	say "$client: refused, with the line that allows it"
	before_pids=$(pids $client "$id"); setting 'deadlines.holder-wait = 2'; within 90 255 qm start 111
	said "container $short). Hint: $client stop $short, or containers = \"release\""; settled || fail "not as before"
	is "$(pids $client "$id")" "$before_pids" "its processes"
	for way in unload unbind; do
		setting 'containers = "release"' "way = \"$way\"" 'deadlines.unit = 30'
		expect_text "container $short has the GPU node of $gpu, /dev/nvidiactl open and is stopped, as 'containers' says" gpu-handoff plan --vm 111
		expect_text "at most 120 s" gpu-handoff plan --vm 111 # its own 45 s, twice, and deadlines.unit
		within 120 0 qm start 111; said "container $short"; away "$client, $way"; is "$(pids $client "$id")" "" "$client, $way: its processes"
		within 120 0 qm stop 111; comes_home 90 "$client, $way"; wait_for 60 uses $client "$id"
		hears_term $client "$id"
		qm set 111 --args --no-such-option >/dev/null; may_begin=8000; fails "$client, $way, a start that fails" qm start 111
		qm set 111 --delete args >/dev/null; wait_for 60 uses $client "$id"
		gpu-handoff 111 pre-start >/root/said 2>&1 & run=$!
		wait_for 60 sh -c "! uses() { find $(scope $client "$id") -name cgroup.procs -exec cat {} + 2>/dev/null | grep -q .; }; ! uses"
		kill -KILL $run; wait $run 2>/dev/null
		within 120 0 gpu-handoff 111 post-stop; comes_home 90 "$client, $way, killed when it was stopped"; wait_for 60 uses $client "$id"
		is_stopped() { [ -z "$(pids $client "$id")" ]; }
		undone "$client, $way" is_stopped; wait_for 60 uses $client "$id"
		killed "$client, $way" is_stopped; wait_for 60 uses $client "$id"
	done
	say "$client: one that is gone once it is stopped is not stopped"
	$client stop "$id" >/dev/null
	case $client in podman) id=$(pod --rm) ;; docker) id=$(docker run --rm /usr/local/bin/hold /dev/nvidia0 /dev/nvidiactl) ;; esac
	wait_for 60 uses $client "$id"; before_pids=$(pids $client "$id"); within 90 255 qm start 111
	said "may be stopped for it, but it was started with --rm, and is gone for good once it is stopped"
	is "$(pids $client "$id")" "$before_pids" "its processes"; $client stop "$id" >/dev/null; settled || fail "not as before"
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
umount -l $root; setting; at_home "in the end"
