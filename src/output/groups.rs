//! IOMMU groups of the GPUs: who is in each, what goes along at a handoff, and what keeps a group together or has split it.
//!
//! What is told is what the kernel's own choice of groups shows (linux, drivers/iommu/iommu.c, pci_device_group): it puts
//! together what it cannot keep apart by PCI Express's access control (ACS), from the root down.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Serialize;

use crate::base::pci::{PciAddr, PciSlot};
use crate::base::sets::IntoSet as _;
use crate::base::text::join;
use crate::host::functions::Function;
use crate::host::pci_ids::{Ids, Named};
use crate::host::snapshot::{Snapshot, card};
use crate::model::refusal::Reason;
use crate::output::status::NO_GPU;
use crate::output::style::{Ink, Style, fit};
use crate::plan::moving::is_idle_bridge;

/// The form of the JSON: docs/schemas/groups.json.
pub const VERSION: u32 = 1;

/// The parameter that has the kernel believe in isolation that is not there (Proxmox's kernel has the patch, the kernel's
/// own source has not).
const ACS_OVERRIDE: &str = "pcie_acs_override=";

/// What `status --groups` prints.
#[derive(Debug, Serialize)]
pub struct Groups {
    /// [`VERSION`].
    pub version: u32,
    /// The groups that have a function of a GPU's card, by number.
    pub groups: Vec<Group>,
    /// Functions of cards that are in no group.
    pub without: Vec<String>,
    /// How many groups there are besides.
    pub others: usize,
    /// What holds for all of them.
    pub notes: Vec<String>,
}

/// A group.
#[derive(Debug, Serialize)]
pub struct Group {
    /// Its number.
    pub group: u32,
    /// Its members.
    pub members: Vec<Member>,
    /// What keeps members together that are not of one card.
    pub joined: Option<String>,
    /// Cards of which it has a part only.
    pub split: Vec<String>,
}

/// A member of a group.
#[derive(Debug, Serialize)]
pub struct Member {
    /// Address.
    pub addr: String,
    /// Vendor and device id.
    pub id: String,
    /// A word for its class.
    pub class: &'static str,
    /// What it is called, where that is known.
    pub name: Option<String>,
    /// Bound driver.
    pub driver: Option<String>,
    /// What becomes of it when a GPU of the group is handed over.
    pub role: Role,
}

/// What becomes of a member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A GPU: handed over.
    Gpu,
    /// Of a GPU's card: handed over with it.
    Companion,
    /// A bridge: stays, as Proxmox leaves it, too.
    Bridge,
    /// Nobody's, and goes along.
    GoesAlong,
    /// Something else: speaks against a handoff unless the VM is given it as well.
    Stranger,
}

/// The groups of the cards in these slots, or of all. `cmdline`: the kernel's command line.
pub fn groups(snapshot: &Snapshot, names: &[Named], cmdline: &str, only: Option<&BTreeSet<PciSlot>>) -> Groups {
    let is_shown = |gpu: &&Function| only.is_none_or(|slots| slots.contains(&gpu.addr.slot()));
    let shown = snapshot
        .gpus()
        .filter(is_shown)
        .flat_map(|gpu| card(snapshot, gpu.addr));
    let shown: BTreeSet<PciAddr> = shown.into_set();
    let group = |addr: &PciAddr| snapshot.function(*addr).and_then(|f| f.group);
    let numbers: BTreeSet<u32> = shown.iter().filter_map(group).into_set();
    let all: BTreeSet<u32> = snapshot.functions.iter().filter_map(|f| f.group).into_set();
    let without = shown.iter().filter(|a| group(a).is_none()).map(ToString::to_string);
    Groups {
        version: VERSION,
        groups: numbers.iter().map(|n| one(snapshot, names, *n)).collect(),
        without: without.collect(),
        others: all.difference(&numbers).count(),
        notes: notes(snapshot, cmdline),
    }
}

/// The ids of all members of the groups that may be shown, to ask for their names.
pub fn ids(snapshot: &Snapshot) -> Vec<Ids> {
    snapshot.functions.iter().map(|f| (f.vendor, f.device)).collect()
}

fn notes(snapshot: &Snapshot, cmdline: &str) -> Vec<String> {
    let mut notes = Vec::new();
    if !snapshot.iommu {
        notes.push(Reason::IommuOff.to_string());
    }
    if let Some(word) = cmdline.split_whitespace().find(|w| w.starts_with(ACS_OVERRIDE)) {
        notes.push(format!(
            "'{word}' on the kernel command line splits groups that the hardware does not keep apart: a guest may reach \
             what was split off"
        ));
    }
    notes
}

fn one(snapshot: &Snapshot, names: &[Named], number: u32) -> Group {
    let members = || snapshot.functions.iter().filter(move |f| f.group == Some(number));
    let cards: Vec<(PciAddr, BTreeSet<PciAddr>)> = snapshot
        .gpus()
        .map(|gpu| (gpu.addr, card(snapshot, gpu.addr)))
        .filter(|(_, card)| members().any(|f| card.contains(&f.addr)))
        .collect();
    let role = |f: &Function| match f {
        _ if cards.iter().any(|(gpu, _)| *gpu == f.addr) => Role::Gpu,
        _ if cards.iter().any(|(_, card)| card.contains(&f.addr)) => Role::Companion,
        _ if f.bridge => Role::Bridge,
        _ if is_idle_bridge(f) => Role::GoesAlong,
        _ => Role::Stranger,
    };
    Group {
        group: number,
        joined: joined(
            &members().collect::<Vec<_>>(),
            members().any(|f| role(f) == Role::Stranger),
            cards.len(),
        ),
        split: cards
            .iter()
            .filter_map(|(gpu, card)| split(snapshot, *gpu, card))
            .collect(),
        members: members().map(|f| member(f, names, role(f))).collect(),
    }
}

fn member(function: &Function, names: &[Named], role: Role) -> Member {
    let named = names.iter().find(|n| n.ids == (function.vendor, function.device));
    Member {
        addr: function.addr.to_string(),
        id: format!("{:04x}:{:04x}", function.vendor, function.device),
        class: function.class.name(),
        name: named.and_then(|n| n.device.clone()),
        driver: function.driver.clone(),
        role,
    }
}

/// Why members of several slots are in one group; None: they are of one slot.
fn joined(members: &[&Function], has_strangers: bool, cards: usize) -> Option<String> {
    let devices = || members.iter().filter(|f| !f.bridge);
    let slots: BTreeSet<PciSlot> = devices().map(|f| f.addr.slot()).into_set();
    if slots.len() < 2 {
        return None;
    }
    let is_above = |bridge: &&&Function| devices().any(|f| f.parent == Some(bridge.addr));
    let bridges = members.iter().filter(|f| f.bridge).filter(is_above);
    let above: Vec<PciAddr> = bridges.map(|f| f.addr).collect();
    let why = match above.as_slice() {
        _ if devices().any(|f| f.noiommu) => "VFIO's mode without an IOMMU has made it".to_owned(),
        [] => format!(
            "nothing keeps {} apart from each other (no ACS between them)",
            join(&slots)
        ),
        bridges => format!(
            "{}, above them and in the group as well, {} not keep apart what is below (no ACS, or an old PCI bridge)",
            join(bridges),
            if bridges.len() == 1 { "does" } else { "do" }
        ),
    };
    let then = match (has_strangers, cards) {
        (true, _) => "; another slot, behind a root port of its own, may have its own group",
        (false, 2..) => "; its cards leave the host together",
        (false, _) => "",
    };
    Some(why + then)
}

/// That a card lies in several groups.
fn split(snapshot: &Snapshot, gpu: PciAddr, card: &BTreeSet<PciAddr>) -> Option<String> {
    let groups: BTreeSet<u32> = card.iter().filter_map(|a| snapshot.function(*a)?.group).into_set();
    (groups.len() > 1).then(|| {
        format!(
            "the functions of {} are in groups {}, and are handed over together all the same",
            gpu.slot(),
            join(&groups)
        )
    })
}

/// `status --groups` for people.
pub fn text(groups: &Groups, style: Style) -> String {
    if groups.groups.is_empty() && groups.without.is_empty() {
        return NO_GPU.to_owned();
    }
    let mut text = String::new();
    for group in &groups.groups {
        let _ = writeln!(
            text,
            "{}",
            style.paint(Ink::Head, &format!("IOMMU group {}", group.group))
        );
        for member in &group.members {
            text += &member_text(member, style);
        }
        let mut say = |label, sentence| text += &style.labelled(label, sentence);
        if let Some(joined) = &group.joined {
            say("  joined: ", joined);
        }
        for split in &group.split {
            say("  split:  ", split);
        }
    }
    for addr in &groups.without {
        let _ = writeln!(text, "{addr} is in no IOMMU group");
    }
    match groups.others {
        0 => {}
        1 => text += "1 other group has no GPU.\n",
        n => _ = writeln!(text, "{n} other groups have no GPU."),
    }
    for note in &groups.notes {
        text += &style.labelled("Note: ", note);
    }
    text
}

fn member_text(member: &Member, style: Style) -> String {
    let role = match member.role {
        Role::Gpu => "GPU",
        Role::Companion => "of its card",
        Role::Bridge => "stays",
        Role::GoesAlong => "goes along",
        Role::Stranger => "in the way",
    };
    let role = fit(role, 11);
    let role = match member.role {
        Role::Stranger => style.paint(Ink::Bad, &role),
        _ => role,
    };
    let driver = fit(member.driver.as_deref().unwrap_or("no driver"), 14);
    let what = member.name.as_deref().unwrap_or(member.class);
    let what = fit(&format!("{} {what}", member.id), 37);
    let line = format!("  {} {driver} {role} {what}", fit(&member.addr, 12));
    format!("{}\n", line.trim_end())
}
