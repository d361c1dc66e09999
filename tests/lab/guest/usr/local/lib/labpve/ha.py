"""The cluster's manager, for containers [HA: pve-ha-manager 5.2.0].

`ha-manager set ct:104 --state stopped` writes what is wanted and ends [HA API2/HA/Resources.pm update]; `crm-command stop`, which
pct asks for, waits for the manager's next round [HA Manager.pm next_state_started]. `ha-manager run` is both daemons of one node, each
with rounds of its own. The manager's: what is wanted of each that it does not ignore becomes its state in
/etc/pve/ha/manager_status. The node's: what that said at the beginning of a round is done some seconds later, also where it has
changed meanwhile [HA LRM.pm work, run_workers], and lrm_status tells how it went. One that fails is in `error` from then on, which
only `disabled` leads out of [HA Manager.pm next_state_request_stop, next_state_error]. lab: no other node, no quorum, no restart policy.
"""

import json
import os
import re
import subprocess
import threading
import time

from .paths import PVE, Died, read, say, warn, write

RESOURCES = f"{PVE}/ha/resources.cfg"
COMMANDS = f"{PVE}/ha/crm_commands"
STATUS = f"{PVE}/ha/manager_status"
NODE = f"{PVE}/local/lrm_status"
ROUND = 5           # seconds [HA CRM.pm, LRM.pm do_one_iteration]
LATE = 3            # seconds from what the node's daemon has read to what it does
SHUTDOWN = "60"     # [HA Resources/PVECT.pm shutdown]
BY_HA = "LAB_BY_HA"


def states():
    """What is wanted of each container; none is said: started [HA Config.pm read_and_check_resources_config]."""
    found = {}
    for section in re.split(r"\n\s*\n", read(RESOURCES, "")):
        if header := re.match(r"ct:\s*(\d+)\s*(?:\n|$)", section.lstrip("\n")):
            state = re.search(r"(?m)^\s+state\s+(\S+)", section)
            found[int(header[1])] = state[1] if state else "started"
    return found


def manages(ctid):
    """Whether pct leaves it to the manager [HA Config.pm vm_is_ha_managed]; what the manager itself asks for is done."""
    return BY_HA not in os.environ and states().get(int(ctid), "ignored") != "ignored"


def request(ctid, verb):
    """What pct does then [CT API2/LXC/Status.pm]."""
    say(f"Requesting HA {'start' if verb == 'start' else 'stop'} for CT {ctid}")
    if verb == "start":
        want(ctid, "started")
    else:
        write(COMMANDS, read(COMMANDS, "") + f"stop ct:{ctid}\n")


def want(ctid, state):
    if ctid not in states():
        raise Died(f"no such resource 'ct:{ctid}'")
    if status().get(f"ct:{ctid}", {}).get("state") == "error" and state != "disabled":
        raise Died(f"service 'ct:{ctid}' in error state, must be disabled and fixed first")
    text = re.sub(rf"(?m)^(ct:\s*{ctid}\s*\n(?:\s+\S.*\n)*?)\s+state\s+\S+\n", r"\1", read(RESOURCES))
    write(RESOURCES, re.sub(rf"(?m)^ct:\s*{ctid}\s*$", rf"\g<0>\n\tstate {state}", text))


def status():
    return json.loads(read(STATUS, "") or "{}").get("service_status", {})


def run():
    threading.Thread(target=manager, daemon=True).start()
    node()


def manager():
    while True:
        for ctid in re.findall(r"(?m)^stop ct:(\d+)$", read(COMMANDS, "")):
            want(int(ctid), "stopped")
        if os.path.exists(COMMANDS):
            os.unlink(COMMANDS)
        known, results = status(), json.loads(read(NODE, "") or "{}").get("results", {})
        wanted, now = states(), {}
        time.sleep(1)           # what it writes is of what it has read before
        for ctid, state in wanted.items():
            was = known.get(f"ct:{ctid}", {}).get("state")
            is_in_error = was == "error" or (was and results.get(f"ct:{ctid}") == [was, False])
            if state != "ignored":
                now[f"ct:{ctid}"] = {"state": "error" if is_in_error and state != "disabled" else state}
        write(STATUS, json.dumps({"timestamp": time.time_ns(), "service_status": now}))
        time.sleep(ROUND - 1)


def node():
    while True:
        known = status()
        time.sleep(LATE)
        results = {sid: [service["state"], bring(sid.removeprefix("ct:"), service["state"])] for sid, service in known.items()}
        write(NODE, json.dumps({"timestamp": time.time_ns(), "results": results}))
        time.sleep(ROUND - LATE)


def bring(ctid, state):
    """Starts or stops it where it is not so; whether it is so then."""
    wanted, words = {
        "started": ("status: running", ["start", ctid]),
        "stopped": ("status: stopped", ["shutdown", ctid, "--timeout", SHUTDOWN]),
        "disabled": ("status: stopped", ["shutdown", ctid, "--timeout", SHUTDOWN]),
    }.get(state, ("", []))

    def is_so():
        return subprocess.run(["pct", "status", ctid], capture_output=True, text=True, check=False).stdout.strip() == wanted

    if not wanted or is_so():
        return True
    subprocess.run(["pct", *words], env={**os.environ, BY_HA: "1"}, check=False)
    return is_so()


def main(argv):
    try:
        match argv[1:]:
            case ["set", sid, "--state", state] if re.fullmatch(r"ct:\d+", sid):
                want(int(sid.removeprefix("ct:")), state)
            case ["run"]:
                run()
            case _:
                raise Died("400 not enough arguments\nha-manager set ct:CTID --state STATE")
        return 0
    except (Died, OSError) as error:
        warn(str(error))
        return 255
