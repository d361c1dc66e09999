//! Calls into the model's kernel: each is a list of small moves, so that it can wait in the middle, hold a lock while it
//! waits, and go on when what it waits for has come, whether or not its caller is still there.

use std::time::Duration;

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::host::belongs::Belongs;

use super::state::{Event, Model, Process, Stage, When};

/// What a system call answers when it fails: the kernel's error number (errno(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    Perm,
    NoEnt,
    Io,
    Again,
    Busy,
    Exist,
    NoDev,
    Inval,
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Errno::Perm => "Operation not permitted",
            Errno::NoEnt => "No such file or directory",
            Errno::Io => "Input/output error",
            Errno::Again => "Resource temporarily unavailable",
            Errno::Busy => "Device or resource busy",
            Errno::Exist => "File exists",
            Errno::NoDev => "No such device",
            Errno::Inval => "Invalid argument",
        })
    }
}

/// What a call answers.
pub type Answer = Result<(), Errno>;

/// A lock of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// A device's own (device_lock): held through probe and remove.
    Device(PciAddr),
    /// pci_rescan_remove_lock: held through remove and rescan.
    Bus,
}

/// What happens when a driver's probe has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// drivers_probe, rescan: the next driver in the bus's order has a try.
    TryFrom(usize),
    /// bind: the error is the answer.
    Answer,
    /// A new driver or id goes through the devices: nobody hears of an error.
    Nothing,
}

/// A part of a call that happens at once or waits.
#[derive(Clone, Debug, PartialEq)]
pub enum Move {
    Lock(Lock),
    Unlock(Lock),
    Sleep(Duration),
    Until(Duration),
    Hang,
    /// The call's answer from here on.
    Fail(Errno),
    /// Drivers in the bus's order, from this one on, have a try at a function.
    Try(PciAddr, usize),
    Probe(PciAddr, &'static str, After),
    Probed(PciAddr, &'static str, After),
    /// A bind of exactly this driver.
    Bind(PciAddr, &'static str),
    Release(PciAddr, &'static str),
    WaitUnused(PciAddr),
    Released(PciAddr, &'static str),
    SetOverride(PciAddr, Option<String>),
    /// A driver goes through the devices after this place in the bus's list.
    Attach(&'static str, u32),
    Insert(&'static str),
    Inserted(&'static str),
    Deleted(&'static str),
    Remove(PciAddr),
    Rescan(Option<PciAddr>),
}

/// What a script does to a call, inside of it: where the driver or the module has its say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twist {
    /// It never answers.
    Hangs,
    /// It takes so long, and then goes on as it would have.
    Takes(Duration),
    /// It has its effect, and never answers.
    HangsAtTheEnd,
}

/// A call that has not ended.
#[derive(Clone, Debug)]
pub struct Call {
    pub id: u32,
    /// The process group that made it; 0 for everybody else's.
    pub group: u32,
    /// The process of somebody else's that is in it, where that can be seen.
    pub by: Option<i32>,
    /// What is left, the next one last.
    pub todo: Vec<Move>,
    pub held: Vec<Lock>,
    pub answer: Answer,
    pub twist: Option<Twist>,
    /// The module that it loads or unloads.
    pub module: Option<&'static str>,
    /// Its caller has gone.
    pub left_behind: bool,
}

impl Model {
    /// Starts a call; it moves when time does.
    pub fn begin(&mut self, group: u32, mut todo: Vec<Move>) -> u32 {
        todo.reverse();
        let id = self.next_call;
        self.next_call += 1;
        self.calls.push(Call {
            id,
            group,
            by: None,
            todo,
            held: Vec::new(),
            answer: Ok(()),
            twist: None,
            module: None,
            left_behind: false,
        });
        id
    }

    pub fn call_mut(&mut self, id: u32) -> Option<&mut Call> {
        self.calls.iter_mut().find(|c| c.id == id)
    }

    /// Whether a process group of ours still has a call in the kernel.
    pub fn is_alive(&self, group: u32) -> bool {
        self.calls.iter().any(|c| c.group == group)
    }

    /// Whether something holds a device's lock that is not over yet.
    pub fn is_locked(&self, addr: PciAddr) -> bool {
        self.locks.iter().any(|(l, _)| *l == Lock::Device(addr))
    }

    /// Moves every call as far as it goes now. The one that is waited for is taken out when it has ended.
    fn move_calls(&mut self, wanted: Option<u32>) -> Option<Answer> {
        let mut result = None;
        loop {
            let mut moved = false;
            let mut at = 0;
            while at < self.calls.len() {
                let id = self.calls[at].id;
                moved |= self.move_call(at);
                // A move may have started or ended other calls.
                let Some(now) = self.calls.iter().position(|c| c.id == id) else {
                    continue;
                };
                if self.calls[now].todo.is_empty() {
                    let call = self.calls.remove(now);
                    self.locks.retain(|(_, holder)| *holder != id);
                    moved = true;
                    if wanted == Some(id) {
                        result = Some(call.answer);
                    } else if !call.left_behind {
                        self.answers.push((id, call.answer));
                    }
                    at = now;
                } else {
                    at = now + 1;
                }
            }
            if !moved {
                return result;
            }
        }
    }

    /// Moves one call until it waits. Returns whether it moved.
    fn move_call(&mut self, at: usize) -> bool {
        let mut call = self.calls[at].clone_shell();
        std::mem::swap(&mut call, &mut self.calls[at]);
        let mut moved = false;
        while let Some(next) = call.todo.pop() {
            if !self.one_move(&mut call, next) {
                break;
            }
            moved = true;
            if call.todo.is_empty() && call.twist.is_some() {
                call.twist_here(self.time, true);
            }
        }
        let id = call.id;
        if let Some(place) = self.calls.iter_mut().find(|c| c.id == id) {
            *place = call;
        }
        moved
    }

    /// One move. False: it waits, and is put back.
    fn one_move(&mut self, call: &mut Call, next: Move) -> bool {
        match &next {
            Move::Lock(lock) => match self.locks.iter().find(|(l, _)| l == lock) {
                Some((_, holder)) if *holder != call.id => {
                    call.todo.push(next);
                    return false;
                }
                _ => {
                    self.locks.push((*lock, call.id));
                    call.held.push(*lock);
                }
            },
            Move::Unlock(lock) => {
                self.locks.retain(|(l, holder)| l != lock || *holder != call.id);
                call.held.retain(|l| l != lock);
            }
            Move::Sleep(time) => call.todo.push(Move::Until(self.time + *time)),
            Move::Until(time) if self.time < *time => {
                call.todo.push(next);
                return false;
            }
            Move::Until(_) => {}
            Move::Hang => {
                call.todo.push(next);
                return false;
            }
            Move::WaitUnused(addr) if self.usage(*addr) > 0 && self.device(*addr).is_some() => {
                call.todo.push(next);
                return false;
            }
            Move::WaitUnused(_) => {}
            // Another modprobe of the same module waits for it.
            Move::Insert(name) if self.stage(name).is_some_and(|s| s != Stage::Live) => {
                call.todo.push(next);
                return false;
            }
            Move::Fail(errno) => call.answer = Err(*errno),
            _ => self.do_move(call, next),
        }
        true
    }

    /// Lets time pass until a call has ended, at most until `end`. None: it has not.
    pub fn wait_for(&mut self, id: u32, end: Duration) -> Option<Answer> {
        self.pass(end, Some(id), |_| false)
    }

    /// Lets time pass until something is so, at most until `end`.
    pub fn wait_until(&mut self, end: Duration, done: impl Fn(&Model) -> bool) -> bool {
        self.pass(end, None, |m| done(m));
        done(self)
    }

    fn pass(&mut self, end: Duration, id: Option<u32>, done: impl Fn(&Model) -> bool) -> Option<Answer> {
        // It may have ended while another one was waited for.
        if let Some(at) = self.answers.iter().position(|(i, _)| Some(*i) == id) {
            return Some(self.answers.remove(at).1);
        }
        loop {
            if let Some(answer) = self.move_calls(id) {
                return Some(answer);
            }
            if done(self) {
                return None;
            }
            let waking = self.calls.iter().filter_map(|c| match c.todo.last() {
                Some(Move::Until(time)) => Some(*time),
                _ => None,
            });
            let events = self.events.iter().filter_map(|(when, _)| match when {
                When::At(time) => Some(*time),
                When::Act(_) => None,
            });
            match waking.chain(events).min().filter(|t| *t <= end) {
                Some(time) => {
                    self.time = self.time.max(time);
                    self.happen();
                }
                None => {
                    self.time = self.time.max(end);
                    return None;
                }
            }
        }
    }

    /// Lets a short time pass: what an act takes that waits for nothing.
    pub fn spend(&mut self, time: Duration) {
        let end = self.time + time;
        if self.calls.is_empty() && self.events.is_empty() {
            self.time = end;
        } else {
            self.pass(end, None, |_| false);
        }
    }

    /// Whatever hangs goes on, and comes to its end.
    pub fn let_go_of_calls(&mut self) {
        for call in &mut self.calls {
            call.todo.retain(|m| *m != Move::Hang);
            call.twist = None;
        }
        self.spend(Duration::from_secs(400));
    }

    /// Events whose time has come.
    fn happen(&mut self) {
        while let Some(at) = self
            .events
            .iter()
            .position(|(when, _)| matches!(when, When::At(t) if *t <= self.time))
        {
            let (_, event) = self.events.remove(at);
            self.event(event);
        }
    }

    /// Events that were to come before this act.
    pub fn happen_before(&mut self, act: usize) {
        while let Some(at) = self.events.iter().position(|(when, _)| *when == When::Act(act)) {
            let (_, event) = self.events.remove(at);
            self.event(event);
        }
    }

    fn event(&mut self, event: Event) {
        self.tick += 1;
        match event {
            Event::Comes(process) => _ = self.open(process),
            Event::Ends(pid) => {
                if let Some(process) = self.processes.iter_mut().find(|p| p.pid == pid) {
                    process.ending = true;
                }
            }
            Event::Goes(pid) => self.processes.retain(|p| p.pid != pid),
            Event::LetsGo(pid) => {
                if let Some(process) = self.processes.iter_mut().find(|p| p.pid == pid) {
                    process.nodes.clear();
                    process.uses.clear();
                }
            }
            Event::Loads(name) => {
                // Somebody else's process: no group of ours, and nobody here waits for it.
                if let Ok(id) = self.modprobe(0, name)
                    && let Some(call) = self.call_mut(id)
                {
                    call.left_behind = true;
                }
            }
            Event::Unbinds(pid, addr) => {
                let driver = self.device(addr).and_then(|d| d.driver);
                if let Some(Ok(id)) = driver.map(|driver| self.unbind(0, driver, addr))
                    && let Some(call) = self.call_mut(id)
                {
                    (call.left_behind, call.by) = (true, Some(pid));
                    self.processes.push(Process {
                        comm: "sh",
                        belongs_to: Belongs::Unknown,
                        ..Process::new(pid, &[])
                    });
                }
            }
            Event::Dies(addr) => self.die(addr),
            Event::Vanishes(addr) => self.vanish(addr),
            Event::Starts(unit) => drop(self.switch_unit(&unit, true)),
            Event::Signal => self.signal = self.signal.or(Some(self.time)),
            Event::GateFalls => self.gate = None,
        }
    }
}

impl Call {
    /// It is one of ours that did not answer in time.
    pub fn is_stuck(&self) -> bool {
        self.left_behind && self.group != 0
    }

    fn clone_shell(&self) -> Call {
        Call {
            id: self.id,
            group: self.group,
            by: self.by,
            todo: Vec::new(),
            held: Vec::new(),
            answer: Ok(()),
            twist: None,
            module: self.module,
            left_behind: self.left_behind,
        }
    }

    /// The place at which a script has its way.
    pub fn twist_here(&mut self, now: Duration, at_the_end: bool) {
        match self.twist {
            Some(Twist::HangsAtTheEnd) if !at_the_end => {}
            Some(Twist::Takes(time)) => {
                self.twist = None;
                self.todo.push(Move::Until(now + time));
            }
            Some(_) => {
                self.twist = None;
                self.todo.push(Move::Hang);
            }
            None => {}
        }
    }
}
