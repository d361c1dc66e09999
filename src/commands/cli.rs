//! The command line: arguments to a [`Request`].
//!
//! The hookscript form `VMID PHASE` is told by its shape before clap sees anything: it is fixed by Proxmox
//! (pve-guest-common, GuestHelpers.pm, exec_hookscript), and a phase of a future version must not be a usage
//! error.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::base::clock::Since;
use crate::base::pci::PciAddr;
use crate::base::vmid::VmId;

/// What is asked of us.
#[derive(Debug)]
pub enum Request {
    /// A phase of a VM, called by Proxmox or by a person who tries it.
    Hook {
        /// The VM.
        vmid: VmId,
        /// The phase.
        phase: Phase,
    },
    /// A command.
    Command(Cli),
}

/// The phases of qemu-server 8 and 9 (QemuServer.pm, exec_hookscript call sites).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before QEMU is started; a failure aborts the start.
    PreStart,
    /// After QEMU was started.
    PostStart,
    /// Before a stop through the API.
    PreStop,
    /// After QEMU has ended, in most cases.
    PostStop,
    /// A phase we do not know.
    Other(String),
}

impl Phase {
    fn from_name(name: &str) -> Self {
        match name {
            "pre-start" => Phase::PreStart,
            "post-start" => Phase::PostStart,
            "pre-stop" => Phase::PreStop,
            "post-stop" => Phase::PostStop,
            other => Phase::Other(other.to_owned()),
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Phase::PreStart => "pre-start",
            Phase::PostStart => "post-start",
            Phase::PreStop => "pre-stop",
            Phase::PostStop => "post-stop",
            Phase::Other(name) => name,
        })
    }
}

/// Lends the host's NVIDIA GPU to a Proxmox VE guest and brings it home, without a reboot.
#[derive(Debug, Parser)]
#[command(
    name = "gpu-handoff",
    version,
    arg_required_else_help = true,
    after_help = "As a hookscript Proxmox calls it with VMID and PHASE:\n  \
                  gpu-handoff attach 111           gives VM 111 the hook\n  \
                  gpu-handoff 111 pre-start        the same by hand, to try it\n\n\
                  Exit status: 0 done or nothing to do, 1 failed and the host is as it was,\n\
                  2 usage, 3 refused and nothing changed (check: something is a FAIL),\n\
                  4 failed and not restored, 5 a deadline passed while waiting and\n\
                  nothing changed."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Show what would be done and why, touch nothing
    #[arg(short = 'n', long, global = true, alias = "dryrun")]
    pub dry_run: bool,
    /// Print JSON instead of text, where anything is printed
    #[arg(long, global = true)]
    pub json: bool,
    /// Only warnings and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say why things are decided
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Hand the GPU to vfio-pci, by hand
    #[command(name = "to_vfio", alias = "to-vfio")]
    ToVfio(Target),
    /// Bring the GPU home to the host's driver, by hand
    #[command(name = "to_nvidia", alias = "to-nvidia")]
    ToNvidia(Target),
    /// The same two, in other words: handoff vfio, handoff nvidia
    Handoff {
        /// Where to
        to: Side,
        /// Which GPUs.
        #[command(flatten)]
        target: Target,
    },
    /// What pre-start would do for a VM, and why
    Plan(Target),
    /// Every GPU: drivers, group, who has it, who uses it
    Status(Status),
    /// Who uses a GPU, and what a handoff would do to each
    Holders(Target),
    /// Bring every stranded GPU home, or say why not
    Recover(Recover),
    /// Make the host ready for handoffs: shows what would be changed; --apply does it
    Prepare(Prepare),
    /// Give a VM or container the hook, and a GPU: shows the command, and asks
    Attach(Attach),
    /// Take the hook away from a VM or container: shows the command, and asks
    Detach(Detach),
    /// Past handoffs with the time each took; -v shows the time of each step
    History(History),
    /// Whether this host is ready: what is in the way of handoffs, and what mends it
    Check(Check),
    /// One archive for a bug report: this host as the program sees it, secrets left out
    Report(Report),
    /// Wait until nobody needs a VM's GPU any more: gpu-handoff-watch@.service
    #[command(hide = true)]
    Watch {
        /// The VM.
        vmid: VmId,
    },
    /// Say what people and monitoring have to hear of: gpu-handoff-tell@.service
    #[command(hide = true)]
    Tell {
        /// Who asks, as the unit's name has it.
        asked_by: String,
    },
}

impl Cli {
    /// The VM that a unit of ours calls the command for, and what it is called there.
    pub fn for_vm(&self) -> Option<(VmId, &'static str)> {
        match &self.command {
            Command::Watch { vmid } => Some((*vmid, "watch")),
            Command::Recover(Recover { vm: Some(vmid), .. }) => Some((*vmid, "home")),
            _ => None,
        }
    }
}

/// Which GPUs `status` shows, and how. Without any: all of them.
#[derive(Clone, Debug, Default, Args)]
pub struct Status {
    /// Which GPUs.
    #[command(flatten)]
    pub target: Target,
    /// Show it again whenever something changes, until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
    /// Their IOMMU groups: who is in each, and what joins or splits them
    #[arg(long)]
    pub groups: bool,
    /// Each function with its driver, as the shell script said it
    #[arg(long, conflicts_with_all = ["groups", "json"])]
    pub plain: bool,
}

/// Which handoffs `history` shows.
#[derive(Clone, Debug, Default, Args)]
pub struct History {
    /// Only those of this VM
    #[arg(long, value_name = "VMID")]
    pub vm: Option<VmId>,
    /// Only those since then: 2026-11-21, "2026-11-21 08:00" (UTC), or 90m, 12h, 7d ago
    #[arg(long, value_name = "TIME", value_parser = Since::parse)]
    pub since: Option<Since>,
}

/// What `recover` may do besides.
#[derive(Clone, Debug, Default, Args)]
pub struct Recover {
    /// GPUs that were taken by hand as well
    #[arg(long)]
    pub all: bool,
    /// Only what this VM has taken
    #[arg(long, value_name = "VMID", conflicts_with = "all")]
    pub vm: Option<VmId>,
    /// Forget that a call on this function is stuck: only after the hardware was dealt with
    #[arg(long, value_name = "BDF")]
    pub clear_wedged: Option<PciAddr>,
}

/// Whether `prepare` does what it shows.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Prepare {
    /// Make the changes; each file is kept as it was
    #[arg(long, conflicts_with = "revert")]
    pub apply: bool,
    /// Take back what --apply has changed, and nothing else
    #[arg(long)]
    pub revert: bool,
}

/// What `attach` sets.
#[derive(Clone, Debug, Args)]
pub struct Attach {
    /// The VM or container
    #[arg(value_name = "VMID")]
    pub id: VmId,
    /// Give it this GPU, too, as a whole card: address, index in bus order, or UUID; may be repeated
    #[arg(long, value_name = "GPU")]
    pub gpu: Vec<String>,
    /// The first of them is the VM's primary display (x-vga=1)
    #[arg(long, requires = "gpu")]
    pub primary_gpu: bool,
    /// By a resource mapping of exactly that card; where the cluster has more nodes and a mapping, that is so anyway
    #[arg(long, requires = "gpu")]
    pub mapping: bool,
    /// Have what uses the GPU now stopped while the VM runs, and started again: /etc/gpu-handoff/conf.d/VMID.toml
    #[arg(long)]
    pub accept_policies: bool,
    /// Ask nothing
    #[arg(short, long)]
    pub yes: bool,
}

/// What `detach` takes away.
#[derive(Clone, Debug, Args)]
pub struct Detach {
    /// The VM or container
    #[arg(value_name = "VMID", required_unless_present = "all")]
    pub id: Option<VmId>,
    /// Every VM and container of this node that has the hook, and what attach has written for those that have it no more
    #[arg(long, conflicts_with = "id")]
    pub all: bool,
    /// The lines that attach has set for this GPU, too, or for "all"; others are named, and stay; may be repeated
    #[arg(long, value_name = "GPU")]
    pub gpu: Vec<String>,
    /// Ask nothing
    #[arg(short, long)]
    pub yes: bool,
}

/// What `check` looks at.
#[derive(Clone, Debug, Default, Args)]
pub struct Check {
    /// Of all VMs only this one
    #[arg(long, value_name = "VMID")]
    pub vm: Option<VmId>,
    /// Of all containers only this one
    #[arg(long, value_name = "CTID")]
    pub ct: Option<VmId>,
    /// What takes seconds, too: the initramfs, DKMS
    #[arg(long)]
    pub full: bool,
    /// List the checks
    #[arg(long)]
    pub list: bool,
    /// Leave these checks out, by their names
    #[arg(long, value_name = "ID", num_args = 1.., value_delimiter = ',')]
    pub skip: Vec<String>,
}

/// Where a report goes, or what is asked of one.
#[derive(Clone, Debug, Default, Args)]
pub struct Report {
    /// Write it there, not to gpu-handoff-report-DATE-TIME.tar.gz here; nothing is overwritten
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Only list what would be in it
    #[arg(long, conflicts_with = "output")]
    pub list: bool,
    /// Run check and plan on the host of this report
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "list"])]
    pub replay: Option<PathBuf>,
    /// Of all its VMs only this one
    #[arg(long, value_name = "VMID", requires = "replay")]
    pub vm: Option<VmId>,
    /// Only this of the two
    #[arg(value_name = "check|plan", requires = "replay")]
    pub only: Option<Replayed>,
}

/// What can be asked of the host of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Replayed {
    /// What check says.
    Check,
    /// What plan says.
    Plan,
}

/// The two sides of a handoff.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Side {
    /// To the guest's side.
    Vfio,
    /// To the host's driver.
    Nvidia,
}

/// Which GPUs. Without any: the only one there is, and on the way home the only one that is lent.
#[derive(Clone, Debug, Default, Args)]
pub struct Target {
    /// The GPUs of this VM's hostpci lines
    #[arg(long, value_name = "VMID", conflicts_with = "gpu")]
    pub vm: Option<VmId>,
    /// One GPU: address (0000:01:00.0, 01:00), index in bus order, or UUID while it is home
    #[arg(long, value_name = "GPU")]
    pub gpu: Option<String>,
}

/// Reads the arguments, the program's name not among them.
///
/// # Errors
/// A sentence for a wrong hookscript form, or clap's own error (help and version are among those).
pub fn parse(args: &[OsString]) -> Result<Request, ParseError> {
    let text: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let phase = text.get(1).map(|name| Phase::from_name(name));
    let is_number = |t: &String| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    let is_phase = phase.as_ref().is_some_and(|p| !matches!(p, Phase::Other(_)));
    let hook_form = text.first().is_some_and(is_number) || (is_phase && text.len() == 2);
    if !hook_form {
        let args = std::iter::once(OsString::from("gpu-handoff")).chain(args.iter().cloned());
        return Ok(Request::Command(Cli::try_parse_from(args).map_err(ParseError::Clap)?));
    }
    let Some(phase) = phase.filter(|p| *p != Phase::Other(String::new())) else {
        return Err(ParseError::Sentence(format!(
            "a hookscript call is VMID and PHASE, and after {} there is no phase. Hint: gpu-handoff {} pre-start",
            text[0], text[0]
        )));
    };
    if text.len() > 2 {
        return Err(ParseError::Sentence(format!(
            "a hookscript call is VMID and PHASE, and there is more: '{}'. Hint: gpu-handoff {} {phase}",
            crate::base::text::foreign(&text[2]),
            text[0]
        )));
    }
    let vmid = text[0].parse().map_err(|_| {
        ParseError::Sentence(format!(
            "'{}' is not a VM id. Hint: VM ids are numbers from {} to {}; 'qm list' shows them",
            crate::base::text::foreign(&text[0]),
            VmId::MIN,
            VmId::MAX
        ))
    })?;
    Ok(Request::Hook { vmid, phase })
}

/// Why the arguments are no request.
#[derive(Debug)]
pub enum ParseError {
    /// One of our sentences.
    Sentence(String),
    /// clap's own text, help and version included.
    Clap(clap::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    use clap::CommandFactory;
    fn parse(words: &str) -> Result<Request, ParseError> {
        let args: Vec<OsString> = words.split(' ').map(OsString::from).collect();
        super::parse(&args)
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_hook_form_is_told_by_its_shape() {
        for (words, expected) in [
            ("111 pre-start", Phase::PreStart),
            ("111 post-start", Phase::PostStart),
            ("100 pre-stop", Phase::PreStop),
            ("999999999 post-stop", Phase::PostStop),
            ("111 some-future-phase", Phase::Other("some-future-phase".into())),
        ] {
            match parse(words) {
                Ok(Request::Hook { phase, .. }) => assert_eq!(phase, expected, "{words}"),
                other => panic!("{words}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_wrong_hook_form_is_a_sentence() {
        for words in [
            "111",
            "99 pre-start",
            "0111 pre-start",
            "1000000000 pre-start",
            "abc pre-start",
            "111 pre-start more",
            "99999999999999999999 post-stop",
        ] {
            match parse(words) {
                Err(ParseError::Sentence(text)) => assert!(text.contains("Hint: "), "{words}: {text}"),
                other => panic!("{words}: {other:?}"),
            }
        }
    }

    #[test]
    fn both_spellings_of_the_commands_are_known() {
        for words in [
            "to_vfio",
            "to-vfio --gpu 0",
            "to_nvidia --vm 111",
            "to-nvidia -n",
            "handoff vfio",
            "handoff nvidia",
            "status --json",
            "plan --vm 111",
            "holders",
            "holders --gpu 0 --json",
            "prepare",
            "prepare --apply",
            "prepare --revert -n",
            "report",
            "report --output x.tar.gz",
            "report --replay x.tar.gz --vm 111 plan",
            "attach 111",
            "attach 111 --gpu 0 --gpu 02:00 --primary-gpu --mapping -y",
            "detach 104 -n",
            "detach --all --gpu all --yes",
        ] {
            assert!(matches!(parse(words), Ok(Request::Command(_))), "{words}");
        }
        assert!(parse("to_vfio --gpu 0 --vm 111").is_err());
        assert!(parse("handoff nowhere").is_err());
        for words in [
            "prepare --apply --revert",
            "report --vm 111",
            "report plan",
            "attach",
            "attach 99",
            "attach 111 --mapping",
            "detach",
            "detach 111 --all",
        ] {
            assert!(parse(words).is_err(), "{words}");
        }
    }
}
