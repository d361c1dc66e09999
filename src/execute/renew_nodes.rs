//! Nodes of GPUs in a container that runs: those that its config gives it, held against the host's, and made anew where they are
//! another device's by now, or were not there at its start.
//!
//! Part of the worker's side. Not here: how a node comes into a container that runs ([`crate::execute::inside`]), and nodes that
//! somebody else has put there, which are only named ([`crate::host::container_nodes`]).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::sys::stat::{major, minor};

use crate::base::root::{Root, Said};
use crate::base::vmid::VmId;
use crate::execute::inside::{Fresh, INSIDE_ARG, Job, Outcome, Source};
use crate::execute::kernel::ActError;
use crate::execute::made_nodes;
use crate::execute::programs::failed;
use crate::execute::worker::WORKER_ARG;
use crate::host::container_nodes::{At, at, dev_answers, line_of, process_of};
use crate::host::nodes::character_majors;
use crate::proxmox::container_config::{GpuReference, parse};
use crate::proxmox::files::{container_path, container_texts};
use crate::proxmox::given_nodes::{GivenNode, How, given_nodes};

/// A number of a device: major and minor.
type Number = (u32, u32);

/// A container that runs.
struct Running<'a> {
    root: &'a Root,
    ctid: VmId,
    /// Its init, on the host.
    pid: u32,
    /// What its config says of devices that it may open.
    rules: Vec<GpuReference>,
}

/// Has the nodes in a container be those of the host. Of one that does not run, or is gone, there is nothing to do. `notes`: what
/// else is worth saying.
///
/// # Errors
/// Which of them are not, why, and what has them made anew.
pub(crate) fn renew(root: &Root, ctid: VmId, notes: &mut Vec<String>) -> Result<(), ActError> {
    let texts = match container_texts(root, ctid) {
        Ok(texts) => texts,
        Err(why) if why.source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(why) => return Err(ActError::Failed(format!("{}: {}", why.what, why.source))),
    };
    let given: Vec<GivenNode> = texts.iter().flat_map(|text| given_nodes(text)).collect();
    let wanted = those_of_host(root, given);
    if wanted.is_empty() {
        return Ok(());
    }
    let Some(pid) = init(root, ctid)? else { return Ok(()) };
    let container = Running {
        root,
        ctid,
        pid,
        rules: texts.iter().flat_map(|text| parse(text)).collect(),
    };
    let mut errors = Vec::new();
    let mut fresh = Vec::new();
    for (node, number) in &wanted {
        match container.prepare(node, *number, notes) {
            Ok(Some(one)) => fresh.push(one),
            Ok(None) => {}
            Err(why) => errors.push(format!("its /{}: {why}", node.inside)),
        }
    }
    if !fresh.is_empty() {
        errors.extend(container.put(fresh));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(ActError::Failed(format!(
        "{}. Hint: 'pct reboot {ctid}' has the container's nodes made anew",
        errors.join("; ")
    )))
}

/// Those that the host has, with their numbers. Of NVIDIA's only what its driver has now: a node may be left of a GPU that is away.
fn those_of_host(root: &Root, given: Vec<GivenNode>) -> Vec<(GivenNode, Number)> {
    let devices = root.text("/proc/devices").unwrap_or_default();
    let has_uvm = character_majors(&devices).any(|(_, name)| name == "nvidia-uvm");
    // Nothing is loaded for it.
    let may_ask = |path: &str| path.starts_with("/dev/nvidia") && (has_uvm || !path.starts_with("/dev/nvidia-uvm"));
    let paths = given.iter().map(|node| node.path.clone());
    let asked: Vec<String> = paths.filter(|path| may_ask(path)).collect();
    let missing = made_nodes::make(root, &asked, false);
    let number = |node: GivenNode| {
        let is_nvidia = node.path.starts_with("/dev/nvidia");
        if is_nvidia && (!asked.contains(&node.path) || missing.contains(&node.path)) {
            return None;
        }
        let found = std::fs::metadata(root.path(&node.path)).ok()?;
        let is_node = found.file_type().is_char_device();
        let number = (
            u32::try_from(major(found.rdev())).ok()?,
            u32::try_from(minor(found.rdev())).ok()?,
        );
        is_node.then_some((node, number))
    };
    given.into_iter().filter_map(number).collect()
}

/// The container's init, as its monitor has it, which is the host's (lxc-info(1)); None: it does not run.
fn init(root: &Root, ctid: VmId) -> Result<Option<u32>, ActError> {
    if process_of(root, ctid).is_none() {
        return Ok(None);
    }
    let id = ctid.to_string();
    let words = ["lxc-info", "-n", &id, "-p", "-H"];
    let said = run(root, &words)?;
    match said.stdout.trim().parse() {
        Ok(pid) => Ok(Some(pid)),
        // It has ended meanwhile.
        Err(_) if process_of(root, ctid).is_none() => Ok(None),
        Err(_) => Err(ActError::Failed(failed(&words, &said.stderr))),
    }
}

/// Runs a program that ends with the run; what it said.
fn run(root: &Root, words: &[&str]) -> Result<Said, ActError> {
    let said = root.program_for(words, Some(io::stdin().as_fd()));
    said.map_err(|e| ActError::Failed(format!("{} cannot be run: {e}", words[0])))
}

impl Running<'_> {
    /// What is to be put where a node of the container is not the host's, once the container may open that; None: it is.
    fn prepare(&self, node: &GivenNode, number: Number, notes: &mut Vec<String>) -> Result<Option<Fresh>, String> {
        let has = match self.look(&node.inside)? {
            At::Node(major, minor) if (major, minor) == number => return Ok(None),
            At::Node(major, minor) => Some((major, minor)),
            At::File | At::Nothing => None,
            At::Other => return Err("something else lies there".to_owned()),
        };
        let (major, minor) = number;
        let source = match node.how {
            How::Made {
                mode,
                uid,
                gid,
                deny_write,
            } => {
                let access = if deny_write { "r" } else { "rw" };
                self.allow(number, access)?;
                Source::Made {
                    major,
                    minor,
                    mode,
                    uid: self.on_host("uid_map", uid)?,
                    gid: self.on_host("gid_map", gid)?,
                }
            }
            How::Bound => {
                self.allow_bound(has, number, notes)?;
                Source::Bound {
                    path: node.path.clone(),
                }
            }
        };
        Ok(Some(Fresh {
            inside: node.inside.clone(),
            source,
        }))
    }

    /// What there is at a place in the container.
    fn look(&self, inside: &str) -> Result<At, String> {
        if !dev_answers(self.root, self.pid) {
            return Err("what the container has at /dev may never answer".to_owned());
        }
        let top = File::open(self.root.path(format!("/proc/{}/root", self.pid)));
        top.and_then(|top| at(&top, inside)).map_err(|e| e.to_string())
    }

    fn config_allows(&self, (major, minor): Number) -> bool {
        self.rules.iter().any(|rule| rule.allows(major, minor))
    }

    /// A node of the host's is opened by other lines of the config. One that names the number that the driver had is meant for
    /// the one that it has.
    fn allow_bound(&self, has: Option<Number>, is: Number, notes: &mut Vec<String>) -> Result<(), String> {
        if self.config_allows(is) {
            return Ok(());
        }
        let (path, (major, minor)) = (container_path(self.ctid), is);
        let Some(has) = has.filter(|has| self.config_allows(*has)) else {
            return Err(format!("no line of {path} lets the container open 'c {major}:{minor}'"));
        };
        self.allow(is, "rwm")?;
        if let Some(line) = line_of(self.root, self.ctid, has.0.into(), major.into()) {
            let note = format!(
                "line {line} of {path} allows 'c {}:*', and the driver came back with {major}. Hint: the container may open it \
                 until it ends; for its next start let the line say 'c {major}:*'",
                has.0
            );
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        Ok(())
    }

    /// Has the container open what has this number, as Proxmox does for a device that is added to one that runs. LXC replaces its
    /// device program by one that allows that, too (lxc, src/lxc/cgroups/cgfsng.c, cgfsng_set).
    fn allow(&self, (major, minor): Number, access: &str) -> Result<(), String> {
        let (id, rule) = (self.ctid.to_string(), format!("c {major}:{minor} {access}"));
        let words = ["lxc-cgroup", "-n", &id, "devices.allow", &rule];
        match run(self.root, &words) {
            Ok(said) if said.ok => Ok(()),
            Ok(said) => Err(failed(&words, &said.stderr)),
            Err(why) => Err(why.to_string()),
        }
    }

    /// Who has a number of the container's on the host (user_namespaces(7)).
    fn on_host(&self, map: &str, id: u32) -> Result<u32, String> {
        let text = self.root.text(format!("/proc/{}/{map}", self.pid)).unwrap_or_default();
        let range = |line: &str| {
            let numbers: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let [inside, outside, count] = numbers[..] else {
                return None;
            };
            let at = id.checked_sub(inside).filter(|at| *at < count)?;
            outside.checked_add(at)
        };
        let found = text.lines().find_map(range);
        found.ok_or_else(|| format!("the container has no number {id}"))
    }

    /// Puts them there; what is said of those that are not there then.
    fn put(&self, nodes: Vec<Fresh>) -> Vec<String> {
        let places: Vec<String> = nodes.iter().map(|fresh| fresh.inside.clone()).collect();
        let all = |why: String| vec![Err(why); places.len()];
        let job = Job {
            ctid: self.ctid,
            pid: self.pid,
            nodes,
        };
        let outcome = match serde_json::to_string(&job) {
            Ok(job) => match run(self.root, &["/proc/self/exe", WORKER_ARG, INSIDE_ARG, &job]) {
                Ok(said) => serde_json::from_str::<Outcome>(&said.stdout)
                    .unwrap_or_else(|_| all("the process that enters the container gave no answer".to_owned())),
                Err(why) => all(why.to_string()),
            },
            Err(why) => all(why.to_string()),
        };
        let said = |(place, result): (&String, Result<(), String>)| {
            let why = match result {
                Err(why) => why,
                Ok(()) => match self.look(place) {
                    Ok(At::Node(..)) => return None,
                    Ok(_) => "it is no node still".to_owned(),
                    Err(why) => why,
                },
            };
            Some(format!("its /{place}: {why}"))
        };
        places.iter().zip(outcome).filter_map(said).collect()
    }
}
