//! What must be true of the host for an act to count as done, and the attributes of a function that acts change.
//!
//! Pure. Not here: which act leads to what ([`crate::model::act`]), and how it is read back (`src/execute/verify.rs`).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::pci::PciAddr;
use crate::host::units::Unit;

/// An attribute of a PCI function that is changed while it is away, and put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attribute {
    /// `reset_method`: which ways of resetting it the kernel may use (linux, Documentation/ABI/testing/sysfs-bus-pci).
    ResetMethod,
    /// `d3cold_allowed`: whether the platform may cut its power.
    D3cold,
    /// `power/control`: "auto" lets it sleep, "on" keeps it awake.
    Power,
}

impl Attribute {
    /// The file below the function's directory in sysfs; in a message it names the attribute.
    pub fn name(self) -> &'static str {
        match self {
            Attribute::ResetMethod => "reset_method",
            Attribute::D3cold => "d3cold_allowed",
            Attribute::Power => "power/control",
        }
    }
}

/// What must be true of the host for an act to count as done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// The return value of the act says it all.
    Nothing,
    /// The module is loaded.
    Loaded(String),
    /// The function's override reads so.
    Override(PciAddr, Option<String>),
    /// The function's attribute reads so.
    Attribute(PciAddr, Attribute, String),
    /// The unit is active, or is not.
    Unit(Unit, bool),
    /// The console driver draws the consoles, or does not.
    Console(String, bool),
    /// The platform device is bound to the driver, or is not.
    Platform(String, String, bool),
    /// The function is on the bus, or is not.
    Present(PciAddr, bool),
    /// The function is not bound to this driver.
    NotOn(PciAddr, String),
    /// The function is bound to this driver; None: to no driver.
    Driver(PciAddr, Option<String>),
    /// The function is bound to some driver, and not to vfio-pci.
    HostDriver(PciAddr),
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expect::Nothing => write!(f, "nothing"),
            Expect::Loaded(name) => write!(f, "{name} is loaded"),
            Expect::Override(_, Some(driver)) => write!(f, "driver_override is {driver}"),
            Expect::Override(_, None) => write!(f, "driver_override is clear"),
            Expect::Attribute(_, attribute, value) => write!(f, "{} is {value}", attribute.name()),
            Expect::Unit(name, true) => write!(f, "{name} is active"),
            Expect::Unit(name, false) => write!(f, "{name} is stopped"),
            Expect::Console(_, true) => write!(f, "the console is on it"),
            Expect::Console(_, false) => write!(f, "no console is on it"),
            Expect::Platform(_, driver, true) => write!(f, "the driver is {driver}"),
            Expect::Platform(_, driver, false) => write!(f, "the driver is not {driver}"),
            Expect::Present(_, true) => write!(f, "it is on the bus"),
            Expect::Present(_, false) => write!(f, "it is not on the bus"),
            Expect::NotOn(_, driver) => write!(f, "the driver is not {driver}"),
            Expect::Driver(_, Some(driver)) => write!(f, "the driver is {driver}"),
            Expect::Driver(_, None) => write!(f, "no driver is bound"),
            Expect::HostDriver(_) => write!(f, "a driver of the host is bound"),
        }
    }
}
