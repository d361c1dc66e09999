//! The rules: what of this host's configuration is to be another one. Pure.

use crate::base::text::harmless;
use crate::check::fights::{self, Cpu, Fight, Mend};
use crate::check::finding::Level;
use crate::host::kernel_args::Argument;
use crate::host::modprobe_config::{Directive, Line};
use crate::host::module_lists::{INITRAMFS, Listed};
use crate::host::place::{Place, Unknown};
use crate::prepare::facts::Facts;

/// The modules that a VM's card needs; the first two come with the third, and stand in Proxmox's manual beside it (PCI(e)
/// Passthrough, "Kernel Modules").
const VFIO: [&str; 3] = ["vfio", "vfio_iommu_type1", "vfio_pci"];

/// Longest line of somebody's that is quoted, bytes.
const QUOTED: usize = 160;

/// A line of a file that fights, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineEdit {
    /// Where it stands.
    pub place: Place,
    /// What stands there instead, once it is commented out; None: nothing.
    pub instead: Option<String>,
    /// Why, as a sentence without its end.
    pub why: String,
}

/// An argument of the kernel's command line that fights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgumentEdit {
    /// Which.
    pub argument: Argument,
    /// What it becomes; None: it goes.
    pub instead: Option<String>,
    /// Why, as a sentence without its end.
    pub why: String,
}

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Lines of modprobe.d and of the initramfs's list.
    pub lines: Vec<LineEdit>,
    /// Arguments that go or change.
    pub arguments: Vec<ArgumentEdit>,
    /// An argument that is missing, and why.
    pub missing: Option<(&'static str, String)>,
    /// Modules that are to be loaded at boot, and are not yet.
    pub load: Vec<&'static str>,
    /// What is not changed and worth knowing, sentences.
    pub notes: Vec<String>,
    /// What had to be known and is not: nothing is changed then.
    pub unknown: Vec<Unknown>,
}

/// What is wanted of this host.
pub fn wanted(facts: &Facts) -> Wanted {
    let mut wanted = Wanted::default();
    if facts.ids.is_empty() {
        wanted
            .notes
            .push("No device of NVIDIA's is on this host's bus now: every id of NVIDIA's counts.".to_owned());
    }
    modules(facts, &mut wanted);
    command_line(facts, &mut wanted);
    let listed = |module: &str| {
        facts
            .lists
            .at_boot
            .iter()
            .any(|l| l.module == module && l.options.is_empty())
    };
    if !listed("vfio_pci") {
        wanted.load = VFIO.into_iter().filter(|m| !listed(m)).collect();
    }
    wanted.unknown.extend(facts.modprobe.unknown.iter().cloned());
    wanted.unknown.extend(facts.lists.unknown.iter().cloned());
    wanted
}

/// What fights in modprobe.d and in what an initramfs loads.
fn modules(facts: &Facts, wanted: &mut Wanted) {
    for line in &facts.modprobe.lines {
        let words = words(line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if let Some(fight) = fights::of_modprobe(&words, &facts.ids) {
            line_edit(&line.place, &words.join(" "), &fight, wanted, str::to_owned);
        }
    }
    for listed in &facts.lists.initramfs {
        // Its options are modprobe's.
        let mut words = vec!["options", listed.module.as_str()];
        words.extend(listed.options.iter().map(String::as_str));
        let fight = match listed.options.is_empty() {
            true => None,
            false => fights::of_modprobe(&words, &facts.ids),
        };
        if let Some(mut fight) = fight {
            // Without its ids the module may still be wanted in the initramfs.
            if fight.mend == Mend::Remove {
                fight.mend = Mend::Become(format!("options {}", listed.module));
            }
            let instead = |text: &str| text.strip_prefix("options ").unwrap_or(text).to_owned();
            line_edit(&listed.place, &shown(listed), &fight, wanted, instead);
        }
    }
}

/// A line as the words that modprobe has of it. A carriage return is no part of a word to a kernel that reads numbers.
fn words(line: &Line) -> Vec<String> {
    let mut words = match &line.directive {
        Directive::Alias { name, module } => vec!["alias".to_owned(), name.clone(), module.clone()],
        Directive::Blacklist { module } => vec!["blacklist".to_owned(), module.clone()],
        Directive::Options { module, options } => {
            [vec!["options".to_owned(), module.clone()], options.clone()].concat()
        }
        Directive::Install { module, command } => {
            let mut words = vec!["install".to_owned(), module.clone()];
            words.extend(command.split_ascii_whitespace().map(str::to_owned));
            words
        }
        Directive::Softdep { module, pre, post } => {
            let mut words = vec!["softdep".to_owned(), module.clone()];
            for (word, modules) in [("pre:", pre), ("post:", post)] {
                if !modules.is_empty() {
                    words.push(word.to_owned());
                    words.extend(modules.iter().cloned());
                }
            }
            words
        }
        Directive::Remove { .. } | Directive::Ignored { .. } => Vec::new(),
    };
    for word in &mut words {
        word.truncate(word.trim_end_matches('\r').len());
    }
    words
}

fn shown(listed: &Listed) -> String {
    [std::slice::from_ref(&listed.module), listed.options.as_slice()]
        .concat()
        .join(" ")
}

/// Whether it is changed without being asked further: what keeps a handoff from working, and the order in which modules
/// are loaded that was made for cards that a host never has.
fn is_mended(fight: &Fight) -> bool {
    fight.mend != Mend::Told && (fight.level == Level::Fail || fight.row == "softdep")
}

fn line_edit(place: &Place, said: &str, fight: &Fight, wanted: &mut Wanted, instead: impl Fn(&str) -> String) {
    let said = harmless(said, QUOTED);
    if !is_mended(fight) {
        if fight.level >= Level::Warn {
            wanted
                .notes
                .push(format!("{place}: '{said}' {}; it is left as it is.", fight.what));
        }
        return;
    }
    if place.file.starts_with("/run/") {
        wanted.notes.push(format!(
            "{place}: '{said}' {}. That file is made anew at each boot by somebody else, and is left as it is.",
            fight.what
        ));
        return;
    }
    wanted.lines.push(LineEdit {
        place: place.clone(),
        instead: match &fight.mend {
            Mend::Become(text) => Some(instead(text)),
            Mend::Remove | Mend::Told => None,
        },
        why: format!("'{said}' {}", fight.what),
    });
}

/// What fights on the command line, and what is missing there.
fn command_line(facts: &Facts, wanted: &mut Wanted) {
    let is_fight = |argument: &Argument| {
        let fight = fights::of_argument(argument.unquoted(), &facts.ids)?;
        Some((argument.clone(), fight))
    };
    let (arguments, of_next) = match &facts.boot.next {
        Ok(next) => (next, true),
        Err(_) => (&facts.boot.now, false),
    };
    let mut found = Vec::new();
    for (argument, fight) in arguments.iter().filter_map(is_fight) {
        let said = harmless(&argument.text, QUOTED);
        match is_mended(&fight) {
            true => found.push(ArgumentEdit {
                why: format!("'{said}' {}", fight.what),
                argument,
                instead: match fight.mend {
                    Mend::Become(text) => Some(text),
                    Mend::Remove | Mend::Told => None,
                },
            }),
            false if fight.level >= Level::Warn => {
                let place = &argument.place;
                wanted
                    .notes
                    .push(format!("{place}: '{said}' {}; it is left as it is.", fight.what));
            }
            false => {}
        }
    }
    let missing = missing(facts, arguments, &found, wanted);
    if !of_next {
        let unknown = facts.boot.next.as_ref().err().cloned().unwrap_or_default();
        if found.is_empty() && missing.is_none() {
            // Nothing is to be changed there, as far as the command line of now tells.
            wanted.notes.extend(
                unknown
                    .iter()
                    .map(|u| format!("The boot loader's configuration is not understood, and is left as it is ({u}).")),
            );
        } else {
            wanted.unknown.extend(unknown);
        }
        return;
    }
    wanted.missing = missing;
    wanted.arguments = found;
}

/// The argument that is missing for an IOMMU.
fn missing(
    facts: &Facts,
    arguments: &[Argument],
    found: &[ArgumentEdit],
    wanted: &mut Wanted,
) -> Option<(&'static str, String)> {
    let of = |arguments: &[&Argument]| fights::missing_argument(facts.cpu, arguments.iter().map(|a| a.unquoted()));
    let now: Vec<&Argument> = facts.boot.now.iter().collect();
    let stay: Vec<&Argument> = arguments
        .iter()
        .filter(|a| !found.iter().any(|f| f.argument == **a))
        .collect();
    let is_told = of(&now).is_none();
    let by_itself = facts.iommu_by_default || (facts.iommu_is_on && !is_told);
    if let Some(argument) = of(&stay).filter(|_| !by_itself) {
        let why = match facts.iommu_is_on {
            true => "the kernel that runs was told, and the next one would not be",
            false => "Intel's IOMMU is off, and this turns it on",
        };
        return Some((argument, why.to_owned()));
    }
    let is_off = |a: &Argument| fights::of_argument(a.unquoted(), &facts.ids).is_some_and(|f| f.row == "iommu-off");
    // Where it is neither on nor turned off, nor only waits to be turned on, there is none for the kernel to find.
    if !facts.iommu_is_on && !facts.boot.now.iter().any(is_off) && (is_told || facts.iommu_by_default) {
        let switch = match facts.cpu {
            Cpu::Intel => "'VT-d'",
            Cpu::Amd => "'IOMMU' (not 'Auto')",
            Cpu::Other => "the IOMMU",
        };
        wanted.notes.push(format!(
            "The IOMMU is off, and no argument turns it on: switch on {switch} in the firmware's setup."
        ));
    }
    None
}

/// Whether a change of this file is one of an initramfs's content, which has all of /etc/modprobe.d
/// (initramfs-tools, mkinitramfs).
pub fn is_in_initramfs(file: &str) -> bool {
    file == INITRAMFS || file.contains("/modprobe.d/")
}
