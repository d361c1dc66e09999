//! Which lines of the host's configuration fight a handoff, and what each should be instead: the one place where that is
//! decided. `check` says it, and `prepare` acts on what is [`Level::Fail`] here.
//!
//! Pure: a line comes as its words, from whichever file. Readers of modprobe.d, of module lists and of the kernel's
//! command line judge nothing; they ask here.

use crate::base::pci::VENDOR_NVIDIA;
use crate::base::text::foreign;
use crate::check::finding::Level;
use crate::host::modules::NEVER;

/// What a line does against a handoff.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fight {
    /// The check that says it: an id of the table.
    pub row: &'static str,
    /// How it counts. Only what is [`Level::Fail`] is for `prepare` to change by itself.
    pub level: Level,
    /// What it does: the end of a sentence that begins with the line.
    pub what: String,
    /// What mends it.
    pub mend: Mend,
}

/// What mends a line, or a word of the kernel's command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mend {
    /// It goes.
    Remove,
    /// It becomes this: what else it says stays.
    Become(String),
    /// It is for a person to decide.
    Told,
}

/// Vendor and device ids of the host's NVIDIA functions: what must not be given to vfio-pci at boot. Without any, every
/// id of NVIDIA's counts.
pub type Ids<'a> = &'a [(u16, u16)];

/// The modules of NVIDIA's driver, with underscores. Debian's have "current" in their names
/// (package nvidia-kernel-dkms).
const DRIVER: [&str; 10] = [
    "nvidia",
    "nvidia_drm",
    "nvidia_modeset",
    "nvidia_uvm",
    "nvidia_peermem",
    "nvidia_current",
    "nvidia_current_drm",
    "nvidia_current_modeset",
    "nvidia_current_uvm",
    "nvidia_current_peermem",
];

/// The modules that a guest's card needs.
const VFIO: [&str; 4] = ["vfio", "vfio_pci", "vfio_pci_core", "vfio_iommu_type1"];

/// A module's name as the kernel has it.
fn module(name: &str) -> String {
    name.replace('-', "_")
}

/// What each of these modules is to a handoff, and how it counts that it is kept out.
fn kept_out(name: &str) -> Option<(Level, &'static str)> {
    let name = module(name);
    if name == "nvidia" || name == "nvidia_current" {
        return Some((Level::Fail, "keeps the host's own driver from being loaded at boot"));
    }
    if DRIVER.contains(&name.as_str()) {
        return Some((Level::Warn, "keeps a part of the host's own driver from being loaded"));
    }
    if VFIO.contains(&name.as_str()) {
        return Some((Level::Fail, "keeps out what a VM's card is bound to"));
    }
    (name == "snd_hda_intel").then_some((
        Level::Warn,
        "keeps out the driver that the card's audio function comes home to",
    ))
}

/// A line of modprobe.d, by its words.
pub fn of_modprobe(words: &[&str], ours: Ids<'_>) -> Option<Fight> {
    match words {
        ["options", name, options @ ..] => of_options(name, options, ours),
        ["blacklist", name, ..] => {
            let (level, what) = kept_out(name)?;
            Some(Fight {
                row: "blacklist",
                level,
                what: what.to_owned(),
                mend: Mend::Remove,
            })
        }
        ["install", name, command @ ..] => of_install(name, command),
        ["softdep", name, depends @ ..] => {
            let is_ours = DRIVER.contains(&module(name).as_str()) || module(name) == "snd_hda_intel";
            let first = depends.iter().take_while(|w| **w != "post:");
            let waits = first.clone().any(|w| module(w) == "vfio_pci");
            (is_ours && waits).then(|| Fight {
                row: "softdep",
                level: Level::Warn,
                what: format!(
                    "has vfio-pci loaded before {}: with ids, it takes the card before the host's driver can",
                    foreign(name)
                ),
                mend: Mend::Remove,
            })
        }
        ["alias", pattern, name, ..] => {
            let is_nvidia = pattern.to_ascii_lowercase().starts_with("pci:v000010de");
            (is_nvidia && module(name) == "vfio_pci").then(|| Fight {
                row: "vfio-ids",
                level: Level::Fail,
                what: "has vfio-pci loaded for NVIDIA's cards instead of the host's driver".to_owned(),
                mend: Mend::Remove,
            })
        }
        _ => None,
    }
}

fn of_options(name: &str, options: &[&str], ours: Ids<'_>) -> Option<Fight> {
    let is_on = |key: &str| {
        let value = options.iter().find_map(|o| o.strip_prefix(key)?.strip_prefix('='));
        value.is_some_and(|v| matches!(v, "1" | "Y" | "y"))
    };
    match module(name).as_str() {
        "vfio_pci" => {
            let ids = options.iter().find_map(|o| o.strip_prefix("ids="))?;
            let (taken, left) = split_ids(ids, ours)?;
            let rest = options.iter().filter(|o| !o.starts_with("ids="));
            let left = (!left.is_empty()).then(|| format!("ids={}", left.join(",")));
            let words: Vec<String> = rest.map(|o| (*o).to_owned()).chain(left).collect();
            Some(Fight {
                row: "vfio-ids",
                level: Level::Fail,
                what: gives(&taken),
                mend: match words.is_empty() {
                    true => Mend::Remove,
                    false => Mend::Become(format!("options {name} {}", words.join(" "))),
                },
            })
        }
        "vfio" if is_on("enable_unsafe_noiommu_mode") => Some(noiommu()),
        _ => None,
    }
}

fn noiommu() -> Fight {
    Fight {
        row: "noiommu",
        level: Level::Fail,
        what: "has VFIO make groups without an IOMMU: a guest could write anywhere in the host's memory".to_owned(),
        mend: Mend::Remove,
    }
}

/// What is said of ids that vfio-pci is given.
fn gives(taken: &[&str]) -> String {
    format!(
        "gives {} to vfio-pci at boot: the host's driver never has the card, and it never comes home",
        foreign(&taken.join(","))
    )
}

/// Which of these ids are of the host's NVIDIA functions, and which are not (linux, drivers/vfio/pci/vfio_pci.c,
/// vfio_pci_fill_ids: `vendor:device` and more, in hex, with commas between). None: none is.
fn split_ids<'t>(ids: &'t str, ours: Ids<'_>) -> Option<(Vec<&'t str>, Vec<&'t str>)> {
    let is_ours = |id: &&str| {
        let mut numbers = id
            .split(':')
            .map(|n| u16::from_str_radix(n.trim_start_matches("0x"), 16));
        let (Some(Ok(vendor)), Some(Ok(device))) = (numbers.next(), numbers.next()) else {
            return false;
        };
        match ours {
            [] => vendor == VENDOR_NVIDIA,
            ours => ours.contains(&(vendor, device)),
        }
    };
    let ids = ids.trim_matches('"').split(',').filter(|id| !id.is_empty());
    let (taken, left): (Vec<&str>, Vec<&str>) = ids.partition(is_ours);
    (!taken.is_empty()).then_some((taken, left))
}

fn of_install(name: &str, command: &[&str]) -> Option<Fight> {
    let (_, kept) = kept_out(name)?;
    // Debian's nvidia-kernel-common has "install nvidia modprobe -i nvidia-current $CMDLINE_OPTS": it loads the driver.
    if command.iter().any(|word| word.rsplit('/').next() == Some("modprobe")) {
        return None;
    }
    // The colon does as much: modprobe has a shell run the line.
    let never = matches!(command, [word] if NEVER.contains(word) || *word == ":");
    Some(match never {
        true => Fight {
            row: "install-false",
            level: Level::Fail,
            what: format!("{kept}, by name too"),
            mend: Mend::Remove,
        },
        false => Fight {
            row: "install-false",
            level: Level::Warn,
            what: format!("runs a program of its own instead of loading {}", foreign(name)),
            mend: Mend::Told,
        },
    })
}

/// A name of /etc/modules or modules-load.d.
pub fn of_module_list(name: &str) -> Option<Fight> {
    let name = module(name);
    // linux commit e2d55709398e (6.2) made it a part of vfio.
    (name == "vfio_virqfd").then(|| Fight {
        row: "modules-load",
        level: Level::Notice,
        what: "is no module since kernel 6.2: systemd-modules-load fails for it at every boot".to_owned(),
        mend: Mend::Remove,
    })
}

/// A word of the kernel's command line (linux, Documentation/admin-guide/kernel-parameters.txt).
pub fn of_argument(word: &str, ours: Ids<'_>) -> Option<Fight> {
    let (key, value) = word.split_once('=').unwrap_or((word, ""));
    let fight = |row, level, what: &str, mend| {
        Some(Fight {
            row,
            level,
            what: what.to_owned(),
            mend,
        })
    };
    match (key.replace('-', "_").as_str(), value) {
        ("vfio_pci.ids", ids) => {
            let (taken, left) = split_ids(ids, ours)?;
            let mend = match left.is_empty() {
                true => Mend::Remove,
                false => Mend::Become(format!("{key}={}", left.join(","))),
            };
            fight("vfio-ids", Level::Fail, &gives(&taken), mend)
        }
        ("modprobe.blacklist" | "module_blacklist" | "rd.driver.blacklist", names) => {
            let is_firmwares = |name: &str| matches!(module(name).as_str(), "simplefb" | "simpledrm");
            let keeps = names.split(',').any(|name| kept_out(name).is_some());
            if !keeps && names.split(',').any(is_firmwares) {
                let what = "is not needed, and of no effect on what is a part of the kernel: a handoff takes the firmware's \
                            framebuffer off";
                return fight("firmware-framebuffer", Level::Notice, what, Mend::Remove);
            }
            let (kept, left): (Vec<&str>, Vec<&str>) = names.split(',').partition(|name| kept_out(name).is_some());
            let (level, what) = kept.iter().filter_map(|name| kept_out(name)).max_by_key(|k| k.0)?;
            let mend = match left.is_empty() {
                true => Mend::Remove,
                false => Mend::Become(format!("{key}={}", left.join(","))),
            };
            fight("blacklist", level, what, mend)
        }
        ("intel_iommu" | "amd_iommu" | "iommu", "off") => {
            fight("iommu-off", Level::Fail, "turns the IOMMU off", Mend::Remove)
        }
        // amd_iommu_init.c, parse_amd_iommu_options: fullflush, force_enable, off, force_isolation, pgtbl_v1 and so on.
        ("amd_iommu", "on") => fight(
            "iommu-argument",
            Level::Notice,
            "is no argument of the kernel's: AMD's IOMMU is on unless it is off in the firmware",
            Mend::Remove,
        ),
        ("pcie_acs_override", _) => fight(
            "acs-override",
            Level::Warn,
            "makes groups that the hardware does not keep apart: a guest can reach what is beside its card",
            Mend::Told,
        ),
        ("vfio.enable_unsafe_noiommu_mode", "1" | "Y" | "y") => Some(noiommu()),
        ("video", "efifb:off" | "vesafb:off" | "simplefb:off") => fight(
            "firmware-framebuffer",
            Level::Notice,
            "has no effect on today's kernels, and is not needed: a handoff takes the firmware's framebuffer off",
            Mend::Remove,
        ),
        ("initcall_blacklist", "sysfb_init") => fight(
            "firmware-framebuffer",
            Level::Notice,
            "is not needed, and leaves the host without a console until its driver is loaded",
            Mend::Remove,
        ),
        ("nomodeset", _) => fight(
            "firmware-framebuffer",
            Level::Notice,
            "keeps display drivers from setting a mode: the host's console stays on the firmware's framebuffer",
            Mend::Remove,
        ),
        _ => None,
    }
}

/// The processor's maker, as /proc/cpuinfo has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpu {
    /// GenuineIntel.
    Intel,
    /// AuthenticAMD, HygonGenuine.
    Amd,
    /// Another one.
    Other,
}

impl Cpu {
    /// From the text of /proc/cpuinfo.
    pub fn of(cpuinfo: &str) -> Cpu {
        let vendor = cpuinfo
            .lines()
            .find_map(|l| l.strip_prefix("vendor_id")?.split_once(':'));
        match vendor.map(|(_, name)| name.trim()) {
            Some("GenuineIntel") => Cpu::Intel,
            Some("AuthenticAMD" | "HygonGenuine") => Cpu::Amd,
            _ => Cpu::Other,
        }
    }
}

/// The argument that this processor needs on the kernel's command line for its IOMMU, where none of `words` is it
/// already. Intel's is off by default in most kernels (CONFIG_INTEL_IOMMU_DEFAULT_ON; Proxmox's have it on from 6.8 on:
/// pve-docs, qm-pci-passthrough.adoc); AMD's needs none.
pub fn missing_argument<'w>(cpu: Cpu, words: impl IntoIterator<Item = &'w str>) -> Option<&'static str> {
    let is_said = |word: &str| {
        word.strip_prefix("intel_iommu=")
            .is_some_and(|v| v.split(',').any(|v| v == "on"))
    };
    (cpu == Cpu::Intel && !words.into_iter().any(is_said)).then_some("intel_iommu=on")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Ids<'static> = &[(0x10de, 0x2204), (0x10de, 0x1aef)];

    fn words(line: &str) -> Vec<&str> {
        line.split(' ').collect()
    }

    #[test]
    fn a_line_of_modprobe_fights_or_does_not() {
        for (line, expected) in [
            (
                "options vfio-pci ids=10de:2204",
                Some(("vfio-ids", Level::Fail, Mend::Remove)),
            ),
            (
                "options vfio_pci ids=1b21:2142,10de:2204,10DE:1AEF disable_vga=1",
                Some((
                    "vfio-ids",
                    Level::Fail,
                    Mend::Become("options vfio_pci disable_vga=1 ids=1b21:2142".to_owned()),
                )),
            ),
            ("options vfio-pci ids=1b21:2142", None),
            ("options vfio-pci ids=10de:1eb8", None),
            ("options vfio-pci disable_idle_d3=1", None),
            (
                "options vfio enable_unsafe_noiommu_mode=1",
                Some(("noiommu", Level::Fail, Mend::Remove)),
            ),
            ("options nvidia_drm modeset=1", None),
            ("blacklist nvidia", Some(("blacklist", Level::Fail, Mend::Remove))),
            ("blacklist nvidia-drm", Some(("blacklist", Level::Warn, Mend::Remove))),
            (
                "blacklist snd_hda_intel",
                Some(("blacklist", Level::Warn, Mend::Remove)),
            ),
            ("blacklist vfio-pci", Some(("blacklist", Level::Fail, Mend::Remove))),
            ("blacklist nouveau", None),
            (
                "install nvidia /bin/false",
                Some(("install-false", Level::Fail, Mend::Remove)),
            ),
            ("install nvidia modprobe -i nvidia-current $CMDLINE_OPTS", None),
            (
                "install nvidia-modeset modprobe nvidia ; modprobe -i nvidia-current-modeset",
                None,
            ),
            (
                "install vfio-pci /usr/local/bin/override.sh",
                Some(("install-false", Level::Warn, Mend::Told)),
            ),
            ("install nouveau /bin/false", None),
            (
                "softdep nvidia pre: vfio-pci",
                Some(("softdep", Level::Warn, Mend::Remove)),
            ),
            ("softdep nvidia post: nvidia-uvm", None),
            ("softdep nouveau pre: vfio-pci", None),
            (
                "alias pci:v000010DEd00002204sv*sd*bc*sc*i* vfio-pci",
                Some(("vfio-ids", Level::Fail, Mend::Remove)),
            ),
            ("alias char-major-195* nvidia", None),
        ] {
            let found = of_modprobe(&words(line), OURS).map(|f| (f.row, f.level, f.mend));
            assert_eq!(found, expected, "{line}");
        }
        // Where no card is there to compare with, every id of NVIDIA's counts.
        assert!(of_modprobe(&words("options vfio-pci ids=10de:1eb8"), &[]).is_some());
    }

    #[test]
    fn a_word_of_the_command_line_fights_or_does_not() {
        for (word, expected) in [
            ("vfio-pci.ids=10de:2204,10de:1aef", Some(("vfio-ids", Mend::Remove))),
            (
                "vfio_pci.ids=10de:2204,8086:1533",
                Some(("vfio-ids", Mend::Become("vfio_pci.ids=8086:1533".to_owned()))),
            ),
            ("vfio-pci.ids=8086:1533", None),
            (
                "modprobe.blacklist=nouveau,nvidia",
                Some(("blacklist", Mend::Become("modprobe.blacklist=nouveau".to_owned()))),
            ),
            (
                "module_blacklist=simplefb,simpledrm",
                Some(("firmware-framebuffer", Mend::Remove)),
            ),
            ("module_blacklist=nouveau", None),
            ("iommu=off", Some(("iommu-off", Mend::Remove))),
            ("iommu=pt", None),
            ("intel_iommu=on", None),
            ("amd_iommu=on", Some(("iommu-argument", Mend::Remove))),
            (
                "pcie_acs_override=downstream,multifunction",
                Some(("acs-override", Mend::Told)),
            ),
            ("vfio.enable_unsafe_noiommu_mode=1", Some(("noiommu", Mend::Remove))),
            ("video=efifb:off", Some(("firmware-framebuffer", Mend::Remove))),
            ("video=HDMI-A-1:1920x1080", None),
            ("quiet", None),
            ("", None),
        ] {
            let found = of_argument(word, OURS).map(|f| (f.row, f.mend));
            assert_eq!(found, expected, "{word}");
        }
    }

    #[test]
    fn intels_iommu_wants_an_argument_and_amds_none() {
        for (cpuinfo, words, expected) in [
            ("vendor_id\t: GenuineIntel\n", &["quiet"][..], Some("intel_iommu=on")),
            ("vendor_id\t: GenuineIntel\n", &["intel_iommu=on,sm_on"], None),
            ("vendor_id\t: AuthenticAMD\n", &["quiet"], None),
            ("", &[], None),
        ] {
            let missing = missing_argument(Cpu::of(cpuinfo), words.iter().copied());
            assert_eq!(missing, expected, "{cpuinfo} {words:?}");
        }
    }

    #[test]
    fn a_module_that_is_none_any_more_is_named() {
        assert!(of_module_list("vfio_virqfd").is_some());
        assert_eq!(of_module_list("vfio-pci"), None);
    }
}
