//! The worker's side: each act as the calls it is, and its post-condition read back.
//!
//! Everything here may be held up by the kernel for as long as it likes; the deadline is the parent's
//! ([`crate::execute::worker`]).

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::kmod::DeleteModuleFlags;

use crate::base::json;
use crate::base::pci::PciAddr;
use crate::base::root::Root;
use crate::base::text::{foreign, join};
use crate::base::wait::poll_readable;
use crate::execute::end_process::{Request, await_desktops, end_processes};
use crate::execute::gate::Gate;
use crate::execute::health::{Health, answers};
use crate::execute::kernel::ActError;
use crate::execute::looks;
use crate::execute::made_nodes;
use crate::execute::of_ha;
use crate::execute::programs::{failed, switch};
use crate::execute::prove_free::{PATIENCE, POLL, now, prove_free};
use crate::execute::renew_nodes;
use crate::execute::runs_already;
use crate::execute::verify::verify;
use crate::execute::worker::{Answer, Question, close_those};
use crate::host::displays;
use crate::host::functions::VFIO_PCI;
use crate::host::modules::Problem;
use crate::host::snapshot::Snapshot;
use crate::host::units::{Unit, Verb};
use crate::host::{modules, snapshot, stuck_calls};
use crate::model::act::{Act, Attribute, Expect};
use crate::model::refusal::describe;
use crate::plan::users;
use crate::state::{history, stopped};

/// How long a gate stays shut that nobody asks to be opened. A run takes some minutes at most; one that has been stopped,
/// or hangs, is not to keep the host from its GPU.
const GATE_AT_MOST: Duration = Duration::from_secs(600);

/// What ps(1) and the kernel's log call a worker: at most 15 bytes (prctl(2), PR_SET_NAME).
const NAME: &CStr = c"gpu-handoff-wrk";

/// What a worker is from its start to its end: it answers requests from stdin, one after the other. `records`: it keeps what
/// it looks at.
///
/// # Errors
/// Where its pipes cannot be read or written, which ends it.
pub fn serve(records: bool) -> io::Result<()> {
    let _ = nix::unistd::setsid();
    let _ = nix::sys::prctl::set_name(NAME);
    close_inherited()?;
    let root = Root::real();
    let mut worker = Server {
        root: if records { root.recording() } else { root },
        began: None,
        health: Health::from_now_on(),
        gate: None,
    };
    // Not through std's own, in whose buffers there may be something of the parent's.
    let mut requests = BufReader::new(File::from(io::stdin().as_fd().try_clone_to_owned()?));
    let mut replies = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    loop {
        let within = worker.gate.as_ref().map(|_| GATE_AT_MOST);
        let Some(line) = next_line(&mut requests, within)? else {
            return Ok(()); // and what it has shut is open
        };
        let reply = worker.answer(json::from_slice(line.as_bytes())?);
        let mut line = serde_json::to_vec(&reply)?;
        line.push(b'\n');
        replies.write_all(&line)?;
    }
}

/// The next request; None where there is none any more, or none comes in time.
fn next_line<R: Read + AsFd>(requests: &mut BufReader<R>, within: Option<Duration>) -> io::Result<Option<String>> {
    if let Some(within) = within
        && requests.buffer().is_empty()
        && poll_readable(&[requests.get_ref().as_fd()], within) == [false]
    {
        return Ok(None);
    }
    let mut line = String::new();
    let read = requests.read_line(&mut line)?;
    Ok((read > 0).then_some(line))
}

/// Closes what the caller of our caller may have left open without close-on-exec.
fn close_inherited() -> io::Result<()> {
    close_those(|_| true)
}

/// What lasts from one request to the next.
struct Server {
    root: Root,
    /// About when the run began: before whatever is asked first that is more than a file of Proxmox's.
    began: Option<Duration>,
    health: Health,
    /// While it is shut.
    gate: Option<Gate>,
}

impl Server {
    fn answer(&mut self, request: Question) -> Answer {
        if !matches!(request, Question::Find(_)) {
            self.began = self.began.or_else(now);
        }
        match request {
            Question::MakeNodes { paths, load } => Answer::NotMade(made_nodes::make(&self.root, &paths, load)),
            Question::Remember(entry) => {
                Answer::Remembered(history::add(&self.root, &entry).map_err(|e| format!("{}: {e}", history::DIR)))
            }
            Question::KeepStopped(boot, text) => {
                Answer::Remembered(stopped::keep(&self.root, &boot, &text).map_err(|e| e.to_string()))
            }
            Question::ForgetStopped(boot) => {
                Answer::Remembered(stopped::forget_before(&self.root, &boot).map_err(|e| e.to_string()))
            }
            Question::GiveToHa(ctid) => Answer::Remembered(of_ha::give_back(&self.root, ctid)),
            Question::Act(act) => {
                let (mut notes, mut ended) = (Vec::new(), Vec::new());
                let result = match &act {
                    Act::EndProcesses {
                        processes,
                        addrs,
                        within_ms,
                        kill,
                    } => {
                        let stdin = io::stdin();
                        let request = Request {
                            processes,
                            addrs,
                            within: Duration::from_millis(*within_ms),
                            kill: *kill,
                            asked_by: stdin.as_fd(),
                        };
                        let outcome = end_processes(&self.root, &request);
                        (notes, ended) = (outcome.notes, outcome.ended);
                        outcome.result.map(|()| None)
                    }
                    Act::AwaitDesktops { processes, addrs } => {
                        let outcome = await_desktops(&self.root, processes, addrs, io::stdin().as_fd());
                        (notes, ended) = (outcome.notes, outcome.ended);
                        outcome.result.map(|()| None)
                    }
                    Act::RenewNodes { container, had } => {
                        renew_nodes::renew(&self.root, *container, had, &mut notes).map(|()| None)
                    }
                    Act::Verify { addr, width } => {
                        let works = self.health.check(&self.root, *addr, *width, &mut notes);
                        notes.extend(made_nodes::correct(&self.root));
                        works.map(|()| None)
                    }
                    Act::ShutGate { addrs, whole } => {
                        self.gate = None;
                        let shut = Gate::shut(&self.root, addrs, *whole);
                        let none = |why| ActError::Failed(format!("there is no gate on this host: {why}"));
                        shut.map_err(none).map(|gate| {
                            self.gate = Some(gate);
                            None
                        })
                    }
                    Act::OpenGate { .. } => {
                        self.gate = None;
                        Ok(None)
                    }
                    act => {
                        let note = runs_already::note(&self.root, act, self.began);
                        let done = perform(&self.root, act, &mut notes);
                        notes.extend(note.filter(|_| done.is_ok()));
                        done
                    }
                };
                let (result, moment) = match result {
                    Ok(moment) => (Ok(()), moment),
                    Err(error) => (Err(error), None),
                };
                Answer::Acted {
                    result,
                    notes,
                    moment,
                    ended,
                }
            }
            question => looks::answer(&self.root, question),
        }
    }
}

/// Carries an act out, unless what it should lead to is so already: every act may be done twice. Returns the moment that
/// tells how old a proof is ([`crate::execute::kernel::Acted`]). `notes`: what is to be said of what went well.
fn perform(root: &Root, act: &Act, notes: &mut Vec<String>) -> Result<Option<Duration>, ActError> {
    let expect = act.expect();
    // What "default" would read as is not known before it is written.
    let is_default = matches!(&expect, Expect::Attribute(_, Attribute::ResetMethod, value) if value == "default");
    // One that runs may be about to be stopped: its start is asked for all the same, which takes that back (systemd,
    // src/core/transaction.c, transaction_drop_redundant; a job replaces one of the other kind that waits).
    let is_anew = match act {
        Act::RestartUnit { .. } => true,
        Act::StartUnit { name, .. } => name.is_of_systemd() || matches!(name, Unit::Inside { .. }),
        _ => false,
    };
    if expect != Expect::Nothing && !is_default && !is_anew && verify(root, &expect).is_ok() {
        return Ok(None);
    }
    let mut moment = None;
    let device = |addr: &PciAddr, name: &str| format!("/sys/bus/pci/devices/{addr}/{name}");
    match act {
        Act::LoadModule { name } => load_module(root, name)?,
        Act::UnloadModule { name } => unload_module(root, name)?,
        Act::SetOverride { addr, driver } => write_sysfs(
            root,
            &device(addr, "driver_override"),
            &format!("{}\n", driver.as_deref().unwrap_or_default()),
        )?,
        Act::SetAttribute { addr, attribute, value } => {
            write_sysfs(root, &device(addr, attribute.name()), &format!("{value}\n"))?;
        }
        Act::StopUnit { name, within_s } => switch_any(root, name, Verb::Stop, *within_s, notes)?,
        Act::StartUnit { name, within_s, .. } => switch_any(root, name, Verb::Start, *within_s, notes)?,
        Act::RestartUnit { name } => switch(root, name, Verb::Restart, 0)?,
        Act::SetConsole { name, bound } => set_console(root, name, *bound)?,
        Act::SetPlatform { device, driver, bound } => {
            let file = if *bound { "bind" } else { "unbind" };
            write_sysfs(root, &format!("/sys/bus/platform/drivers/{driver}/{file}"), device)?;
        }
        Act::ProveFree {
            addrs,
            despite,
            despite_unseen,
        } => moment = prove_free(root, addrs, despite, *despite_unseen)?,
        Act::Unbind { addr, driver } => {
            answers(root, *addr)?;
            moment = now();
            write_sysfs(
                root,
                &format!("/sys/bus/pci/drivers/{driver}/unbind"),
                &addr.to_string(),
            )?;
        }
        Act::Probe { addr, driver } => {
            if driver.as_deref() == Some(VFIO_PCI) {
                gpu_is_not_caught(root, *addr)?;
            }
            answers(root, *addr)?;
            write_sysfs(root, "/sys/bus/pci/drivers_probe", &addr.to_string())?;
        }
        Act::Reset { addr } => {
            // Under a driver it would go through that driver's users.
            if let Some(driver) = root.link_name(device(addr, "driver")) {
                return Err(ActError::Failed(format!("it is on {driver} by now")));
            }
            answers(root, *addr)?;
            nobody_is_at(root, *addr)?;
            write_sysfs(root, &device(addr, "reset"), "1")?;
            answers(root, *addr)?;
        }
        Act::ResetBus { addr, bridge } => {
            let dir = format!("/sys/bus/pci/devices/{bridge}");
            let below = root
                .names(&dir)
                .map_err(|e| ActError::Failed(format!("{bridge} cannot be read: {e}")))?;
            for function in below.iter().filter_map(|name| name.parse::<PciAddr>().ok()) {
                // Under a driver it would go through that driver's users.
                if let Some(driver) = root.link_name(device(&function, "driver")) {
                    return Err(ActError::Failed(format!("{function} is on {driver} by now")));
                }
            }
            answers(root, *addr)?;
            write_sysfs(root, &format!("{dir}/reset_subordinate"), "1")?;
            answers(root, *addr)?;
        }
        Act::Remove { addr } => {
            answers(root, *addr)?;
            nobody_is_at(root, *addr)?;
            moment = now();
            write_sysfs(root, &device(addr, "remove"), "1")?;
        }
        Act::Rescan {
            bridge: Some(bridge), ..
        } => write_sysfs(root, &device(bridge, "rescan"), "1")?,
        Act::Rescan { bridge: None, .. } => write_sysfs(root, "/sys/bus/pci/rescan", "1")?,
        // These are done by the worker itself.
        Act::Verify { .. }
        | Act::ShutGate { .. }
        | Act::OpenGate { .. }
        | Act::EndProcesses { .. }
        | Act::AwaitDesktops { .. }
        | Act::RenewNodes { .. } => {}
    }
    verify(root, &expect).map(|()| moment)
}

fn switch_any(root: &Root, unit: &Unit, verb: Verb, within_s: u64, notes: &mut Vec<String>) -> Result<(), ActError> {
    match unit {
        Unit::OfHa { ha_container } => of_ha::switch(root, *ha_container, verb, within_s, notes),
        _ => switch(root, unit, verb, within_s),
    }
}

/// A call of somebody else's that has begun since the plan was made: a reset or a removal would wait behind it. Other workers
/// of ours are at other functions.
fn nobody_is_at(root: &Root, addr: PciAddr) -> Result<(), ActError> {
    let program = |process: &str| root.link_name(format!("/proc/{process}/exe"));
    let ours = program("self");
    let calls = stuck_calls::scan(root).map_err(|e| ActError::Failed(format!("cannot read /proc: {e}")))?;
    let is_ours = |pid: i32| ours.is_some() && program(&pid.to_string()) == ours;
    match calls.iter().find(|c| c.at.contains(&addr) && !is_ours(c.pid)) {
        None => Ok(()),
        Some(call) => Err(ActError::Failed(format!(
            "process {} ({}) is in a call that holds it, or may do so",
            call.pid,
            foreign(&call.comm)
        ))),
    }
}

/// Before function 1 of a card goes to vfio-pci: whether somebody has loaded NVIDIA's driver meanwhile, and it has caught
/// function 0, which was to go there as well. With vfio-pci at function 1 its probe lets the kernel oops
/// (`src/plan/home_steps.rs`).
fn gpu_is_not_caught(root: &Root, addr: PciAddr) -> Result<(), ActError> {
    let gpu = PciAddr { function: 0, ..addr };
    let dir = format!("/sys/bus/pci/devices/{gpu}");
    let leaves = || root.line(format!("{dir}/driver_override")).as_deref() == Some(VFIO_PCI);
    let is_on_nvidia = || root.link_name(format!("{dir}/driver")).as_deref() == Some("nvidia");
    if addr == gpu.sound() && leaves() && is_on_nvidia() {
        return Err(ActError::Failed(format!("{gpu} is on nvidia by now")));
    }
    Ok(())
}

/// One write, nothing else: a second one would be a second act. Never creates and never truncates, as std's
/// `fs::write` would ask for.
fn write_sysfs(root: &Root, path: &str, text: &str) -> Result<(), ActError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(root.path(path))?;
        let written = file.write(text.as_bytes())?;
        if written == text.len() {
            return Ok(());
        }
        Err(io::ErrorKind::WriteZero.into())
    };
    write().map_err(|e| ActError::Failed(format!("writing {:?} to {path}: {e}", text.trim_end())))
}

/// Has a driver draw the consoles, or let go of them.
///
/// The kernel binds one in the place of the system's own, "(S)", and where there is no such one it does nothing and says
/// nothing (linux, drivers/tty/vt/vt.c, vt_bind). So it is where VGA's console was there before the first framebuffer: the
/// dummy that took its place is a modular one (drivers/pci/vgaarb.c, vga_remove_vgacon). That one is told to let go instead,
/// which binds the first other one (vt.c, do_unbind_con_driver).
fn set_console(root: &Root, name: &str, bound: bool) -> Result<(), ActError> {
    let set = |name: &str, flag| write_sysfs(root, &format!("/sys/class/vtconsole/{name}/bind"), flag);
    if !bound {
        return set(name, "0");
    }
    set(name, "1")?;
    let all = displays::consoles(root).unwrap_or_default();
    if all.iter().any(|c| c.name == name && c.bound) {
        return Ok(());
    }
    let dummy = all.iter().find(|c| c.bound && c.what == "dummy device");
    dummy.map_or(Ok(()), |dummy| set(&dummy.name, "0"))
}

/// Loads a module with what it needs. Where that fails it is told apart whether a device did not let itself be bound or the
/// module is at fault: missing, not signed, of another kernel.
fn load_module(root: &Root, name: &str) -> Result<(), ActError> {
    let words = ["modprobe", "--", name];
    let said = match root.program(&words) {
        Ok(said) if said.ok => return Ok(()),
        Ok(said) => said,
        Err(e) => return Err(ActError::CannotLoad(Problem::NoAnswer(e.to_string()))),
    };
    // For a file that is not there modprobe speaks of an unknown symbol (kmod, tools/modprobe.c, mod_strerror).
    let asked = modules::read(root, &[name.to_owned()]);
    if let Some(problem) = asked.into_iter().find_map(|l| l.problem) {
        return Err(ActError::CannotLoad(problem));
    }
    let why = failed(&words, &said.stderr);
    // What init_module(2) failed with, in the C locale that a worker has. nvidia gives up with ENODEV where it could bind no
    // GPU (open-gpu-kernel-modules, kernel-open/nvidia/nv.c, nvidia_init_module).
    let of_a_device = ["No such device", "Input/output error"];
    if of_a_device.iter().any(|words| said.stderr.contains(words)) {
        return Err(ActError::Failed(why));
    }
    Err(ActError::CannotLoad(Problem::Refused(why)))
}

/// Unloads a module at once or not at all. A last user that is just letting go gets a moment; one that stays is named, if it
/// can be seen.
fn unload_module(root: &Root, name: &str) -> Result<(), ActError> {
    let name_c = std::ffi::CString::new(name).map_err(|e| ActError::Failed(e.to_string()))?;
    let end = Instant::now() + PATIENCE;
    loop {
        match nix::kmod::delete_module(&name_c, DeleteModuleFlags::O_NONBLOCK) {
            // Gone already is what was wanted.
            Ok(()) | Err(nix::errno::Errno::ENOENT) => return Ok(()),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EBUSY) if Instant::now() < end => {
                std::thread::sleep(POLL); // a reference count has no event
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EBUSY) => {
                return Err(still_in_use(&snapshot::read_uses(root).unwrap_or_default(), name));
            }
            Err(e) => return Err(ActError::Failed(format!("unloading {name}: {e}"))),
        }
    }
}

/// A module that the kernel does not let go, with whoever is seen to have it open.
fn still_in_use(seen: &Snapshot, name: &str) -> ActError {
    let by = match users::of_module(seen, name).as_slice() {
        [] => ", and no process is seen to have it open".to_owned(),
        users => format!(" by {}", join(users.iter().map(|h| describe(h)))),
    };
    ActError::Failed(format!("the kernel says that {name} is in use{by}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::host::belongs::Belongs;
    use crate::host::holders::Holder;
    use crate::host::nodes::Node;

    #[test]
    fn who_has_a_module_open_that_cannot_be_unloaded_is_named() {
        let gpu: PciAddr = "0000:01:00.0".parse().unwrap();
        let holder = |pid, comm: &str, nodes: &[Node]| Holder {
            pid,
            comm: comm.to_owned(),
            belongs_to: Belongs::Container {
                ctid: "104".to_owned(),
                unit: None,
            },
            nodes: nodes.to_vec(),
        };
        let seen = Snapshot {
            holders: vec![
                holder(777, "python3", &[Node::Control, Node::Gpu(gpu)]),
                holder(778, "ffmpeg", &[Node::Control, Node::Uvm]),
                holder(779, "Xorg", &[Node::Drm(gpu)]),
            ],
            ..Snapshot::default()
        };
        for (seen, name, by) in [
            (
                &seen,
                "nvidia",
                " by process 777 (python3, container 104), process 778 (ffmpeg, container 104)",
            ),
            (&seen, "nvidia_uvm", " by process 778 (ffmpeg, container 104)"),
            (&seen, "nvidia_modeset", ", and no process is seen to have it open"),
            (
                &Snapshot::default(),
                "nvidia",
                ", and no process is seen to have it open",
            ),
        ] {
            let said = still_in_use(seen, name).to_string();
            assert_eq!(said, format!("the kernel says that {name} is in use{by}"));
        }
    }

    #[test]
    fn a_console_that_the_kernel_does_not_bind_is_bound_by_taking_the_dummy_off() {
        for (taken, dummy_after) in [(false, "0\n"), (true, "1\n")] {
            let dir = tempfile::tempdir().unwrap();
            let file = |path: &str| dir.path().join("sys/class/vtconsole").join(path);
            for (path, text) in [
                ("vtcon0/name", "(M) frame buffer device\n"),
                ("vtcon1/name", "(M) dummy device\n"),
                ("vtcon1/bind", "1\n"),
            ] {
                std::fs::create_dir_all(file(path).parent().unwrap()).unwrap();
                std::fs::write(file(path), text).unwrap();
            }
            let bind = file("vtcon0/bind");
            match taken {
                true => std::fs::write(bind, "0\n").unwrap(),
                // What is written to it changes nothing, and is no error.
                false => std::os::unix::fs::symlink("/dev/null", bind).unwrap(),
            }
            set_console(&Root::at(dir.path()), "vtcon0", true).unwrap();
            assert_eq!(std::fs::read_to_string(file("vtcon1/bind")).unwrap(), dummy_after);
        }
    }

    #[test]
    fn who_has_a_gate_shut_waits_for_the_next_request_only_so_long() {
        let (theirs, ours) = std::io::pipe().unwrap();
        let mut requests = BufReader::new(theirs);
        let soon = Some(Duration::from_millis(20));
        (&ours).write_all(b"one\ntwo\n").unwrap();
        assert_eq!(next_line(&mut requests, soon).unwrap().as_deref(), Some("one\n"));
        assert_eq!(next_line(&mut requests, soon).unwrap().as_deref(), Some("two\n"));
        assert_eq!(next_line(&mut requests, soon).unwrap(), None); // and the pipe is open still
        drop(ours);
        assert_eq!(next_line(&mut requests, None).unwrap(), None);
    }

    #[test]
    fn a_sound_function_does_not_go_to_vfio_pci_beside_a_gpu_that_nvidia_has_caught_on_its_way_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let gpu = dir.path().join("sys/bus/pci/devices/0000:01:00.0");
        std::fs::create_dir_all(&gpu).unwrap();
        let sound: PciAddr = "0000:01:00.1".parse().unwrap();
        for (driver, own, caught) in [
            ("nvidia", "vfio-pci\n", true),
            ("nvidia", "(null)\n", false), // it stays, and so it was seen
            ("vfio-pci", "vfio-pci\n", false),
            ("nouveau", "vfio-pci\n", false),
        ] {
            let _ = std::fs::remove_file(gpu.join("driver"));
            std::os::unix::fs::symlink(format!("../../drivers/{driver}"), gpu.join("driver")).unwrap();
            std::fs::write(gpu.join("driver_override"), own).unwrap();
            let said = gpu_is_not_caught(&root, sound).map_err(|e| e.to_string());
            let expected = Err("0000:01:00.0 is on nvidia by now".to_owned());
            assert_eq!(said, if caught { expected } else { Ok(()) }, "{driver} {own}");
            assert_eq!(gpu_is_not_caught(&root, "0000:01:00.2".parse().unwrap()), Ok(()));
        }
        std::fs::remove_dir_all(&gpu).unwrap();
        assert_eq!(gpu_is_not_caught(&root, sound), Ok(()));
    }

    #[test]
    fn a_proof_tells_when_its_scan_was_over() {
        let dir = tempfile::tempdir().unwrap();
        let act = Act::prove_free(vec!["0000:01:00.0".parse().unwrap()]);
        let before = now();
        let moment = perform(&Root::at(dir.path()), &act, &mut Vec::new()).unwrap();
        assert!(before.is_some() && before <= moment && moment <= now());
    }

    #[test]
    fn a_module_that_cannot_be_loaded_is_told_from_a_device_that_lets_itself_not_be_bound() {
        let insmod = "insmod /lib/modules/6.12/nvidia.ko \n";
        let could_not = |why: &str| format!("modprobe: ERROR: could not insert 'nvidia': {why}\n");
        let missing = Problem::Missing {
            file: "/lib/modules/6.12/nvidia.ko".to_owned(),
        };
        let refused = |words: &str| Problem::Refused(words.to_owned());
        // Debian's packages load it by an install line (modprobe.d/nvidia.conf).
        let by_install = "modprobe: ERROR: could not insert 'nvidia_current': No such device\nmodprobe: ERROR: \
                          ../libkmod/libkmod-module.c:1047 command_do() Error running install command 'modprobe -i \
                          nvidia-current ' for module nvidia: retcode 1\n";
        for (depends, file, stderr, problem) in [
            (Ok(insmod), true, could_not("No such device"), None),
            (
                Ok(insmod),
                true,
                by_install.to_owned() + &could_not("Invalid argument"),
                None,
            ),
            (Ok(insmod), true, could_not("Input/output error"), None),
            (
                Ok(insmod),
                false,
                could_not("Unknown symbol in module, or unknown parameter (see dmesg)"),
                Some(missing),
            ),
            (
                Err("modprobe: FATAL: Module nvidia not found in directory /lib/modules/6.12\n"),
                false,
                "modprobe: FATAL: Module nvidia not found in directory /lib/modules/6.12\n".to_owned(),
                Some(refused("not found in directory /lib/modules/6.12")),
            ),
            (
                Ok(insmod),
                true,
                could_not("Key was rejected by service"),
                Some(refused(
                    "modprobe -- nvidia failed: modprobe: ERROR: could not insert 'nvidia': Key was rejected by service",
                )),
            ),
            (
                Ok(insmod),
                true,
                could_not("Exec format error"),
                Some(refused(
                    "modprobe -- nvidia failed: modprobe: ERROR: could not insert 'nvidia': Exec format error",
                )),
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let put = |name: &str, text: &str| {
                let path = dir.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            };
            put("programs/failed/modprobe -- nvidia", &stderr);
            match depends {
                Ok(text) => put("programs/modprobe --show-depends -- nvidia", text),
                Err(text) => put("programs/failed/modprobe --show-depends -- nvidia", text),
            }
            if file {
                put("lib/modules/6.12/nvidia.ko", "");
            }
            let error = perform(&Root::at(dir.path()), &Act::load("nvidia"), &mut Vec::new()).unwrap_err();
            let expected = match problem {
                Some(problem) => ActError::CannotLoad(problem),
                None => ActError::Failed(failed(&["modprobe", "--", "nvidia"], &stderr)),
            };
            assert_eq!(error, expected, "{stderr}");
        }
    }

    #[test]
    fn a_bridge_resets_what_is_below_it_only_where_none_of_it_has_a_driver() {
        let dir = tempfile::tempdir().unwrap();
        let (root, devices) = (Root::at(dir.path()), dir.path().join("sys/bus/pci/devices"));
        let bridge = devices.join("0000:00:01.0");
        for name in ["0000:01:00.0", "0000:01:00.1"] {
            std::fs::create_dir_all(bridge.join(name)).unwrap();
            std::os::unix::fs::symlink(bridge.join(name), devices.join(name)).unwrap();
            std::fs::write(bridge.join(name).join("config"), [0xde, 0x10, 0x04, 0x22]).unwrap();
        }
        std::fs::write(bridge.join("reset_subordinate"), "").unwrap();
        let driver = bridge.join("0000:01:00.1/driver");
        std::os::unix::fs::symlink("../../drivers/vfio-pci", &driver).unwrap();
        let (addr, bridge_addr) = ("0000:01:00.0".parse().unwrap(), "0000:00:01.0".parse().unwrap());
        let act = Act::ResetBus {
            addr,
            bridge: bridge_addr,
        };
        let error = perform(&root, &act, &mut Vec::new()).unwrap_err().to_string();
        assert_eq!(error, "0000:01:00.1 is on vfio-pci by now");
        assert_eq!(std::fs::read_to_string(bridge.join("reset_subordinate")).unwrap(), "");
        std::fs::remove_file(driver).unwrap();
        perform(&root, &act, &mut Vec::new()).unwrap();
        assert_eq!(std::fs::read_to_string(bridge.join("reset_subordinate")).unwrap(), "1");
    }

    #[test]
    fn a_device_that_reads_all_ones_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("sys/bus/pci/devices/0000:01:00.0");
        std::fs::create_dir_all(&device).unwrap();
        let root = Root::at(dir.path());
        let addr = "0000:01:00.0".parse().unwrap();
        std::fs::write(device.join("config"), [0xff; 64]).unwrap();
        std::fs::write(device.join("reset"), "").unwrap();
        let error = perform(&root, &Act::Reset { addr }, &mut Vec::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains("reads all ones"), "{error}");
        assert_eq!(std::fs::read_to_string(device.join("reset")).unwrap(), "");
        std::fs::write(device.join("config"), [0xde, 0x10, 0x04, 0x22]).unwrap();
        perform(&root, &Act::Reset { addr }, &mut Vec::new()).unwrap();
        assert_eq!(std::fs::read_to_string(device.join("reset")).unwrap(), "1");
    }

    #[test]
    fn a_device_that_somebody_else_is_in_an_unbind_of_is_neither_reset_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("sys/bus/pci/devices/0000:01:00.0");
        let task = dir.path().join("proc/812/task/812");
        for path in [&device, &task, &dir.path().join("proc/812/fd")] {
            std::fs::create_dir_all(path).unwrap();
        }
        for (name, text) in [
            ("vendor", "0x10de"),
            ("class", "0x030000"),
            ("reset", ""),
            ("remove", ""),
        ] {
            std::fs::write(device.join(name), text).unwrap();
        }
        std::fs::write(dir.path().join("proc/812/comm"), "sh").unwrap();
        std::fs::write(
            task.join("stat"),
            "812 (sh) D 1 812 812 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 4711 1000 10",
        )
        .unwrap();
        let unbind = dir.path().join("proc/812/fd/1");
        std::os::unix::fs::symlink("/sys/bus/pci/drivers/nvidia/unbind", unbind).unwrap();
        let root = Root::at(dir.path());
        let addr = "0000:01:00.0".parse().unwrap();
        for (act, file) in [(Act::Reset { addr }, "reset"), (Act::Remove { addr }, "remove")] {
            let error = perform(&root, &act, &mut Vec::new()).unwrap_err().to_string();
            assert!(error.starts_with("process 812 (sh) is in a call"), "{act}: {error}");
            assert_eq!(std::fs::read_to_string(device.join(file)).unwrap(), "", "{act}");
        }
    }
}
