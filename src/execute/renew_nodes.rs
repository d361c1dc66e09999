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
    let anew = |errors: Vec<String>| {
        ActError::Failed(format!(
            "{}. Hint: 'pct reboot {ctid}' has the container's nodes made anew",
            errors.join("; ")
        ))
    };
    let Some(pid) = init(root, ctid).map_err(|why| anew(vec![why]))? else {
        return Ok(());
    };
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
    if errors.is_empty() { Ok(()) } else { Err(anew(errors)) }
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
fn init(root: &Root, ctid: VmId) -> Result<Option<u32>, String> {
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
        Err(_) if said.ok => Err("lxc-info tells no process of it".to_owned()),
        Err(_) => Err(failed(&words, &said.stderr)),
    }
}

/// Runs a program that ends with the run; what it said.
fn run(root: &Root, words: &[&str]) -> Result<Said, String> {
    let said = root.program_for(words, Some(io::stdin().as_fd()));
    said.map_err(|e| format!("{} cannot be run: {e}", words[0]))
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
            let why = format!("no line of {path} lets the container open 'c {major}:{minor}'");
            return Err(why);
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
        let said = run(self.root, &words)?;
        if said.ok {
            Ok(())
        } else {
            Err(failed(&words, &said.stderr))
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
        let job = serde_json::to_string(&job).map_err(|e| e.to_string());
        let said = job.and_then(|job| run(self.root, &["/proc/self/exe", WORKER_ARG, INSIDE_ARG, &job]));
        let no_answer = |_| "the process that enters the container gave no answer".to_owned();
        let outcome = said.and_then(|said| serde_json::from_str::<Outcome>(&said.stdout).map_err(no_answer));
        let outcome = outcome.unwrap_or_else(all);
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

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = "etc/pve/lxc/104.conf";
    const CARD: &str = "lxc.mount.entry: /dev/dri/card0 dev/dri/card0 none bind,optional,create=file\n";

    /// A host whose /dev/dri/card0 has the number of /dev/null, and a container that runs.
    fn host() -> (tempfile::TempDir, impl Fn(&str, &str)) {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().to_owned();
        let put = move |path: &str, text: &str| {
            let path = top.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("sys/fs/cgroup/lxc/104/ns/init.scope/cgroup.procs", "900\n");
        put("programs/lxc-info -n 104 -p -H", "900\n");
        put("proc/900/mountinfo", "1 0 0:5 / /dev rw - tmpfs none rw\n");
        put("proc/900/uid_map", "0 100000 65536\n");
        std::fs::create_dir_all(dir.path().join("dev/dri")).unwrap();
        std::fs::create_dir_all(dir.path().join("proc/900/root/dev/dri")).unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("dev/dri/card0")).unwrap();
        (dir, put)
    }

    fn said(dir: &tempfile::TempDir) -> String {
        let mut notes = Vec::new();
        let result = renew(&Root::at(dir.path()), "104".parse().unwrap(), &mut notes);
        assert_eq!(notes, [""; 0]);
        result.map_or_else(|e| e.to_string(), |()| "done".to_owned())
    }

    #[test]
    fn what_is_not_given_or_not_there_or_does_not_run_is_left_alone() {
        let (dir, put) = host();
        assert_eq!(said(&dir), "done"); // it has no config any more
        for text in [
            "arch: amd64\n",
            "dev0: /dev/dri/card7\n",
            "dev0: /dev/nvidia0\ndev1: /dev/nvidia-uvm\n",
        ] {
            put(CONF, text);
            assert_eq!(said(&dir), "done", "{text}");
        }
        put(CONF, CARD);
        std::fs::remove_dir_all(dir.path().join("sys")).unwrap();
        assert_eq!(said(&dir), "done");
    }

    #[test]
    fn a_node_that_has_the_hosts_number_is_left_alone() {
        let (dir, put) = host();
        let top = dir.path().join("proc/900/root");
        std::fs::remove_dir_all(&top).unwrap();
        std::os::unix::fs::symlink("/", &top).unwrap();
        put(CONF, "lxc.mount.entry: /dev/dri/card0 dev/null none bind\n");
        assert_eq!(said(&dir), "done");
    }

    #[test]
    fn what_cannot_be_renewed_is_said_with_what_helps() {
        let (dir, put) = host();
        let hint = "Hint: 'pct reboot 104' has the container's nodes made anew";
        put(CONF, CARD);
        let why = "its /dev/dri/card0: no line of /etc/pve/lxc/104.conf lets the container open 'c 1:3'";
        assert_eq!(said(&dir), format!("{why}. {hint}"));
        // It would be a node of the container's own, for somebody whom the container has not got.
        put(CONF, "dev0: /dev/dri/card0,uid=70000\n");
        put("programs/lxc-cgroup -n 104 devices.allow c 1:3 rw", "");
        assert_eq!(
            said(&dir),
            format!("its /dev/dri/card0: the container has no number 70000. {hint}")
        );
        put(
            "programs/failed/lxc-cgroup -n 104 devices.allow c 1:3 rw",
            "no\u{1b}thing\n",
        );
        let why = "lxc-cgroup -n 104 devices.allow c 1:3 rw failed: no\\u{1b}thing";
        assert_eq!(said(&dir), format!("its /dev/dri/card0: {why}. {hint}"));
        put(CONF, &format!("lxc.cgroup2.devices.allow: c 1:* rwm\n{CARD}"));
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("proc/900/root/dev/dri/card0")).unwrap();
        assert_eq!(
            said(&dir),
            format!("its /dev/dri/card0: something else lies there. {hint}")
        );
        put("proc/900/mountinfo", "1 0 0:5 / /dev rw - fuse.x x rw\n");
        let why = "its /dev/dri/card0: what the container has at /dev may never answer";
        assert_eq!(said(&dir), format!("{why}. {hint}"));
        put("programs/lxc-info -n 104 -p -H", "\n");
        assert_eq!(said(&dir), format!("lxc-info tells no process of it. {hint}"));
    }

    #[test]
    fn who_owns_a_node_is_told_by_the_containers_own_numbers() {
        let (dir, put) = host();
        put(
            "proc/900/uid_map",
            "         0     100000       1000\n      1000       1000          1\n      1001     101001      64535\n",
        );
        let root = Root::at(dir.path());
        let container = Running {
            root: &root,
            ctid: "104".parse().unwrap(),
            pid: 900,
            rules: Vec::new(),
        };
        for (id, expected) in [
            (0, Some(100_000)),
            (999, Some(100_999)),
            (1000, Some(1000)),
            (1001, Some(101_001)),
            (65_536, None),
        ] {
            assert_eq!(container.on_host("uid_map", id).ok(), expected, "{id}");
        }
    }
}
