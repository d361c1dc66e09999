//! The vocabulary of a plan: acts on the host, what must be true after each, and how it is undone.
//!
//! Pure data with a text form; the same text is what `plan` prints, what the log says, and what the record
//! keeps. How an act is carried out is written in [`crate::execute::perform`].

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::pci::PciAddr;
use crate::base::vmid::VmId;
use crate::host::displays::Platform;
use crate::host::nvidia::Numbers;
use crate::host::unit_names::is_starter;
use crate::host::units::Unit;
pub use crate::model::expect::{Attribute, Expect};
use crate::model::named::Named;

/// One act on the host: one call that the kernel answers, or one program that is run to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Act {
    /// `modprobe NAME`: dependency order, softdeps, options and blacklists are modprobe's business.
    LoadModule {
        /// Its name, with dashes or underscores: modprobe takes either.
        name: String,
    },
    /// delete_module with O_NONBLOCK: the kernel refuses at once if anybody uses it.
    UnloadModule {
        /// As /sys/module has it, with underscores: delete_module knows no other.
        name: String,
    },
    /// Write `driver_override`. None clears it with a newline (a zero-length write clears nothing).
    SetOverride {
        /// Whose override it is.
        addr: PciAddr,
        /// The only driver that may bind from now on.
        driver: Option<String>,
    },
    /// Write another attribute of a function.
    SetAttribute {
        /// One that moves, or, for its power, a bridge above one.
        addr: PciAddr,
        /// Which of those that are changed.
        attribute: Attribute,
        /// What is written, and read back.
        value: String,
    },
    /// Stop a unit of systemd's: NVIDIA's persistence daemon, which keeps GPUs in use, or what is inside a container.
    StopUnit {
        /// Which, and where.
        name: Unit,
        /// How long a container has for that before it is ended, seconds.
        #[serde(default)] // since a later version
        within_s: u64,
    },
    /// Start it again: it learns only then which GPUs there are.
    StartUnit {
        /// Which, and where.
        name: Unit,
        /// How long the end of a container may take that was cut off, and goes on by itself, seconds.
        #[serde(default)] // since a later version
        within_s: u64,
        /// Its stop has come to its end: where it runs by now, somebody has started it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")] // since a later version
        has_ended: bool,
    },
    /// Start it anew, and with it what runs and needs it: one that runs for other GPUs learns only so of one that is back.
    RestartUnit {
        /// Which, and where.
        name: Unit,
    },
    /// See that the nodes of GPUs that a container was given are those of the host, now that its driver is back: one whose number is
    /// another device's, or that was not there at the container's start, is made anew, without a restart.
    RenewNodes {
        /// One that runs, and is given some by its config.
        container: VmId,
        /// The driver's majors before, by which lines of that may let it open them.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        had: BTreeMap<String, u32>,
    },
    /// Ask processes of login sessions to end that use what leaves, all at once; nothing takes that back.
    EndProcesses {
        /// Who. What has the number by then is looked at again before it is sent anything.
        processes: Vec<Named>,
        /// The functions that leave: a process that uses none of them any more is left alone.
        addrs: Vec<PciAddr>,
        /// How long they have, milliseconds.
        within_ms: u64,
        /// They are killed after that time, and have as long again.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        kill: bool,
    },
    /// Wait until what uses the functions has ended with the display manager that was stopped: a user's own systemd goes on for
    /// some seconds after the last session (logind.conf(5), UserStopDelaySec, 10 s by default). Nothing takes that back.
    AwaitDesktops {
        /// Who.
        processes: Vec<Named>,
        /// The functions that leave: nobody is waited for who uses none of them any more.
        addrs: Vec<PciAddr>,
    },
    /// Write 1 to the function's `reset`: the kernel takes the first of its `reset_method`s.
    Reset {
        /// It has to be on no driver: else the reset would go through that driver's users.
        addr: PciAddr,
    },
    /// Write 1 to `reset_subordinate` of the bridge above a function: all below it is reset at once, whatever `reset_method`
    /// of each function says (linux 6.13, drivers/pci/pci-sysfs.c, reset_subordinate_store).
    ResetBus {
        /// The function that it is for; the others below the bridge, on no driver like this one, are reset with it.
        addr: PciAddr,
        /// Above nothing else.
        bridge: PciAddr,
    },
    /// Write 1 to the function's `remove`: it leaves the bus, with its override.
    Remove {
        /// Proven free before: a removal waits for users as an unbind does.
        addr: PciAddr,
    },
    /// Write 1 to the `rescan` of what is above it: a removed function comes back, and its driver binds.
    Rescan {
        /// What is above it, where only that is searched; None: all buses are.
        bridge: Option<PciAddr>,
        /// The function that must be there afterwards.
        addr: PciAddr,
    },
    /// Bind or unbind a driver of the virtual consoles.
    SetConsole {
        /// Its name in /sys/class/vtconsole.
        name: String,
        /// What is wanted: that it draws the consoles, or lets go of its framebuffer.
        bound: bool,
    },
    /// Bind or unbind a platform device: the firmware's framebuffer.
    SetPlatform {
        /// The device, such as efi-framebuffer.0.
        device: String,
        /// Its driver, such as efi-framebuffer.
        driver: String,
        /// What is wanted: that the driver has it, or has let it go.
        bound: bool,
    },
    /// Look whether a GPU that is on NVIDIA's driver works: /proc entry, node, NVIDIA's own tool, the kernel's log.
    Verify {
        /// Its display function.
        addr: PciAddr,
        /// Lanes of its PCI Express link before it left: fewer afterwards are worth a note.
        width: Option<u32>,
    },
    /// Have the kernel refuse every open of what these functions can be held by, until [`Act::OpenGate`] or the end of who
    /// has it shut, whichever comes first (`src/execute/gate.rs`).
    ShutGate {
        /// What is handed over.
        addrs: Vec<PciAddr>,
        /// Every GPU of NVIDIA's driver is: the nodes of the driver as such are shut, too.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        whole: bool,
    },
    /// The end of it.
    OpenGate {
        /// As the gate was shut for.
        addrs: Vec<PciAddr>,
    },
    /// Scan for holders of these functions once more, immediately before a call that cannot be taken back.
    ProveFree {
        /// Of one card, or of all that are acted on at once: one scan serves them.
        addrs: Vec<PciAddr>,
        /// Processes of which it is not known whether they use them, and that the settings accept.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        despite: Vec<i32>,
        /// The settings accept that not everything could be seen.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        despite_unseen: bool,
    },
    /// Write the address to the driver's `unbind`.
    Unbind {
        /// Proven free before: the call waits for users, with some drivers without end.
        addr: PciAddr,
        /// Whose `unbind` it is. On another driver by then, the function stays there.
        driver: String,
    },
    /// Write the address to `drivers_probe`. The kernel calls that a success even if no driver took it.
    Probe {
        /// Its override, where it has one, says which driver may take it.
        addr: PciAddr,
        /// The driver that must have it afterwards; None: any but vfio-pci.
        driver: Option<String>,
    },
}

/// Acts in the words in which a plan asks for them.
impl Act {
    pub(crate) fn load(module: &str) -> Act {
        let name = module.to_owned();
        Act::LoadModule { name }
    }

    pub(crate) fn unload(module: &str) -> Act {
        let name = module.to_owned();
        Act::UnloadModule { name }
    }

    /// `ends`: how long it has for that, if it is a container.
    pub(crate) fn stop(unit: &Unit, ends: Duration) -> Act {
        let (name, within_s) = (unit.clone(), ends.as_secs() * u64::from(unit.is_container()));
        Act::StopUnit { name, within_s }
    }

    pub(crate) fn start(unit: &Unit, ends: Duration) -> Act {
        Act::StartUnit {
            name: unit.clone(),
            within_s: ends.as_secs() * u64::from(unit.is_container()),
            has_ended: false,
        }
    }

    /// The unit that it starts, if it only does that.
    pub(crate) fn starts(&self) -> Option<&Unit> {
        let Act::StartUnit { name, .. } = self else { return None };
        Some(name)
    }

    /// Whether it only waits until services or processes have ended, or looks for those that use something, and can be broken off at
    /// any moment. A start is what gives back, and is finished as anything else.
    pub fn only_waits(&self) -> bool {
        matches!(self, Act::ProveFree { .. } | Act::StopUnit { .. }) || self.tells_who_ended()
    }

    /// Whether it is known only by its answer which processes have ended for it.
    pub fn tells_who_ended(&self) -> bool {
        matches!(self, Act::EndProcesses { .. } | Act::AwaitDesktops { .. })
    }

    /// Whether it is done at the same time as another one, its neighbour in a plan: containers, which have nothing to do with each
    /// other and take their time; and starts inside containers, of which none waits for what the container's systemd makes of
    /// another, but for what starts others.
    pub fn goes_beside(&self, other: &Act) -> bool {
        match (self, other) {
            (Act::StopUnit { name: one, .. }, Act::StopUnit { name: other, .. })
            | (Act::StartUnit { name: one, .. }, Act::StartUnit { name: other, .. })
                if one.is_container() && other.is_container() =>
            {
                one != other
            }
            (Act::StartUnit { name: one, .. }, Act::StartUnit { name: other, .. })
                if matches!((one, other), (Unit::Inside { .. }, Unit::Inside { .. })) =>
            {
                one != other && is_starter(&one.name()) == is_starter(&other.name())
            }
            (Act::RenewNodes { container: one, .. }, Act::RenewNodes { container: other, .. }) => one != other,
            _ => false,
        }
    }

    pub(crate) fn renew_nodes(container: VmId, before: &Numbers) -> Act {
        let had = before.majors.clone();
        Act::RenewNodes { container, had }
    }

    pub(crate) fn set_console(name: &str, bound: bool) -> Act {
        let name = name.to_owned();
        Act::SetConsole { name, bound }
    }

    pub(crate) fn set_platform(platform: &Platform, bound: bool) -> Act {
        let Platform { device, driver } = platform.clone();
        Act::SetPlatform { device, driver, bound }
    }

    pub(crate) fn set_override(addr: PciAddr, driver: Option<&str>) -> Act {
        let driver = driver.map(str::to_owned);
        Act::SetOverride { addr, driver }
    }

    pub(crate) fn set_attribute(addr: PciAddr, attribute: Attribute, value: &str) -> Act {
        let value = value.to_owned();
        Act::SetAttribute { addr, attribute, value }
    }

    pub(crate) fn open_gate(addrs: &[PciAddr]) -> Act {
        let addrs = addrs.to_vec();
        Act::OpenGate { addrs }
    }

    /// That nobody uses them, not even a process of which that is not known.
    pub(crate) fn prove_free(addrs: Vec<PciAddr>) -> Act {
        Act::ProveFree {
            addrs,
            despite: Vec::new(),
            despite_unseen: false,
        }
    }

    pub(crate) fn unbind(addr: PciAddr, driver: &str) -> Act {
        let driver = driver.to_owned();
        Act::Unbind { addr, driver }
    }

    /// For this driver to bind it.
    pub(crate) fn probe(addr: PciAddr, driver: &str) -> Act {
        let driver = Some(driver.to_owned());
        Act::Probe { addr, driver }
    }
}

impl Act {
    /// The function the act is about, if it is about one.
    pub fn function(&self) -> Option<PciAddr> {
        match self {
            Act::SetOverride { addr, .. }
            | Act::SetAttribute { addr, .. }
            | Act::Unbind { addr, .. }
            | Act::Reset { addr }
            | Act::ResetBus { addr, .. }
            | Act::Remove { addr }
            | Act::Rescan { addr, .. }
            | Act::Verify { addr, .. }
            | Act::Probe { addr, .. } => Some(*addr),
            Act::ProveFree { addrs, .. } => addrs.first().copied(),
            Act::LoadModule { .. }
            | Act::UnloadModule { .. }
            | Act::StopUnit { .. }
            | Act::StartUnit { .. }
            | Act::RestartUnit { .. }
            | Act::RenewNodes { .. }
            | Act::EndProcesses { .. }
            | Act::AwaitDesktops { .. }
            | Act::SetConsole { .. }
            | Act::SetPlatform { .. }
            // Of all functions at once: none of them waits for it.
            | Act::ShutGate { .. }
            | Act::OpenGate { .. } => None,
        }
    }

    /// What must hold after the act.
    pub fn expect(&self) -> Expect {
        // To ask a container takes as long as the act itself, and whether it has let go the look for users says.
        let unit = |unit: &Unit, active| match unit.is_of_systemd() {
            true => Expect::Unit(unit.clone(), active),
            false => Expect::Nothing,
        };
        match self {
            Act::LoadModule { name } => Expect::Loaded(name.clone()),
            // The kernel's word counts: udev may load the module again at once, and with the override in place
            // it cannot take the card.
            Act::UnloadModule { .. }
            // Whoever has let go may go on.
            | Act::EndProcesses { .. }
            // Who goes on is seen by the look before anything is let go.
            | Act::AwaitDesktops { .. }
            // It looks itself, more closely than others may.
            | Act::RenewNodes { .. }
            | Act::ProveFree { .. }
            | Act::Reset { .. }
            | Act::ResetBus { .. }
            | Act::Verify { .. }
            | Act::ShutGate { .. }
            | Act::OpenGate { .. } => Expect::Nothing,
            Act::Remove { addr } => Expect::Present(*addr, false),
            Act::Rescan { addr, .. } => Expect::Present(*addr, true),
            Act::SetConsole { name, bound } => Expect::Console(name.clone(), *bound),
            Act::SetPlatform { device, driver, bound } => Expect::Platform(device.clone(), driver.clone(), *bound),
            Act::SetOverride { addr, driver } => Expect::Override(*addr, driver.clone()),
            Act::SetAttribute { addr, attribute, value } => Expect::Attribute(*addr, *attribute, value.clone()),
            Act::StopUnit { name, .. } => unit(name, false),
            Act::StartUnit { name, .. } | Act::RestartUnit { name } => unit(name, true),
            Act::Unbind { addr, driver } => Expect::NotOn(*addr, driver.clone()),
            Act::Probe {
                addr,
                driver: Some(driver),
            } => Expect::Driver(*addr, Some(driver.clone())),
            Act::Probe { addr, driver: None } => Expect::HostDriver(*addr),
        }
    }

    /// The function or module the act is about, for the first column of a line.
    pub fn subject(&self) -> String {
        match self {
            Act::LoadModule { name } | Act::UnloadModule { name } => name.clone(),
            Act::StopUnit { name, .. } | Act::StartUnit { name, .. } | Act::RestartUnit { name } => name.subject(),
            Act::RenewNodes { container, .. } => format!("container {container}"),
            Act::EndProcesses { processes, .. } | Act::AwaitDesktops { processes, .. } => match processes.as_slice() {
                [one] => one.to_string(),
                several => format!("{} processes", several.len()),
            },
            Act::SetConsole { name, .. } => name.clone(),
            Act::SetPlatform { device, .. } => device.clone(),
            Act::ProveFree { addrs, .. } if addrs.len() > 1 => together(addrs),
            Act::ShutGate { addrs, .. } | Act::OpenGate { addrs } => together(addrs),
            Act::SetOverride { .. }
            | Act::SetAttribute { .. }
            | Act::ProveFree { .. }
            | Act::Unbind { .. }
            | Act::Probe { .. }
            | Act::Reset { .. }
            | Act::ResetBus { .. }
            | Act::Remove { .. }
            | Act::Rescan { .. }
            | Act::Verify { .. } => self.function().map_or_else(String::new, |addr| addr.to_string()),
        }
    }

    /// What is done to the subject.
    pub fn verb(&self) -> String {
        match self {
            Act::LoadModule { .. } => "load the module".to_owned(),
            Act::UnloadModule { .. } => "unload the module".to_owned(),
            Act::SetOverride {
                driver: Some(driver), ..
            } => format!("set driver_override to {driver}"),
            Act::SetOverride { driver: None, .. } => "clear driver_override".to_owned(),
            Act::SetAttribute { attribute, value, .. } if value.is_empty() => format!("empty {}", attribute.name()),
            Act::SetAttribute { attribute, value, .. } => format!("set {} to {value}", attribute.name()),
            Act::Reset { .. } => "reset".to_owned(),
            Act::ResetBus { bridge, .. } => format!("reset with all below {bridge}"),
            Act::Remove { .. } => "remove from the bus".to_owned(),
            Act::Rescan {
                bridge: Some(bridge), ..
            } => format!("look for it again below {bridge}"),
            Act::Rescan { bridge: None, .. } => "look for it again on all buses".to_owned(),
            Act::SetConsole { bound: true, .. } => "give the console back".to_owned(),
            Act::SetConsole { bound: false, .. } => "take the console off the framebuffer".to_owned(),
            Act::SetPlatform {
                driver, bound: true, ..
            } => format!("bind to {driver}"),
            Act::SetPlatform {
                driver, bound: false, ..
            } => format!("unbind from {driver}"),
            Act::Verify { .. } => "see whether it works".to_owned(),
            Act::StopUnit { name, .. } if name.is_container() => "shut it down".to_owned(),
            Act::StopUnit { name, .. } if name.runs_on().is_some() => "let the driver go".to_owned(),
            Act::StopUnit { .. } => "stop the service".to_owned(),
            Act::StartUnit { name, .. } if name.is_container() => "start it again".to_owned(),
            Act::StartUnit { name, .. } if name.runs_on().is_some() => "use the driver again".to_owned(),
            Act::StartUnit { .. } => "start the service".to_owned(),
            Act::RestartUnit { .. } => "start the service anew".to_owned(),
            Act::RenewNodes { .. } => "see that its nodes fit".to_owned(),
            Act::EndProcesses { processes, kill, .. } => {
                let them = if processes.len() == 1 { "it" } else { "them" };
                let or_else = if *kill {
                    format!(", or end {them}")
                } else {
                    String::new()
                };
                format!("ask {them} to end{or_else}")
            }
            Act::AwaitDesktops { processes, .. } => match processes.len() {
                1 => "wait until it has ended with its desktop".to_owned(),
                _ => "wait until they have ended with their desktop".to_owned(),
            },
            Act::ShutGate { .. } => "keep others from opening it".to_owned(),
            Act::OpenGate { .. } => "let others open it again".to_owned(),
            Act::ProveFree { .. } => "look for holders once more".to_owned(),
            Act::Unbind { driver, .. } => format!("unbind from {driver}"),
            Act::Probe {
                driver: Some(driver), ..
            } => format!("bind to {driver}"),
            Act::Probe { driver: None, .. } => "bind to the host's own driver".to_owned(),
        }
    }
}

/// Several functions in one word: their slot, where that is one.
fn together(addrs: &[PciAddr]) -> String {
    match addrs {
        [addr] => addr.to_string(),
        [addr, ..] if addrs.iter().all(|a| a.slot() == addr.slot()) => addr.slot().to_string(),
        several => format!("{} functions", several.len()),
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject(), self.verb())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_done_when_the_driver_link_says_so() {
        let addr = "0000:01:00.0".parse().unwrap();
        let probe = Act::Probe {
            addr,
            driver: Some("vfio-pci".to_owned()),
        };
        assert_eq!(probe.expect(), Expect::Driver(addr, Some("vfio-pci".to_owned())));
        assert_eq!(probe.to_string(), "0000:01:00.0: bind to vfio-pci");
    }

    #[test]
    fn clearing_expects_null_and_not_an_empty_name() {
        let addr = "0000:01:00.0".parse().unwrap();
        let clear = Act::SetOverride { addr, driver: None };
        assert_eq!(clear.expect(), Expect::Override(addr, None));
    }
}
