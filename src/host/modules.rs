//! Whether modules can be loaded again: a GPU leaves only where the way home exists.
//!
//! modprobe itself is asked, for the running kernel: aliases and `softdep` lines are its business. Of an `install` line it
//! only prints the command; Debian's packages have `install nvidia modprobe -i nvidia-current $CMDLINE_OPTS`, so that a
//! modprobe in such a command is followed. Nothing is loaded here.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::root::Root;
use crate::base::text::{foreign, one_line};

/// What an `install` line of modprobe.d says where a module is not to be loaded at all.
pub(crate) const NEVER: [&str; 6] = [
    "/bin/false",
    "/bin/true",
    "/usr/bin/false",
    "/usr/bin/true",
    "false",
    "true",
];

/// How many install lines are followed: they may lead to each other.
const INSTALL_DEPTH: u8 = 4;

/// How many questions one module may lead to: each line may have any number of modprobes in it.
const QUESTIONS: u32 = 64;

/// Whether a module can be loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loadable {
    /// Its name, as modprobe is asked for it.
    pub name: String,
    /// Why it cannot be loaded.
    pub problem: Option<Problem>,
}

/// Why a module cannot be loaded. Paths are as modprobe has them, and shown harmless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// modprobe could not be asked; why.
    NoAnswer(String),
    /// modprobe says no, in its own words.
    Refused(String),
    /// An `install` line forbids it, or what it needs.
    Forbidden {
        /// What the line runs instead.
        command: String,
    },
    /// modprobe knows it, but its file is not there.
    Missing {
        /// The file.
        file: String,
    },
    /// The kernel would not take it.
    Unsigned {
        /// The file without a signature.
        file: String,
        /// What asks for one, in words.
        asked_by: String,
    },
    /// Nobody has asked.
    NotAsked,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::NoAnswer(why) => write!(f, "modprobe cannot be asked for it: {why}"),
            Problem::Refused(words) => f.write_str(words),
            // modprobe does not say which of them.
            Problem::Forbidden { command } => write!(
                f,
                "a line of modprobe.d forbids it, or what it needs ('install ... {command}')"
            ),
            Problem::Missing { file } => write!(f, "its file {} is not there", foreign(file)),
            Problem::Unsigned { file, asked_by } => write!(
                f,
                "{} has no signature, and the kernel asks for one ({asked_by})",
                foreign(file)
            ),
            Problem::NotAsked => write!(f, "nobody has asked modprobe"),
        }
    }
}

/// Why the kernel loads signed modules only; None: it does not mind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signatures {
    /// What asks for signatures, in words.
    pub asked_by: Option<String>,
}

impl Signatures {
    /// Reads module.sig_enforce and the lockdown mode (kernel_lockdown.7: the chosen mode is in brackets).
    pub fn read(root: &Root) -> Self {
        let enforced = root.line("/sys/module/module/parameters/sig_enforce");
        let lockdown = root.line("/sys/kernel/security/lockdown").unwrap_or_default();
        let mode = lockdown.split_once('[').and_then(|(_, m)| m.split_once(']'));
        let asked_by = match mode {
            Some((mode, _)) if mode != "none" => Some(format!("lockdown mode {mode}, as Secure Boot turns it on")),
            _ if enforced.as_deref() == Some("Y") => Some("module.sig_enforce".to_owned()),
            _ => None,
        };
        Signatures { asked_by }
    }
}

/// Asks for the modules: for all at once, and for each by itself only where that shows that one cannot be loaded, or gets no answer.
pub fn read(root: &Root, names: &[String]) -> Vec<Loadable> {
    let signatures = Signatures::read(root);
    let of = |names: &[&str]| {
        let mut questions = QUESTIONS;
        problem(root, names, false, &signatures, INSTALL_DEPTH, &mut questions)
    };
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let can_all = all.len() > 1 && of(&all).is_none();
    let one = |name: &String| Loadable {
        name: name.clone(),
        problem: if can_all { None } else { of(&[name]) },
    };
    names.iter().map(one).collect()
}

/// Why one of them cannot be loaded. `ignore`: the install lines of these very modules do not count, as with `modprobe -i`.
/// `depth`: how many install lines are still followed. `questions`: how many there may be yet.
fn problem(
    root: &Root,
    names: &[&str],
    ignore: bool,
    signatures: &Signatures,
    depth: u8,
    questions: &mut u32,
) -> Option<Problem> {
    let Some(left) = questions.checked_sub(1) else {
        let why = format!("its install lines lead to more than {QUESTIONS} others");
        return Some(Problem::NoAnswer(why));
    };
    *questions = left;
    let mut words = vec!["modprobe", "--show-depends"];
    words.extend(ignore.then_some("--ignore-install"));
    words.extend((names.len() > 1).then_some("--all"));
    words.push("--");
    words.extend(names);
    let said = match root.program(&words) {
        Ok(said) => said,
        Err(e) => return Some(Problem::NoAnswer(e.to_string())),
    };
    if !said.ok {
        let line = foreign_line(&said.stderr);
        // The name is said beside it already.
        let rest = line
            .strip_prefix(&format!("Module {} ", names.first()?))
            .filter(|_| depth == INSTALL_DEPTH);
        return Some(Problem::Refused(rest.unwrap_or(&line).to_owned()));
    }
    // One of several that nothing is said of is asked for by itself.
    if names.len() > 1 && said.stdout.lines().count() < names.len() {
        return Some(Problem::NotAsked);
    }
    said.stdout.lines().find_map(|line| {
        let (word, rest) = line.trim().split_once(' ')?;
        match word {
            "insmod" => file_problem(root, rest.split_ascii_whitespace().next()?, signatures),
            "install" if NEVER.contains(&rest.trim()) => Some(Problem::Forbidden {
                command: rest.trim().to_owned(),
            }),
            "install" if depth > 0 => modprobes(rest)
                .into_iter()
                .find_map(|(module, ignore)| problem(root, &[&module], ignore, signatures, depth - 1, questions)),
            _ => None, // builtin
        }
    })
}

/// The modules that the modprobes of a command load, and whether install lines are ignored for them.
fn modprobes(command: &str) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for part in command.split([';', '&', '|']) {
        let mut words = part.split_ascii_whitespace();
        let program = words.next().and_then(|w| w.rsplit('/').next());
        if program != Some("modprobe") {
            continue;
        }
        let words: Vec<&str> = words.collect();
        let ignore = words.iter().any(|w| matches!(*w, "-i" | "--ignore-install"));
        // An option that removes, or a word that only a shell understands, names no module to load.
        let removes = words.iter().any(|w| matches!(*w, "-r" | "--remove"));
        let names = words.iter().filter(|w| !w.starts_with(['-', '$', '>', '<']));
        if !removes {
            found.extend(names.take(1).map(|w| ((*w).to_owned(), ignore)));
        }
    }
    found
}

fn file_problem(root: &Root, path: &str, signatures: &Signatures) -> Option<Problem> {
    let file = path.to_owned();
    if !root.exists(path) {
        return Some(Problem::Missing { file });
    }
    let asked_by = signatures.asked_by.as_ref()?;
    // Compressed files too: modinfo knows how.
    let signer = root.program(&["modinfo", "-F", "signer", path]);
    let is_signed = signer.is_ok_and(|s| s.ok && !s.stdout.trim().is_empty());
    let asked_by = asked_by.clone();
    (!is_signed).then_some(Problem::Unsigned { file, asked_by })
}

fn foreign_line(text: &str) -> String {
    let line = one_line(text);
    let line = line.strip_prefix("modprobe: ").unwrap_or(&line);
    let line = line.strip_prefix("FATAL: ").unwrap_or(line);
    line.trim_end_matches('.').chars().take(200).collect()
}

/// A loaded module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Name with underscores, as the kernel has it.
    pub name: String,
    /// Reference count, uses by other modules included. None where the kernel cannot unload modules.
    pub refs: Option<u32>,
    /// Modules that use it.
    pub users: Vec<String>,
}

/// Parses /proc/modules: name, size, references, users with a comma behind each, state, address.
pub(crate) fn parse_modules(text: &str) -> Vec<Module> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let name = fields.next()?.to_owned();
            let refs = fields.nth(1)?.parse().ok();
            let users = fields
                .next()?
                .split(',')
                .filter(|u| !u.is_empty() && *u != "-" && !u.starts_with('['))
                .map(str::to_owned)
                .collect();
            Some(Module { name, refs, users })
        })
        .collect()
}

/// References of a module that are not other modules'; None where it has no count, or not all that it lists is there.
pub(crate) fn beside_modules(modules: &[Module], module: &Module) -> Option<u32> {
    let is_there = |name: &String| modules.iter().any(|other| other.name == *name);
    let of_modules = u32::try_from(module.users.len()).ok();
    let of_modules = of_modules.filter(|_| module.users.iter().all(is_there))?;
    module.refs?.checked_sub(of_modules)
}

/// Whether nobody has anything of VFIO's, of whatever device, by its modules' counts. Whoever has a group or a device's node open has
/// two references of `vfio`, for the node and for what is done by it (linux, fs/char_dev.c, chrdev_open; drivers/vfio/group.c,
/// vfio_group_alloc; device_cdev.c). Whoever has a device, by whatever descriptor, has one of the driver's until it is closed
/// (vfio_main.c, vfio_device_first_open, vfio_device_last_close). One of `vfio` may be its own: from linux 6.10 on, that of its file
/// system, which is there with the first device (vfio_main.c, vfio_fs_inode_new). VFIO in the kernel itself counts nobody.
pub(crate) fn vfio_is_idle(modules: &[Module]) -> bool {
    let beside = |name: &str| beside_modules(modules, modules.iter().find(|module| module.name == name)?);
    beside("vfio").is_some_and(|refs| refs <= 1) && beside("vfio_pci") == Some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With nobody, with a group that is open, with a device.
    #[test]
    fn whoever_has_something_of_vfios_is_in_its_counts() {
        let others = "vfio_iommu_type1 1 0 - Live 0x0\nvfio_pci_core 1 1 vfio_pci, Live 0x0\n";
        let is_idle = |vfio: &str, vfio_pci: &str| {
            let text = format!("vfio 1 {vfio} Live 0x0\nvfio_pci 1 {vfio_pci} Live 0x0\n{others}");
            vfio_is_idle(&parse_modules(&text))
        };
        let three = "vfio_pci,vfio_pci_core,vfio_iommu_type1,";
        for (refs, vfio_pci, expected) in [
            (3, "0 -", true),
            (4, "0 -", true),  // its own file system, or a container without a group
            (5, "0 -", false), // a group
            (6, "0 -", false), // a group, and its own
            (4, "1 -", false), // a device whose group is closed
            (8, "2 -", false),
        ] {
            let found = is_idle(&format!("{refs} {three}"), vfio_pci);
            assert_eq!(found, expected, "{refs}, {vfio_pci}");
        }
        let listed = "vfio_pci,vfio_pci_core,vfio_mdev,vfio_iommu_type1,";
        assert!(
            !is_idle(&format!("4 {listed}"), "0 -"),
            "one that it lists is not there"
        );
        assert!(!is_idle(&format!("2 {three}"), "0 -"), "fewer than it lists");
        assert!(!is_idle(&format!("- {three}"), "0 -"), "no count");
        assert!(!vfio_is_idle(&[]), "in the kernel itself");
    }

    #[test]
    fn modules_with_and_without_users() {
        let text = "nvidia_uvm 1 0 - Live 0x0 (OE)\n\
                    nvidia 9 3 nvidia_uvm,nvidia_modeset, Live 0x0 (OE)\n\
                    odd 1 - [permanent], Live 0x0\n";
        let modules = parse_modules(text);
        assert_eq!(modules[0].refs, Some(0));
        assert!(modules[0].users.is_empty());
        assert_eq!(modules[1].users, ["nvidia_uvm", "nvidia_modeset"]);
        assert_eq!(modules[2].refs, None);
    }

    const CURRENT: &str = "/programs/modprobe --show-depends --ignore-install -- nvidia-current";

    const KO: &str = "/lib/modules/6.12.0/updates/dkms/nvidia.ko.xz";

    /// A host on which modprobe has been asked for nvidia, with an answer or none.
    fn host(answer: Option<&str>, files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let asked = answer.map(|text| ("/programs/modprobe --show-depends -- nvidia", text));
        for (path, text) in asked.iter().chain(files) {
            let path = dir.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let root = Root::at(dir.path());
        (dir, root)
    }

    #[test]
    fn several_are_asked_for_at_once_and_each_by_itself_where_one_cannot_be_loaded() {
        let all = "/programs/modprobe --show-depends --all -- nvidia nvidia_uvm";
        let both = format!("insmod {KO}\ninsmod {KO}\n");
        let failed = "/programs/failed/modprobe --show-depends -- nvidia_uvm";
        let one = format!("insmod {KO}\n");
        for (said, problem) in [
            (Some(&both), None),
            (Some(&one), Some("not found")), // it says nothing of the other
            (None, Some("not found")),
        ] {
            let mut files = vec![(KO, ""), (failed, "modprobe: FATAL: Module nvidia_uvm not found.\n")];
            files.extend(said.map(|text| (all, text.as_str())));
            let (_dir, root) = host(Some(&format!("insmod {KO}\n")), &files);
            let answers = read(&root, &["nvidia".to_owned(), "nvidia_uvm".to_owned()]);
            let said = answers.iter().map(|one| one.problem.as_ref().map(ToString::to_string));
            assert!(said.eq([None, problem.map(str::to_owned)]), "{answers:?}");
        }
    }

    #[test]
    fn a_module_whose_files_are_there_can_be_loaded() {
        let insmod = format!("insmod {KO} NVreg_Something=1\n");
        let lockdown = "none [integrity] confidentiality\n";
        let signer = format!("/programs/modinfo -F signer {}", KO.replace('/', "!"));
        for (answer, files, problem) in [
            (Some(insmod.as_str()), vec![(KO, "")], None),
            (Some("builtin nvidia\n"), vec![], None),
            (
                Some(insmod.as_str()),
                vec![],
                Some((
                    Problem::Missing { file: KO.to_owned() },
                    "its file /lib/modules/6.12.0/updates/dkms/nvidia.ko.xz is not there",
                )),
            ),
            (
                Some("install /bin/false\n"),
                vec![],
                Some((
                    Problem::Forbidden {
                        command: "/bin/false".to_owned(),
                    },
                    "a line of modprobe.d forbids it, or what it needs ('install ... /bin/false')",
                )),
            ),
            (
                Some("install /sbin/modprobe -i nvidia-current $CMDLINE_OPTS\n"),
                vec![
                    (CURRENT, "insmod /lib/modules/6.12.0/nvidia-current.ko \n"),
                    ("/lib/modules/6.12.0/nvidia-current.ko", ""),
                ],
                None,
            ),
            (
                Some("install /sbin/modprobe -i nvidia-current $CMDLINE_OPTS\n"),
                vec![(CURRENT, "insmod /lib/modules/6.12.0/nvidia-current.ko \n")],
                Some((
                    Problem::Missing {
                        file: "/lib/modules/6.12.0/nvidia-current.ko".to_owned(),
                    },
                    "its file /lib/modules/6.12.0/nvidia-current.ko is not there",
                )),
            ),
            (Some("install modprobe -r nouveau ; echo loaded\n"), vec![], None),
            (
                Some(insmod.as_str()),
                vec![(KO, ""), ("/sys/kernel/security/lockdown", lockdown)],
                Some((
                    Problem::Unsigned {
                        file: KO.to_owned(),
                        asked_by: "lockdown mode integrity, as Secure Boot turns it on".to_owned(),
                    },
                    "/lib/modules/6.12.0/updates/dkms/nvidia.ko.xz has no signature, and the kernel asks for one \
                     (lockdown mode integrity, as Secure Boot turns it on)",
                )),
            ),
            (
                Some(insmod.as_str()),
                vec![
                    (KO, ""),
                    ("/sys/kernel/security/lockdown", lockdown),
                    (&signer, "DKMS\n"),
                ],
                None,
            ),
        ] {
            let (_dir, root) = host(answer, &files);
            let found = read(&root, &["nvidia".to_owned()]);
            let found = found[0].problem.clone().map(|p| (p.to_string(), p));
            let problem = problem.map(|(p, text)| (text.to_owned(), p));
            assert_eq!(found, problem, "{answer:?} {files:?}");
        }
        let (_dir, root) = host(None, &[]);
        let found = read(&root, &["nvidia".to_owned()]);
        let problem = found[0].problem.as_ref().unwrap();
        assert!(matches!(problem, Problem::NoAnswer(_)), "{problem:?}");
        assert!(problem.to_string().starts_with("modprobe cannot be asked for it: "));
    }

    #[test]
    fn modprobes_own_words_lose_what_says_nothing() {
        let said = "modprobe: FATAL: Module nvidia not found in directory /lib/modules/6.12.0\n";
        assert_eq!(
            foreign_line(said),
            "Module nvidia not found in directory /lib/modules/6.12.0"
        );
    }

    #[test]
    fn what_asks_for_signatures_is_named() {
        for (path, text, asked_by) in [
            (
                "/sys/kernel/security/lockdown",
                "[none] integrity confidentiality\n",
                None,
            ),
            (
                "/sys/module/module/parameters/sig_enforce",
                "Y\n",
                Some("module.sig_enforce"),
            ),
            ("/sys/module/module/parameters/sig_enforce", "N\n", None),
        ] {
            let (_dir, root) = host(None, &[(path, text)]);
            assert_eq!(Signatures::read(&root).asked_by.as_deref(), asked_by, "{path} {text:?}");
        }
    }
}
