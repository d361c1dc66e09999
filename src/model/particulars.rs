//! Sentences of a refusal that depend on more than a number or a name: what could not be seen, what cannot be loaded, what a
//! disk is used for.
//!
//! Not here: which reasons there are ([`crate::model::refusal`]).

use crate::base::text::{foreign, harmless, join, typed};
use crate::host::holders::{Hidden, Unseen};
use crate::host::modules::Problem;
use crate::host::unit_states::Kept;
use crate::host::units::Unit;
use crate::host::usb::How;
use crate::model::remedy::Remedy;

/// What could not be seen, by process: the first few.
pub(crate) fn not_seen(unseen: &[Unseen]) -> (String, Remedy) {
    const SHOWN: usize = 3;
    let one = |u: &Unseen| {
        let name = match u.comm.as_str() {
            "" => String::new(),
            comm => format!(" ({})", foreign(comm)),
        };
        let what = match &u.what {
            Hidden::Refused(why) => format!("could not be read: {}", foreign(why)),
            Hidden::Descriptors => "has more descriptors open than there was time for".to_owned(),
            Hidden::Memory => "does not let its mappings be read: it hangs in a call on its memory".to_owned(),
            Hidden::Passing => "and others ended before they could be looked at, one after the other".to_owned(),
        };
        format!("process {}{name} {what}", u.pid)
    };
    let mut all: Vec<String> = unseen.iter().take(SHOWN).map(one).collect();
    if unseen.len() > SHOWN {
        all.push(format!("and {} more", unseen.len() - SHOWN));
    }
    let fact = format!("whether the GPU is free is not known: {}", all.join("; "));
    let remedy = if unseen.iter().any(|u| matches!(u.what, Hidden::Refused(_))) {
        "run as root, outside a container"
    } else {
        "end that process, or wait until it has done what it is at, and try again"
    };
    (fact, remedy.into())
}

/// What an unbind by a driver would do that waits for its users for ever. `version`: empty where it is not known.
pub(crate) fn never_ends(version: &str) -> String {
    let by = match version {
        "" => "the driver, whose version cannot be read, may never end".to_owned(),
        _ => format!("driver {version} never ends"),
    };
    format!("an unbind by {by} if anybody turns out to use the GPU")
}

/// What is lost without these modules, and what makes them loadable.
pub(crate) fn cannot_load(modules: &[String], why: &Problem) -> (String, Remedy) {
    let (then, remedy) = if modules.iter().any(|m| m == "vfio_pci") {
        ("no guest can have the GPU", "see 'modprobe --show-depends vfio_pci'")
    } else {
        ("the GPU would not come back", loading_remedy(why))
    };
    let word = if modules.len() == 1 { "module" } else { "modules" };
    (
        format!("{word} {} cannot be loaded: {why}; without it {then}", join(modules)),
        remedy.into(),
    )
}

/// What makes modules of a driver loadable again.
pub(crate) fn loading_remedy(why: &Problem) -> &'static str {
    match why {
        Problem::Forbidden { .. } => "remove that line from /etc/modprobe.d",
        Problem::Unsigned { .. } => "sign them (for dkms: enrol its key with mokutil), or turn Secure Boot off",
        Problem::NoAnswer(_) | Problem::Refused(_) | Problem::Missing { .. } | Problem::NotAsked => {
            "build them for the running kernel ('dkms autoinstall'), or boot the kernel they were built for"
        }
    }
}

/// How something below a USB controller is used.
pub(crate) fn usb_use(how: &How) -> String {
    match how {
        How::Mounted(target) => format!("is mounted on {}", foreign(target)),
        How::Swap => "is swapped to".to_owned(),
        How::PartOf(others) => format!("is a part of {}", foreign(&join(others))),
        How::Btrfs => "is a part of a btrfs file system that is mounted".to_owned(),
        How::Zfs(pool) => format!("is a part of the ZFS pool {}", foreign(pool)),
        How::Up => "is a network interface that is up".to_owned(),
    }
}

/// Why a unit is not stopped for a handoff.
pub(crate) fn kept(unit: &Unit, why: &Kept) -> (String, Remedy) {
    let (status, stop) = (unit.by_hand("status"), unit.by_hand("stop"));
    match why {
        Kept::NoAnswer(why) => (
            format!(
                "{unit} may be stopped for it, and is not, since {} gives no answer: {}",
                unit.keeper(),
                harmless(why, 200)
            ),
            format!("see '{status}'").into(),
        ),
        Kept::State(state) => (
            format!(
                "{unit} may be stopped for it, but is \"{}\" by {}'s word, which can neither end what it has left \
                 nor make it as it was",
                foreign(state),
                unit.keeper()
            ),
            format!(
                "where it is being started, try again when it has been; else end the process yourself; see '{status}'"
            )
            .into(),
        ),
        Kept::TakesAlong(other) => {
            let how = match unit.beside(other).word() {
                Some(word) => format!("where that does no harm, name {} in 'services' as well", typed(&word)),
                None => format!("where that does no harm, '{stop}' before the start"),
            };
            let other = foreign(other);
            let fact = format!("{unit} may be stopped for it, but {other} needs it and would be stopped as well");
            (fact, how.into())
        }
        Kept::Caller => (
            format!("{unit} may be stopped for it, but this run was started from it, or from what ends with it"),
            "start it from another place: by SSH, or from Proxmox's web page".into(),
        ),
        Kept::OfHa => (
            format!("{unit} may be shut down for it, but HA manages it, and answers for where it runs"),
            format!(
                "have HA ignore it meanwhile by ha-containers = \"stop\" in /etc/gpu-handoff/config.toml, or 'ha-manager set \
                 ct:{} --state stopped' before the start",
                unit.name()
            )
            .into(),
        ),
        Kept::HaIsAtIt(why) => (
            format!("{unit} may be shut down for it, but {}", harmless(why, 200)),
            "see 'ha-manager status', and try again when HA has done with it".into(),
        ),
        Kept::Never(why) => (
            format!("{unit} may be stopped for it, but {}", harmless(why, 200)),
            format!("where that does no harm, '{stop}' before the start").into(),
        ),
    }
}

/// A line of Proxmox's that may give the VM a GPU.
pub(crate) fn not_understood(at: &str, what: &str, why: &str) -> (String, Remedy) {
    (
        format!(
            "{at}: {} is not understood ({why}) and may mean an NVIDIA GPU: a Proxmox that understands it would take it off \
             its driver by itself, without a look for its users and without a deadline",
            foreign(what)
        ),
        "correct the line; or, where this Proxmox ignores it as well, set 'unknown-keys' to \"ignore\" in \
         /etc/gpu-handoff/config.toml"
            .into(),
    )
}
