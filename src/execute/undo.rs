//! Taking back what was done: in reverse, past errors, and no longer than there is time for.
//!
//! Not here: what takes an act back, which is in the plan ([`crate::model::plan::Step`]).

use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

use tracing::{info, warn};

use crate::base::pci::PciAddr;
use crate::base::sets::IntoSet as _;
use crate::base::text::{join, millis};
use crate::execute::ending::THEN_RECOVER;
use crate::execute::executor::{Executor, First};
use crate::execute::kernel::{AFTER_SIGNAL, ActError};
use crate::execute::lines::{not_started, say_of_service};
use crate::execute::schedule::MOST_AT_ONCE;
use crate::host::functions::VFIO_PCI;
use crate::host::units::Unit;
use crate::model::act::Act;
use crate::model::error::Error;
use crate::model::named::Named;
use crate::model::plan::{Step, containers_time, deadline};

/// How far the taking back is.
struct Undoing {
    /// When it must be over, on the kernel's clock.
    until: Duration,
    /// Functions on another driver than vfio-pci: their users are that driver's, and they are not taken off it.
    elsewhere: BTreeSet<PciAddr>,
    /// Functions that somebody uses, which is said already.
    in_use: BTreeSet<PciAddr>,
    /// Consoles that could not be given back.
    dark: Vec<String>,
    /// Services that do not start again, and how that is.
    down: Vec<(Unit, String)>,
    /// What was started meanwhile and does not end: an act, and why.
    runs_on: Vec<String>,
    /// Processes that were ended, for nothing now.
    ended: Vec<Named>,
    /// The same of those that were a desktop's.
    of_desktops: Vec<Named>,
    /// What else could not be taken back, and why.
    left: Vec<String>,
    /// An act of it goes on, which a signal has left no time to wait for.
    goes_on: bool,
}

impl Undoing {
    /// Whether nothing is done, or needs saying, about this act.
    fn passes_over(&self, act: &Act) -> bool {
        let is_in = |set: &BTreeSet<PciAddr>| act.function().is_some_and(|a| set.contains(&a));
        match act {
            Act::ProveFree { .. } => is_in(&self.elsewhere),
            Act::Unbind { .. } => is_in(&self.elsewhere) || is_in(&self.in_use),
            _ => false,
        }
    }

    /// What is not as it was, though every device is.
    fn but(&self) -> Option<String> {
        let mut but = Vec::new();
        if !self.dark.is_empty() {
            but.push(format!(
                "the console {} draws on no framebuffer, and the screen may stay dark. Hint: it comes back when the card's \
                 display driver is loaded anew: by 'modprobe -r nvidia_drm' and 'modprobe nvidia_drm' once nobody uses \
                 that, or with the next start of the host; SSH works meanwhile",
                join(&self.dark)
            ));
        }
        but.extend(self.others());
        (!but.is_empty()).then(|| but.join("; and "))
    }

    /// Whose use of the GPU is over.
    fn others(&self) -> Vec<String> {
        let down = self
            .down
            .iter()
            .map(|(unit, how)| format!("{} {how}. Hint: {}", unit.subject(), unit.start_by_hand()));
        let ended = self.ended.iter();
        let ended = ended.map(|process| format!("{process} was asked to end, and nobody starts it again"));
        let desktops = (!self.of_desktops.is_empty()).then(|| {
            format!(
                "the desktop has ended ({}), and whoever was at it has to log in again",
                join(&self.of_desktops)
            )
        });
        let runs_on = self.runs_on.iter().cloned();
        down.chain(runs_on).chain(ended).chain(desktops).collect()
    }

    /// An act that was not done, or did not lead to what it should have.
    fn leave(&mut self, act: &Act, why: impl Display) {
        self.left.push(format!("{act}: {why}"));
    }
}

/// Whether it is about who uses the GPU, and no device waits for it.
fn is_of_others(act: &Act) -> bool {
    matches!(
        act,
        Act::StartUnit { .. } | Act::RestartUnit { .. } | Act::StopUnit { .. } | Act::RenewNodes { .. }
    )
}

impl Executor<'_> {
    /// Takes back the steps in reverse, the failed ones included: each may have had half its effect. One that was not begun is not
    /// among them.
    pub(super) fn undo(&mut self, done: &[&Step], failed: &str, why: &ActError) -> Error {
        let what = match why {
            ActError::Interrupted { .. } => return self.interrupted(&failed),
            ActError::NotBegun(why) => format!("{why}, before '{failed}'"),
            why => format!("{failed}: {why}"),
        };
        self.gives_back = true;
        self.kernel.gives_back(true);
        let is_failed_among_them = !matches!(why, ActError::NotBegun(_));
        let until = self.undone_until(done.len().saturating_sub(usize::from(is_failed_among_them)));
        let mut undoing = Undoing {
            until,
            elsewhere: self.elsewhere(until),
            in_use: BTreeSet::new(),
            dark: Vec::new(),
            down: Vec::new(),
            runs_on: Vec::new(),
            ended: self.ended.clone(),
            of_desktops: self.of_desktops.clone(),
            left: Vec::new(),
            goes_on: false,
        };
        // What is undone binds drivers and starts services, and takes nothing that somebody could hold up.
        let gate: Vec<PciAddr> = self.gate.iter().copied().collect();
        if !gate.is_empty() {
            // In the few seconds after a signal nobody is asked.
            if self.kernel.interrupted().is_none()
                && let Err(interrupted) = self.take_back(&[&Act::open_gate(&gate)], &mut undoing)
            {
                return interrupted;
            }
            // Where it does not open when asked, it does with the end of who has it shut.
            undoing.left.clear();
            self.kernel.let_gate_go();
            self.gate.clear();
            self.free.clear();
        }
        let back: Vec<&Act> = done.iter().rev().flat_map(|step| &step.inverse).collect();
        let beside = back.chunk_by(|one, next| one.goes_beside(next));
        for acts in beside.flat_map(|acts| acts.chunks(MOST_AT_ONCE)) {
            if let Err(interrupted) = self.take_back(acts, &mut undoing) {
                return interrupted;
            }
        }
        if undoing.left.is_empty() && self.record.wedges.is_empty() {
            if let Err(e) = self.close() {
                warn!("the record could not be put back: {e}");
            }
            return match undoing.but() {
                None => Error::Restored { what },
                Some(but) => Error::RestoredBut { what, but },
            };
        }
        let dark = undoing.dark.iter();
        undoing
            .left
            .extend(dark.map(|name| format!("{name}: the console is dark")));
        let others = undoing.others();
        undoing.left.extend(others);
        if undoing.goes_on {
            // The record, as it was written before that act, has all that the next run needs, the process group above all.
            return Error::NotRestored {
                what,
                left: undoing.left.join("; "),
                hint: THEN_RECOVER.to_owned(),
            };
        }
        self.stranded(what, undoing.left.join("; "), &First::See)
    }

    /// When the taking back of so many steps must be over.
    fn undone_until(&mut self, steps: usize) -> Duration {
        let now = self.kernel.now();
        let mut until = now + self.record.budgets.way_out + containers_time(&self.record.units, &self.record.budgets);
        if let Some(at) = self.kernel.interrupted() {
            until = until.min(at + AFTER_SIGNAL);
        }
        if steps > 0 {
            info!("undoing {steps} steps, at most {}", millis(until.saturating_sub(now)));
        }
        until
    }

    /// Does inverse acts, all at once. What they do not lead to is noted; an error is only that a signal ended the waiting.
    fn take_back(&mut self, acts: &[&Act], undoing: &mut Undoing) -> Result<(), Error> {
        // A signal may have come in the middle.
        if let Some(at) = self.kernel.interrupted() {
            undoing.until = undoing.until.min(at + AFTER_SIGNAL);
        }
        let mut begun = Vec::new();
        for act in acts.iter().copied() {
            if self.may_be_taken_back(act, undoing) {
                let mut remaining = undoing.until.saturating_sub(self.kernel.now());
                // One that does not end is not to have the time of the devices behind it.
                if matches!(act, Act::StopUnit { .. }) && self.kernel.interrupted().is_some() {
                    remaining /= 2;
                }
                let within = deadline(act, &self.record.budgets, 1).min(remaining);
                begun.push((act.clone(), within));
            }
        }
        if begun.is_empty() {
            return Ok(());
        }
        let prefixes = vec!["undo: ".to_owned(); begun.len()];
        let results = self.record_and_act(&begun, &prefixes);
        for ((act, _), result) in begun.iter().zip(results) {
            match result {
                Ok(()) => {}
                // It goes on, the time is over, and no device waits for it: nothing more is begun, and what is left is named.
                Err(error @ ActError::Interrupted { .. }) if is_of_others(act) => {
                    undoing.goes_on = true;
                    undoing.until = undoing.until.min(self.kernel.now());
                    undoing.leave(act, error);
                }
                Err(ActError::Interrupted { .. }) => return Err(self.interrupted(act)),
                Err(error) if self.kernel.interrupted().is_some() && matches!(error, ActError::Overdue { .. }) => {
                    self.left_out(act);
                    undoing.leave(act, error);
                }
                // A service that does not start again keeps no device away.
                Err(error) if is_of_others(act) && !matches!(error, ActError::NotBegun(_)) => {
                    say_of_service(act, &error);
                    let down = act.starts().map(|unit| (unit.clone(), not_started(unit, &error)));
                    undoing.down.extend(down);
                    if let Act::StopUnit { name, .. } = act {
                        let status = name.by_hand("status");
                        undoing.runs_on.push(format!("{act}: {error}. Hint: see '{status}'"));
                    }
                }
                Err(_) if matches!(act, Act::SetConsole { .. }) => self.give_console_back(act, undoing)?,
                Err(error) => {
                    if let Act::ProveFree { addrs, .. } = act {
                        undoing.in_use.extend(addrs.iter().copied());
                    }
                    self.left_out(act);
                    undoing.leave(act, error);
                }
            }
        }
        Ok(())
    }

    /// Whether an inverse act is to be done; why not is noted.
    fn may_be_taken_back(&mut self, act: &Act, undoing: &mut Undoing) -> bool {
        if self.barred(act) {
            self.left_out(act);
            undoing.leave(act, "left alone, the kernel is stuck there");
            return false;
        }
        if undoing.until <= self.kernel.now() {
            self.left_out(act);
            undoing.leave(act, "no time was left");
            return false;
        }
        let is_elsewhere = act.function().is_some_and(|a| undoing.elsewhere.contains(&a));
        if undoing.passes_over(act) {
            // Nobody is asked to let it go: it is not on vfio-pci, or stays there because it is used.
            if !is_elsewhere {
                self.left_out(act);
            }
            return false;
        }
        if let Some(why) = self.held_back(act).filter(|_| !is_elsewhere) {
            undoing.leave(act, why);
            return false;
        }
        true
    }

    /// What else gives a console back. A 1 written to `bind` can be taken without an error and change nothing (seen on linux
    /// 6.12; drivers/tty/vt/vt.c, store_bind, ignores what comes of it); a new framebuffer draws the consoles by itself
    /// (drivers/video/fbdev/core/fbcon.c, do_fb_registered), under another number perhaps. An error is only that a signal
    /// ended the waiting.
    fn give_console_back(&mut self, act: &Act, undoing: &mut Undoing) -> Result<(), Error> {
        // Its module was to be unloaded, so that nothing was seen to need it; the kernel refuses where somebody does by now.
        let drm = "nvidia_drm";
        let reload = [Act::unload(drm), Act::load(drm)];
        let may = self.record.modules.iter().any(|m| m == drm) && !reload.iter().any(|act| self.barred(act));
        for again in reload.iter().filter(|_| may) {
            let remaining = undoing.until.saturating_sub(self.kernel.now());
            if self.has_console() || remaining.is_zero() {
                break;
            }
            let within = deadline(again, &self.record.budgets, 1).min(remaining);
            match self
                .record_and_act(&[(again.clone(), within)], &["instead: ".to_owned()])
                .pop()
            {
                Some(Err(ActError::Interrupted { .. })) => return Err(self.interrupted(again)),
                Some(Err(error)) => {
                    // It is loaded still, or it is missing now.
                    if again == &Act::load(drm) || matches!(error, ActError::Overdue { .. }) {
                        undoing.leave(again, error);
                    }
                    break;
                }
                _ => {}
            }
        }
        if !self.has_console() {
            undoing.dark.push(act.subject());
        }
        Ok(())
    }

    /// Whether the consoles are drawn on some framebuffer.
    fn has_console(&mut self) -> bool {
        let stuck: Vec<PciAddr> = self.record.stuck().collect();
        let seen = self.kernel.look(&stuck, self.record.budgets.look);
        seen.is_ok_and(|snapshot| snapshot.consoles.iter().any(|c| c.bound && c.is_framebuffer()))
    }

    /// Functions of the record that are on another driver than vfio-pci: they never left theirs, or somebody else has bound
    /// them.
    fn elsewhere(&mut self, until: Duration) -> BTreeSet<PciAddr> {
        let stuck: Vec<PciAddr> = self.record.stuck().collect();
        // Without it what is elsewhere is named for nothing; without the time that it takes nothing is undone.
        let left = until.saturating_sub(self.kernel.now());
        let Ok(snapshot) = self.kernel.look(&stuck, self.record.budgets.look.min(left / 2)) else {
            return BTreeSet::new();
        };
        let addrs = self.record.taken.iter().map(|t| t.addr);
        let is_elsewhere = |addr: &PciAddr| {
            let driver = snapshot.function(*addr).and_then(|f| f.driver.as_deref());
            driver.is_some_and(|driver| driver != VFIO_PCI)
        };
        addrs.filter(is_elsewhere).into_set()
    }
}
