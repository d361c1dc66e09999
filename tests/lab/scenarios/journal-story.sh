#!/bin/sh
# The journal of a failed start, read with 'journalctl -t gpu-handoff', tells the whole story in order, with VM, devices and times.
. /usr/local/lib/lab-home.sh
card_vm; qm set 111 --args --no-such-option >/dev/null
journalctl -q -n 1 --cursor-file=/run/scenario-cursor >/dev/null; from=$(cat /run/scenario-cursor)
qm start 111 2>&1 && fail "the start did not fail"
comes_home 60 "after the failed start"
story() { journalctl -q -t gpu-handoff --after-cursor="$from" "$@"; }
story -o json >/root/story
python3 - /root/story <<'PYTHON' || fail "the story is not told"
import json, re, sys, textwrap

lines = [json.loads(line) for line in open(sys.argv[1])]
first, phase = int(lines[0]["__REALTIME_TIMESTAMP"]), None
for line in lines:
    if line.get("PHASE") != phase:
        phase = line.get("PHASE")
        print(f"VM {line.get('VMID')}, {phase}:")
    head = f"{(int(line['__REALTIME_TIMESTAMP']) - first) / 1e6:8.2f} s  "
    print("\n".join(textwrap.wrap(line["MESSAGE"], 80, initial_indent=head, subsequent_indent=" " * 12)))

# What must be told, each after the one before.
rest = iter(lines)
for text in [
    r"^VM 111: 0000:01:00 to vfio-pci by unload: \d+ steps",
    r"^\[ 1/\d+\] ",
    r"0000:01:00\.1 +unbind from snd_hda_intel",
    r"nvidia +unload the module",
    r"0000:01:00\.0 +bind to vfio-pci",
    r"^VM 111: 0000:01:00 is on vfio-pci after [\d.]+ m?s",
    r"^VM 111: the start is over and no QEMU runs: bringing 0000:01:00\.0, 0000:01:00\.1 home",
    r"^VM 111: 0000:01:00 home: \d+ steps",
    r"nvidia +load the module",
    r"0000:01:00\.0 +bind to nvidia",
    r"0000:01:00\.1 +bind to snd_hda_intel",
    r"0000:01:00\.0 +see whether it works",
    r"^VM 111: 0000:01:00 is home after [\d.]+ m?s",
    r"^VM 111: nothing of it is away, the watch is over",
]:
    if not any(re.search(text, line["MESSAGE"]) for line in rest):
        sys.exit(f"not told, or not in its place: {text}")

# The fields, on every line that they belong to.
for line in lines:
    message, step = line["MESSAGE"], re.match(r"\[ *\d+/\d+\] (\S+)", line["MESSAGE"])
    if line.get("VMID") != "111":
        sys.exit(f"VMID is {line.get('VMID')}: {message}")
    if "PHASE" not in line:
        sys.exit(f"no PHASE: {message}")
    if step and line.get("DEVICE") != step[1]:
        sys.exit(f"DEVICE is {line.get('DEVICE')}: {message}")
    if step and int(line["DURATION_USEC"]) > 60e6:
        sys.exit(f"DURATION_USEC is {line['DURATION_USEC']}: {message}")
ids = [line["MESSAGE_ID"] for line in lines if "MESSAGE_ID" in line]
if ids != ["5a1d8f0a4a0c4d0f9d3d6b8c1f5e7a21", "0f5b6c1e2d7a4b38b1a9e4d3c2f60817"]:
    sys.exit(f"MESSAGE_ID: {ids}")
steps = [line for line in lines if "DURATION_USEC" in line]
print(f"-- {len(lines)} lines, {len(steps)} steps of {sum(int(s['DURATION_USEC']) for s in steps) / 1e6:.1f} s, in order")
PYTHON
