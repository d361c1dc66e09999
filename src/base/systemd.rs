//! What systemd is asked: to watch a VM's GPU, whether the host is shutting down, to take over what is stuck.
//!
//! Each question has a deadline, and an answer that does not come is no reason to stop: without systemd a handoff works
//! as well, only nobody watches it.

use std::path::Path;
use std::time::{Duration, Instant};

use tracing::{debug, info};

use crate::base::program::{ask, ask_to};
use crate::base::systemd_socket::{Failure, MANAGER, SOCKET, call};
use crate::base::text::{foreign, one_line};
use crate::base::vmid::VmId;

/// How long systemd gets for an answer.
const WITHIN: Duration = Duration::from_secs(5);

/// The interface by which properties are read (D-Bus Specification, "Standard Interfaces").
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Whether systemd is the host's init (sd_booted(3)).
pub fn is_there() -> bool {
    Path::new("/run/systemd/system").exists()
}

/// Has systemd do something to a unit and does not wait for that: a method with the unit's name and how the job counts beside
/// others, where there is one (`systemctl` calls the same with "replace": systemd, src/systemctl/systemctl-start-unit.c).
/// Where it cannot be asked over its socket, `systemctl` asks it.
fn have(method: &str, args: &[&str], words: &[&str]) -> Result<(), String> {
    let end = Instant::now() + WITHIN;
    match call(Path::new(SOCKET), MANAGER, method, args, WITHIN) {
        Ok(_) => Ok(()),
        Err(Failure::Refused(why)) => Err(foreign(&one_line(&why))),
        Err(Failure::Silent) => Err(no_answer()),
        Err(Failure::Cannot(why)) => ask_to(words, in_its_place(&why, end)),
    }
}

/// Has a unit started, or started anew, and does not wait for that.
fn begin(verb: &str, method: &str, unit: &str) -> Result<(), String> {
    have(method, &[unit, "replace"], &["systemctl", verb, "--no-block", unit])
}

/// How long `systemctl` gets, which asks in our place.
fn in_its_place(why: &str, end: Instant) -> Duration {
    debug!("systemctl asks systemd, which cannot be asked over {SOCKET}: {why}");
    end.saturating_duration_since(Instant::now())
}

fn no_answer() -> String {
    format!("systemd gave no answer within {} s", WITHIN.as_secs())
}

/// Asks for the watcher of a VM's GPU to be started anew: one that is waiting already would not know of this handoff.
/// It is not waited for, since it may have to wait for us.
///
/// # Errors
/// Why nobody will watch.
pub fn watch(vmid: VmId) -> Result<(), String> {
    if !is_there() {
        return Err("systemd is not running".to_owned());
    }
    begin("restart", "RestartUnit", &watcher(vmid))
}

/// Asks for the watcher of a VM's GPU where none waits. Without systemd there is none to have.
///
/// # Errors
/// Why nobody will watch.
pub fn keep_watch(vmid: VmId) -> Result<(), String> {
    if !is_there() {
        debug!("systemd is not running: nobody watches");
        return Ok(());
    }
    begin("start", "StartUnit", &watcher(vmid))
}

fn watcher(vmid: VmId) -> String {
    format!("gpu-handoff-watch@{vmid}.service")
}

/// What stands between who asks and a VM's number in the name of an instance of `gpu-handoff-tell@.service`.
pub const ABANDONED: &str = "-abandoned-";

/// Has it told what there is to tell, of a VM in particular whose watcher has tried in vain. The unit has our number in its
/// name: one that runs already may have looked before now. It is not waited for.
///
/// # Errors
/// Why nobody will tell; not where there is no systemd, and so no unit.
pub fn tell(abandoned: Option<VmId>) -> Result<(), String> {
    if !is_there() {
        debug!("systemd is not running: nobody is told");
        return Ok(());
    }
    let about = abandoned.map_or(String::new(), |vmid| format!("{ABANDONED}{vmid}"));
    let unit = format!("gpu-handoff-tell@{}{about}.service", std::process::id());
    begin("start", "StartUnit", &unit)
}

/// Runs the unit that brings a VM's GPU home, to its end. Whether it ended well.
///
/// # Errors
/// Why it could not be run, or that it did not end in time.
pub fn home(vmid: VmId, within: Duration) -> Result<bool, String> {
    let unit = format!("gpu-handoff-home@{vmid}.service");
    Ok(ask(&["systemctl", "start", &unit], within)?.0)
}

/// Has systemd forget that the unit that brings a VM's GPU home has failed, since the GPU is home. What systemd says to that
/// is nothing to anybody: most often that it knows no such unit.
pub fn is_home(vmid: VmId) {
    if is_there() {
        let unit = format!("gpu-handoff-home@{vmid}.service");
        let _ = have("ResetFailedUnit", &[&unit], &["systemctl", "reset-failed", &unit]);
    }
}

/// Whether the host is shutting down: systemd's state is then "stopping", from the moment the shutdown is asked for
/// (systemctl(1), is-system-running, which asks for the same property: systemd, src/systemctl/systemctl-is-system-running.c;
/// src/core/manager.c, manager_state).
pub fn is_shutting_down() -> bool {
    is_running_as(&["stopping"])
}

/// Whether the host is starting still: there is a job that the boot waits for.
pub fn is_starting() -> bool {
    is_running_as(&["initializing", "starting"])
}

fn is_running_as(states: &[&str]) -> bool {
    if !is_there() {
        return false;
    }
    let end = Instant::now() + WITHIN;
    let state = match call(Path::new(SOCKET), PROPERTIES, "Get", &[MANAGER, "SystemState"], WITHIN) {
        Ok(state) => Ok(state),
        Err(Failure::Silent) => Err(no_answer()),
        Err(Failure::Refused(why) | Failure::Cannot(why)) => {
            let words = ["systemctl", "is-system-running"];
            ask(&words, in_its_place(&why, end)).map(|(_, state)| state)
        }
    };
    match state {
        Ok(state) => states.contains(&state.trim()),
        Err(why) => {
            debug!("whether the host is starting or shutting down is not known: {why}");
            false
        }
    }
}

/// Moves what is stuck into a scope of its own: left in the cgroup of a daemon of Proxmox's it would hold up the stop of
/// that daemon, for a time (pvedaemon) or for ever (pve-guests, TimeoutSec=infinity). Where there is no systemd, it stays.
pub fn take_over(group: u32, pids: &[i32]) {
    if !is_there() || pids.is_empty() {
        return;
    }
    let unit = format!("gpu-handoff-stuck-{group}.scope");
    let mut words: Vec<String> = Vec::new();
    // StartTransientUnit(name, mode, properties, aux) of org.freedesktop.systemd1(5).
    let call = [
        "busctl",
        "--quiet",
        "call",
        "org.freedesktop.systemd1",
        "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager",
        "StartTransientUnit",
        "ssa(sv)a(sa(sv))",
        &unit,
        "fail",
        "3",
        "Description",
        "s",
        "A call of gpu-handoff that is stuck in the kernel",
        "TimeoutStopUSec",
        "t",
        "1000000",
        "PIDs",
        "au",
    ];
    words.extend(call.map(str::to_owned));
    words.push(pids.len().to_string());
    words.extend(pids.iter().map(ToString::to_string));
    words.push("0".to_owned());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match ask(&words, WITHIN) {
        Ok((true, _)) => info!("what is stuck waits in {unit}"),
        other => debug!("{unit} was not made: {other:?}"),
    }
}
