//! What acts do that are no call into a driver, and reading post-conditions back: as `gpu_handoff::execute::perform` has it.

use std::time::Duration;

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::base::vmid::VmId;
use gpu_handoff::execute::kernel::{ActError, Kernel};
use gpu_handoff::host::belongs::Belongs;
use gpu_handoff::host::nodes::Node;
use gpu_handoff::host::units::{Client, Facts, Ha, Said, Unit};
use gpu_handoff::model::act::{Act, Attribute, Expect};
use gpu_handoff::model::named::Named;
use gpu_handoff::model::refusal::Reason;
use gpu_handoff::plan::{clients, users};

use super::calls::{Answer, Errno};
use super::effects::broken_off;
use super::hosts::{MPS, PERSISTENCED};
use super::state::{Device, Model, Process, Stage};

/// How long a holder or a last user gets to let go.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a group that nobody is seen to hold is waited for.
const GROUP_PATIENCE: Duration = Duration::from_secs(7);

/// How often it is looked for one that lets go without ending.
const POLL: Duration = Duration::from_millis(200);

impl Model {
    pub(super) fn do_at_once(&mut self, act: &Act, end: Duration) -> Result<(), ActError> {
        let done = match act {
            Act::ProveFree {
                addrs,
                despite,
                despite_unseen,
            } => return self.prove_free(addrs, despite, *despite_unseen, end),
            Act::StopUnit { name, .. } => return self.switch_unit(name, false),
            Act::StartUnit { name, .. } => return self.switch_unit(name, true),
            Act::RestartUnit { name } => return self.restart_unit(name),
            Act::AwaitDesktops { processes, .. } => {
                let lives = |pid: i32| self.processes.iter().any(|p| p.pid == pid);
                self.ended = processes.iter().map(|one| one.pid).filter(|pid| !lives(*pid)).collect();
                return Ok(());
            }
            Act::RenewNodes { container, .. } => {
                let uvm = self.uvm;
                let its = self.given.iter_mut().filter(|(ctid, _)| ctid == container);
                its.for_each(|(_, sees)| *sees = uvm);
                return Ok(());
            }
            Act::EndProcesses {
                processes,
                addrs,
                within_ms,
                kill,
            } => return self.end_processes(processes, addrs, Duration::from_millis(*within_ms), *kill),
            Act::Verify { addr, .. } => return self.see_whether_it_works(*addr),
            Act::ShutGate { addrs, whole } if self.has_gate => {
                self.gate = Some((addrs.clone(), *whole));
                Ok(())
            }
            Act::ShutGate { .. } => Err(Errno::Inval),
            Act::OpenGate { .. } => {
                self.gate = None;
                Ok(())
            }
            Act::SetAttribute { addr, attribute, value } => self.set_attribute(*addr, *attribute, value),
            Act::SetConsole { name, bound } => self.set_console(name, *bound),
            Act::SetPlatform { device, bound, .. } => self.set_platform(device, *bound),
            // Calls into drivers, which take their time (effects.rs).
            Act::LoadModule { .. }
            | Act::UnloadModule { .. }
            | Act::SetOverride { .. }
            | Act::Unbind { .. }
            | Act::Probe { .. }
            | Act::Reset { .. }
            | Act::ResetBus { .. }
            | Act::Remove { .. }
            | Act::Rescan { .. } => Ok(()),
        };
        done.map_err(|errno| ActError::Failed(format!("{act}: {errno}")))
    }

    /// Those that use these functions still, all at once.
    fn end_processes(
        &mut self,
        processes: &[Named],
        addrs: &[PciAddr],
        within: Duration,
        kill: bool,
    ) -> Result<(), ActError> {
        let uses = self.uses();
        let is_user = |p: &Process| clients::can_end_now(&uses, p.pid, addrs);
        let is_meant = |p: &&Process| processes.iter().any(|one| one.pid == p.pid) && is_user(p);
        let meant: Vec<Process> = self.processes.iter().filter(is_meant).cloned().collect();
        for process in &meant {
            if !matches!(process.belongs_to, Belongs::Session { .. }) {
                self.laws
                    .broken
                    .push(format!("law 2: a process was not anybody's to end: {process:?}"));
            }
        }
        let is_deaf = meant.iter().any(|p| p.deaf);
        if is_deaf {
            self.spend(within);
        }
        self.tick += 1;
        let ends = |p: &Process| meant.iter().any(|m| m.pid == p.pid) && (kill || !p.deaf);
        self.ended = self.processes.iter().filter(|p| ends(p)).map(|p| p.pid).collect();
        self.processes.retain(|p| !ends(p));
        if is_deaf && !kill {
            return Err(ActError::Failed("it has not ended".to_owned()));
        }
        Ok(())
    }

    /// systemctl restart: what runs and needs it is started anew as well.
    fn restart_unit(&mut self, name: &Unit) -> Result<(), ActError> {
        let needing = self.units.iter().filter(|u| u.active && u.needs.as_ref() == Some(name));
        let needing: Vec<Unit> = needing.map(|u| u.name.clone()).collect();
        self.switch_unit(name, false)?;
        self.switch_unit(name, true)?;
        needing.iter().try_for_each(|one| self.switch_unit(one, true))
    }

    /// The state of units, and what goes down with them.
    pub fn what_systemd_says(&self, units: &[Unit]) -> Vec<Facts> {
        let facts = |unit: &Unit| {
            let is_down = matches!(unit, Unit::Inside { container, .. } if self.down.contains(container));
            let known = self.units.iter().find(|u| u.name == *unit && !is_down);
            let needing = self.units.iter().filter(|u| u.active && u.needs.as_ref() == Some(unit));
            let starting = self
                .units
                .iter()
                .filter(|u| u.active && u.starts.as_ref() == Some(unit));
            Facts {
                unit: unit.clone(),
                said: known.ok_or_else(|| "no answer".to_owned()).map(|known| Said {
                    state: if known.active { "active" } else { "inactive" }.to_owned(),
                    takes_along: needing.map(|u| u.name.name()).collect(),
                    started_by: starting.map(|u| u.name.name()).collect(),
                    never: self.never.iter().find(|(of, _)| of == unit).map(|(_, why)| why.clone()),
                    ends_within_s: known.ends_within_s,
                    ha: known.ha.clone(),
                }),
            }
        };
        units.iter().map(facts).collect()
    }

    /// Whether a unit runs; one that HA is owed is the container.
    pub fn is_up(&self, unit: &Unit) -> bool {
        let is_it = |name: &Unit| name == unit || (name.is_whole() && unit.holds(name));
        self.units.iter().any(|u| u.active && is_it(&u.name))
    }

    /// Processes that are ending are waited for; others have a moment to let go.
    fn prove_free(
        &mut self,
        addrs: &[PciAddr],
        despite: &[i32],
        despite_unseen: bool,
        end: Duration,
    ) -> Result<(), ActError> {
        let start = self.time;
        loop {
            let mut looked = self.uses();
            self.look_at_modules(&mut looked);
            let patient = self.time < start + PATIENCE;
            let mut reasons = users::use_of(&looked, addrs);
            reasons.extend(users::drm_holds(&looked, addrs));
            let (mut pids, mut wait) = (Vec::new(), false);
            for reason in &reasons {
                match reason {
                    Reason::Ending(holder) => pids.push(holder.pid),
                    Reason::Doubtful { holder, .. } if despite.contains(&holder.pid) => {}
                    Reason::Held { holder, .. } | Reason::Doubtful { holder, .. } if patient => pids.push(holder.pid),
                    Reason::Unseen(_) | Reason::Uncounted { .. } if despite_unseen => {}
                    Reason::Unseen(_) | Reason::Uncounted { .. } if patient => wait = true,
                    reason => return Err(ActError::Failed(reason.to_string())),
                }
            }
            if pids.is_empty() && !wait {
                match self.held_group(addrs) {
                    None => {
                        self.proven(addrs);
                        return Ok(());
                    }
                    Some(_) if self.time < start + GROUP_PATIENCE => {}
                    Some(group) => return Err(ActError::Failed(Reason::GroupHeld(group).to_string())),
                }
            }
            if self.time >= end {
                // The worker that waits can be ended.
                let within = end.saturating_sub(start);
                return Err(ActError::Overdue { within, stuck: None });
            }
            let left = end.saturating_sub(self.time);
            if pids.is_empty() {
                self.spend(POLL.min(left));
                continue;
            }
            self.await_exit(&pids, POLL.min(left));
            if self.is_broken_off() {
                return Err(broken_off());
            }
            if self.signal.is_some() {
                self.spend(POLL); // what waits for a worker's answer does not look for signals before that
            }
        }
    }

    /// A group of these functions that somebody holds, seen or not.
    fn held_group(&self, addrs: &[PciAddr]) -> Option<u32> {
        let on_vfio = |a: &&PciAddr| self.driver_of(**a) == Some("vfio-pci");
        let groups = addrs.iter().filter(on_vfio).filter_map(|a| self.device(*a)?.group);
        let is_held = |group: &u32| {
            self.processes
                .iter()
                .any(|p| p.nodes.contains(&Node::VfioGroup(*group)))
        };
        groups.into_iter().find(is_held)
    }

    /// A last user of a module that is just letting go gets a moment.
    pub(super) fn await_last_user(&mut self, name: &str, end: Duration) {
        if self.refs(name) > 0 {
            let until = end.min(self.time + PATIENCE);
            self.wait_until(until, |m| m.refs(name) == 0);
        }
    }

    fn see_whether_it_works(&mut self, addr: PciAddr) -> Result<(), ActError> {
        match self.device(addr) {
            Some(device) if device.dead => Err(ActError::Failed("it does not answer any more".to_owned())),
            Some(device) if device.minor.is_some() => Ok(()),
            _ => Err(ActError::Failed("NVIDIA's driver does not list it".to_owned())),
        }
    }

    /// systemctl start or stop, on the host or inside a container; or a container is stopped or started.
    pub fn switch_unit(&mut self, name: &Unit, on: bool) -> Result<(), ActError> {
        let belongs_to = match name {
            Unit::Host(name) => Belongs::Unit(name.clone()),
            Unit::Inside { container, .. } if self.down.contains(container) => {
                return Err(ActError::Failed(format!("container '{container}' not running!")));
            }
            Unit::Inside { container, unit } => Belongs::Container {
                ctid: container.to_string(),
                unit: Some(unit.clone()),
            },
            Unit::Whole { container } => Belongs::Container {
                ctid: container.to_string(),
                unit: None,
            },
            Unit::Run { client, id } => match client {
                Client::Docker => Belongs::Docker(id.clone()),
                Client::Podman => Belongs::Podman(id.clone()),
            },
            Unit::OfUser { user, unit } => Belongs::UserUnit {
                uid: Some(*user),
                name: unit.clone(),
            },
            Unit::OfHa { ha_container } => return self.switch_of_ha(*ha_container, on),
            Unit::DriverUse { .. } => return self.switch_driver_use(name, on),
        };
        let Some(at) = self.units.iter().position(|u| u.name == *name) else {
            return Err(ActError::Failed(format!("systemctl: Unit {name} not found.")));
        };
        self.tick += 1;
        if !on && self.units[at].ha == Some(Ha::LooksAfter) {
            self.laws
                .broken
                .push(format!("law 2: HA looks after {name}, which was stopped"));
        }
        if !on {
            let needing = self.units.iter().filter(|u| u.active && u.needs.as_ref() == Some(name));
            let needing: Vec<Unit> = needing.map(|u| u.name.clone()).collect();
            for one in needing {
                self.switch_unit(&one, false)?;
            }
            self.units[at].active = false;
            self.follow(name, false);
            let of_desktop = self.desktop.take_if(|d| name.on_host() == Some(d.unit.as_str()));
            self.processes.retain(|p| {
                let is_of_container = p.belongs_to.ctid().is_some_and(|ctid| {
                    let whole = matches!(name, Unit::Whole { .. });
                    whole && name.container().is_some_and(|container| container.to_string() == ctid)
                });
                let is_of_desktop = of_desktop.as_ref().is_some_and(|d| d.has(&p.belongs_to));
                p.belongs_to != belongs_to && !is_of_container && !is_of_desktop
            });
            self.desktop = self.desktop.take().or(of_desktop);
            for inside in self.units.iter_mut().filter(|u| name.holds(&u.name) && u.active) {
                (inside.active, inside.with_whole) = (false, true);
            }
            // Somebody uses it all the time.
            if self.units.iter().any(|u| u.active && u.starts.as_ref() == Some(name)) {
                let _ = self.switch_unit(name, true);
            }
            return Ok(());
        }
        if self.units[at].active {
            return Ok(());
        }
        if let Some(its) = self.units[at].starts.clone() {
            // systemd, src/core/socket.c, socket_start.
            if self.units.iter().any(|u| u.name == its && u.active) {
                return Err(ActError::Failed(format!("{its} already active, refusing.")));
            }
            self.units[at].active = true;
            return Ok(());
        }
        let nodes = self.nodes_of_all_gpus();
        let is_daemon = name.on_host() == Some(PERSISTENCED);
        if nodes.is_empty() && is_daemon {
            return Err(ActError::Failed(format!("Job for {name} failed.")));
        }
        self.next_pid += 1;
        let comm = match name.on_host() {
            Some(PERSISTENCED) => "nvidia-persiste",
            Some(MPS) => "nvidia-cuda-mps",
            _ => "ollama",
        };
        let daemon = Process {
            comm,
            belongs_to,
            ..Process::new(self.next_pid, &nodes)
        };
        let opened = self.open(daemon);
        opened.map_err(|errno| ActError::Failed(format!("Job for {name} failed: {errno}")))?;
        self.units[at].active = true;
        self.follow(name, true);
        let inside: Vec<Unit> = self
            .units
            .iter()
            .filter(|u| u.with_whole && name.holds(&u.name))
            .map(|u| u.name.clone())
            .collect();
        for unit in &inside {
            let at = self.units.iter().position(|u| u.name == *unit).unwrap();
            self.units[at].with_whole = false;
            self.switch_unit(unit, true)?;
        }
        Ok(())
    }

    /// What there is of an act whose run ends in the middle of it: HA does not look after a container any more that runs still, or
    /// does not yet after one that runs again. Others have done nothing by then.
    pub(super) fn do_half(&mut self, act: &Act) {
        let (Act::StopUnit { name, .. } | Act::StartUnit { name, .. }) = act else {
            return;
        };
        let Some(container) = name.container().filter(|_| name.is_of_ha()) else {
            return;
        };
        match act {
            Act::StopUnit { .. } => self.tell_ha(container, &Ha::LooksAfter, Ha::Ignores),
            _ => drop(self.switch_unit(&Unit::Whole { container }, true)),
        }
    }

    /// As gpu_handoff::execute::of_ha has it, without the rounds that HA takes.
    fn switch_of_ha(&mut self, container: VmId, on: bool) -> Result<(), ActError> {
        let whole = Unit::Whole { container };
        let is_ignored = |u: &super::state::Unit| u.name == whole && u.ha == Some(Ha::Ignores);
        if !on && self.units.iter().any(is_ignored) {
            return Err(ActError::Failed(format!("HA was told to ignore {whole} meanwhile")));
        }
        if !on {
            self.tell_ha(container, &Ha::LooksAfter, Ha::Ignores);
        }
        self.switch_unit(&whole, on)?;
        if on {
            self.tell_ha(container, &Ha::Ignores, Ha::LooksAfter);
        }
        Ok(())
    }

    /// What somebody has told it since counts.
    fn tell_ha(&mut self, container: VmId, before: &Ha, then: Ha) {
        let its = self.units.iter_mut().find(|u| u.name == Unit::Whole { container });
        if let Some(ha) = its.and_then(|u| u.ha.as_mut()).filter(|ha| *ha == before) {
            *ha = then;
        }
    }

    /// What a user of all GPUs opens.
    fn nodes_of_all_gpus(&self) -> Vec<Node> {
        let gpus = self.devices.iter().filter(|d| d.bound() == Some("nvidia"));
        let mut nodes: Vec<Node> = gpus.map(|d| Node::Gpu(d.addr)).collect();
        nodes.extend((!nodes.is_empty()).then_some(Node::Control));
        nodes
    }

    /// A service that starts uses the driver, and one that has ended does not.
    fn follow(&mut self, service: &Unit, on: bool) {
        let its = self
            .units
            .iter_mut()
            .filter(|u| u.name.runs_on().as_ref() == Some(service));
        its.for_each(|u| u.active = on);
    }

    /// dcgmi set --detach-driver or --attach-driver: the host engine runs on, and has the nodes of the GPUs open or not. One that
    /// does not run is started, as gpu_handoff::execute::programs has it.
    fn switch_driver_use(&mut self, name: &Unit, on: bool) -> Result<(), ActError> {
        let service = name.runs_on().unwrap();
        let is_active = |m: &Model, unit: &Unit| m.units.iter().any(|u| u.name == *unit && u.active);
        match (is_active(self, &service), on) {
            (false, true) => return self.switch_unit(&service, true),
            (false, false) => {
                let why = "Error: unable to establish a connection to the specified host: localhost";
                return Err(ActError::Failed(why.to_owned()));
            }
            (true, on) if is_active(self, name) == on => return Ok(()),
            (true, _) => {}
        }
        self.tick += 1;
        let belongs_to = Belongs::Unit(service.name());
        if on {
            self.next_pid += 1;
            let nodes = self.nodes_of_all_gpus();
            let engine = Process {
                comm: "nv-hostengine",
                belongs_to,
                ..Process::new(self.next_pid, &nodes)
            };
            let opened = self.open(engine);
            opened.map_err(|errno| ActError::Failed(format!("Error: {errno}")))?;
        } else {
            self.processes.retain(|p| p.belongs_to != belongs_to);
        }
        self.follow(&service, on);
        Ok(())
    }

    pub fn set_attribute(&mut self, addr: PciAddr, attribute: Attribute, value: &str) -> Answer {
        // A bus reset is refused beside another function of the bus (pci_parent_bus_reset).
        let on_bus = |d: &&Device| (d.addr.domain, d.addr.bus) == (addr.domain, addr.bus);
        let alone = self.devices.iter().filter(on_bus).count() == 1;
        let device = self.device_mut(addr).ok_or(Errno::NoEnt)?;
        match attribute {
            // Nothing switches resets off, "default" has the kernel find out again (linux, drivers/pci/pci.c,
            // reset_method_store).
            Attribute::ResetMethod => {
                let words: Vec<&str> = match value {
                    "default" => device.can_reset.clone(),
                    _ => value.split_ascii_whitespace().collect(),
                };
                let can = |w: &&str| device.can_reset.contains(w) && (*w != "bus" || alone || value == "default");
                if !words.iter().all(can) {
                    return Err(Errno::Inval);
                }
                device.reset_methods = words.iter().map(|w| (*w).to_owned()).collect();
            }
            Attribute::D3cold => device.d3cold = value == "1",
            Attribute::Power => device.power = if value == "auto" { "auto" } else { "on" },
        }
        Ok(())
    }

    /// Where the framebuffer's driver of the consoles is taken off, the dummy one draws them.
    fn set_console(&mut self, name: &str, bound: bool) -> Answer {
        // Taken without an error, as seen on 6.12.
        if bound && self.console_is_lost {
            return Ok(());
        }
        let console = self.consoles.iter_mut().find(|c| c.name == name);
        console.ok_or(Errno::NoEnt)?.bound = bound;
        for other in self.consoles.iter_mut().filter(|c| c.name != name) {
            other.bound = !bound;
        }
        Ok(())
    }

    fn set_platform(&mut self, device: &str, bound: bool) -> Answer {
        let owner_has_one = |m: &Model, of: Option<PciAddr>| of.is_some_and(|a| m.drm.contains(&a));
        let of = match &self.firmware {
            Some((fb, _)) if fb.firmware.as_ref().is_some_and(|p| p.device == device) => fb.of,
            _ => return Err(Errno::NoDev),
        };
        if bound && owner_has_one(self, of) {
            return Err(Errno::Busy); // the GPU's own driver has the memory
        }
        if let Some((_, is)) = &mut self.firmware {
            *is = bound;
        }
        Ok(())
    }

    /// Reads a post-condition back.
    pub fn reached(&self, expect: &Expect) -> Result<(), ActError> {
        let missing = |addr: &PciAddr| format!("{addr} is not there");
        let (reached, observed) = match expect {
            Expect::Nothing => (true, String::new()),
            Expect::Loaded(name) => (self.stage(name) == Some(Stage::Live), format!("{name} is not loaded")),
            Expect::Override(addr, wanted) => match self.device(*addr) {
                Some(d) => (d.driver_override == *wanted, format!("it is {:?}", d.driver_override)),
                // As a file that cannot be read: nothing is there.
                None => (wanted.is_none(), missing(addr)),
            },
            Expect::Attribute(addr, attribute, wanted) => match (self.device(*addr), attribute) {
                (Some(d), Attribute::ResetMethod) => {
                    let is = d.reset_methods.join(" ");
                    (is == *wanted || (wanted == "default" && !is.is_empty()), is)
                }
                (Some(d), Attribute::D3cold) => (d.d3cold == (wanted == "1"), "it is not".to_owned()),
                (Some(d), Attribute::Power) => (d.power == wanted, d.power.to_owned()),
                (None, _) => (wanted.is_empty(), missing(addr)),
            },
            Expect::Unit(name, wanted) => {
                let active = self.units.iter().any(|u| u.name == *name && u.active);
                (active == *wanted, format!("{name}: active: {active}"))
            }
            Expect::Console(name, wanted) => {
                let bound = self.consoles.iter().any(|c| c.name == *name && c.bound);
                (bound == *wanted, format!("{name}: bound: {bound}"))
            }
            Expect::Platform(_, _, wanted) => {
                let bound = self.firmware.as_ref().is_some_and(|(_, bound)| *bound);
                (bound == *wanted, format!("bound: {bound}"))
            }
            Expect::Present(addr, wanted) => {
                let there = self.device(*addr).is_some();
                (there == *wanted, format!("there: {there}"))
            }
            Expect::NotOn(addr, unwanted) => {
                let is = self.driver_of(*addr);
                (is != Some(unwanted), format!("the driver is {is:?}"))
            }
            Expect::Driver(addr, wanted) => {
                let is = self.driver_of(*addr);
                (is == wanted.as_deref(), format!("the driver is {is:?}"))
            }
            Expect::HostDriver(addr) => {
                let is = self.driver_of(*addr);
                (is.is_some_and(|d| d != "vfio-pci"), format!("the driver is {is:?}"))
            }
        };
        if reached {
            return Ok(());
        }
        Err(ActError::NotReached {
            expected: expect.to_string(),
            observed,
        })
    }
}
