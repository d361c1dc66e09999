//! Reading back what an act should have led to.
//!
//! Part of the worker's side: a read may hang in the kernel as an act may. Not here: whether a GPU works, which no
//! attribute tells ([`crate::execute::health`]).

use std::io;
use std::os::fd::AsFd;

use crate::base::pci::PciAddr;
use crate::base::root::Root;
use crate::base::text::foreign;
use crate::execute::kernel::ActError;
use crate::host::units::{is_down, runs};
use crate::model::act::{Attribute, Expect};

/// Whether what an act should have led to is so. An error says what is so instead.
pub(crate) fn verify(root: &Root, expect: &Expect) -> Result<(), ActError> {
    let driver = |addr: &PciAddr| root.link_name(format!("/sys/bus/pci/devices/{addr}/driver"));
    let bound = |driver: &Option<String>| match driver {
        Some(driver) => format!("the driver is {driver}"),
        None => "no driver is bound".to_owned(),
    };
    let (reached, observed) = match expect {
        Expect::Nothing => (true, String::new()),
        Expect::Loaded(name) => {
            let module = format!("/sys/module/{}", name.replace('-', "_"));
            let state = root.line(format!("{module}/initstate"));
            // A built-in module has no such file; one that comes or goes is not to be relied on.
            let live = root.exists(&module) && state.is_none_or(|s| s == "live");
            (live, format!("{name} is not loaded"))
        }
        Expect::Override(addr, wanted) => {
            let read = root
                .line(format!("/sys/bus/pci/devices/{addr}/driver_override"))
                .filter(|t| !t.is_empty() && t != "(null)");
            (read == *wanted, Expect::Override(*addr, read).to_string())
        }
        Expect::Attribute(addr, attribute, wanted) => {
            let read = root.line(format!("/sys/bus/pci/devices/{addr}/{}", attribute.name()));
            let read = read.unwrap_or_default();
            // "default" is what is written to have the kernel find out again.
            let is_default = *attribute == Attribute::ResetMethod && wanted == "default" && !read.is_empty();
            (
                read == *wanted || is_default,
                Expect::Attribute(*addr, *attribute, read).to_string(),
            )
        }
        Expect::Unit(unit, wanted) => {
            // One that is on its way from the one to the other is neither (systemctl(1), is-active prints the state).
            let mut words = unit.systemctl();
            words.extend(["is-active".to_owned(), "--".to_owned(), unit.name()]);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let said = root.program_for(&words, Some(io::stdin().as_fd()));
            let said = said.map_err(|e| ActError::Failed(format!("cannot run systemctl: {e}")))?;
            let state = said.stdout.trim();
            let reached = if *wanted { runs(state) } else { is_down(state) };
            (reached, format!("{unit} is \"{}\"", foreign(state)))
        }
        Expect::Console(name, wanted) => {
            let bound = root.line(format!("/sys/class/vtconsole/{name}/bind"));
            let bound = bound.as_deref() == Some("1");
            (bound == *wanted, Expect::Console(name.clone(), bound).to_string())
        }
        Expect::Platform(device, driver_name, wanted) => {
            let read = root.link_name(format!("/sys/bus/platform/devices/{device}/driver"));
            let has = read.as_deref() == Some(driver_name.as_str());
            (has == *wanted, bound(&read))
        }
        Expect::Present(addr, wanted) => {
            let there = root.exists(format!("/sys/bus/pci/devices/{addr}"));
            (there == *wanted, Expect::Present(*addr, there).to_string())
        }
        Expect::NotOn(addr, unwanted) => {
            let read = driver(addr);
            (read.as_deref() != Some(unwanted.as_str()), bound(&read))
        }
        Expect::Driver(addr, wanted) => {
            let read = driver(addr);
            (read == *wanted, bound(&read))
        }
        Expect::HostDriver(addr) => {
            let read = driver(addr);
            (read.as_deref().is_some_and(|d| d != "vfio-pci"), bound(&read))
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
