//! Nodes of GPUs in a container that runs: those that its config gives it, held against the host's, and made anew where they are
//! another device's by now, or were not there at its start.
//!
//! Part of the worker's side. Not here: how a node comes into a container that runs ([`crate::execute::inside`]), and nodes that
//! somebody else has put there, which are only named ([`crate::host::container_nodes`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::sys::stat::{major, minor};

use crate::base::json;
use crate::base::root::{Root, Said};
use crate::base::sets::IntoSet as _;
use crate::base::vmid::VmId;
use crate::execute::inside::{Fresh, INSIDE_ARG, Job, Outcome, Source};
use crate::execute::kernel::ActError;
use crate::execute::made_nodes;
use crate::execute::programs::failed;
use crate::execute::stale_nodes::line_of;
use crate::execute::worker::WORKER_ARG;
use crate::host::container_nodes::{At, Inside, runs};
use crate::host::nvidia::character_majors;
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
    /// The driver's majors before it was away.
    had: &'a BTreeMap<String, u32>,
}

/// Has the nodes in a container be those of the host. Of one that does not run, or is gone, there is nothing to do. `had`: the
/// driver's majors before it was away. `notes`: what else is worth saying.
///
/// # Errors
/// Which of them are not, why, and what has them made anew.
pub(crate) fn renew(
    root: &Root,
    ctid: VmId,
    had: &BTreeMap<String, u32>,
    notes: &mut Vec<String>,
) -> Result<(), ActError> {
    let texts = match container_texts(root, ctid) {
        Ok(texts) => texts,
        Err(why) if why.source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(why) => return Err(ActError::Failed(format!("{}: {}", why.what, why.source))),
    };
    let given: Vec<GivenNode> = texts.iter().flat_map(|(_, text)| given_nodes(text)).collect();
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
        rules: texts.iter().flat_map(|(_, text)| parse(text)).collect(),
        had,
    };
    let mut errors = Vec::new();
    let mut fresh = Vec::new();
    for (node, is) in &wanted {
        match container.prepare(node, *is, notes) {
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

/// Those that the host has, as they are there. Of NVIDIA's only what its driver has now: a node may be left of a GPU that is away.
fn those_of_host(root: &Root, given: Vec<GivenNode>) -> Vec<(GivenNode, At)> {
    let devices = root.text("/proc/devices").unwrap_or_default();
    let has_uvm = character_majors(&devices).any(|(_, name)| name == "nvidia-uvm");
    // Nothing is loaded for it.
    let may_ask = |path: &str| path.starts_with("/dev/nvidia") && (has_uvm || !path.starts_with("/dev/nvidia-uvm"));
    let paths = given.iter().map(|node| node.path.clone());
    let asked: Vec<String> = paths.filter(|path| may_ask(path)).collect();
    let missing = made_nodes::make(root, &asked, false);
    let on_host = |node: GivenNode| {
        let is_nvidia = node.path.starts_with("/dev/nvidia");
        if is_nvidia && (!asked.contains(&node.path) || missing.contains(&node.path)) {
            return None;
        }
        let found = std::fs::metadata(root.path(&node.path)).ok()?;
        let of = |number: u64| Some((u32::try_from(major(number)).ok()?, u32::try_from(minor(number)).ok()?));
        let is = match node.how {
            How::Folder { .. } if found.is_dir() => {
                let (major, minor) = of(found.dev())?;
                At::Folder(major, minor, found.ino())
            }
            How::Made { .. } | How::Bound { .. } if found.file_type().is_char_device() => {
                let (major, minor) = of(found.rdev())?;
                At::Node(major, minor)
            }
            _ => return None,
        };
        Some((node, is))
    };
    given.into_iter().filter_map(on_host).collect()
}

/// The container's init, as its monitor has it, which is the host's (lxc-info(1)); None: it does not run.
fn init(root: &Root, ctid: VmId) -> Result<Option<u32>, String> {
    if !runs(root, ctid) {
        return Ok(None);
    }
    let id = ctid.to_string();
    let words = ["lxc-info", "-n", &id, "-p", "-H"];
    let said = run(root, &words)?;
    match said.stdout.trim().parse() {
        Ok(pid) => Ok(Some(pid)),
        // It has ended meanwhile.
        Err(_) if !runs(root, ctid) => Ok(None),
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
    fn prepare(&self, node: &GivenNode, is: At, notes: &mut Vec<String>) -> Result<Option<Fresh>, String> {
        let bound = |read_only, is_folder| Source::Bound {
            path: node.path.clone(),
            read_only,
            is_folder,
        };
        let source = match (self.look(&node.inside)?, is, node.how) {
            (has, is, _) if has == is => return Ok(None),
            // Which of what is in it may be opened its lines say.
            (At::Folder(..) | At::Nothing, At::Folder(..), How::Folder { read_only }) => bound(read_only, true),
            (At::Node(..) | At::File | At::Nothing, At::Node(major, minor), how) => {
                self.node((major, minor), how, bound, &node.path, notes)?
            }
            _ => return Err("something else lies there".to_owned()),
        };
        Ok(Some(Fresh {
            inside: node.inside.clone(),
            source,
        }))
    }

    /// A node of this number, which the container may open then.
    fn node(
        &self,
        number: Number,
        how: How,
        bound: impl Fn(bool, bool) -> Source,
        path: &str,
        notes: &mut Vec<String>,
    ) -> Result<Source, String> {
        let (major, minor) = number;
        Ok(match how {
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
            How::Bound { read_only } | How::Folder { read_only } => {
                self.allow_bound(path, number, notes)?;
                bound(read_only, false)
            }
        })
    }

    /// What there is at a place in the container.
    fn look(&self, inside: &str) -> Result<At, String> {
        let found = Inside::of(self.root, self.pid).and_then(|all| all.at(inside));
        found.map_err(|e| e.to_string())
    }

    /// What the config lets the container do with what has this number, rule by rule.
    fn letters_for(&self, (major, minor): Number) -> BTreeSet<&str> {
        let of = |rule| GpuReference::letters_for(rule, major, minor);
        self.rules.iter().filter_map(of).into_set()
    }

    /// A node of the host's is opened by other lines of the config. One that names the number that the driver had is meant for
    /// the one that it has, and for no more than it says. That number is the host's word: what lies in the container its root has
    /// put there.
    fn allow_bound(&self, node: &str, is: Number, notes: &mut Vec<String>) -> Result<(), String> {
        if !self.letters_for(is).is_empty() {
            return Ok(());
        }
        let (path, (major, minor)) = (container_path(self.ctid), is);
        let is_its = |name: &str| {
            node.strip_prefix("/dev/")
                .and_then(|node| node.strip_prefix(name))
                .is_some_and(|rest| rest.is_empty() || rest == "-tools" || rest.starts_with('/'))
        };
        let had = self
            .had
            .iter()
            .find(|(name, _)| is_its(name.as_str()))
            .map(|(_, major)| *major);
        let letters = had.map_or_else(BTreeSet::new, |had| self.letters_for((had, minor)));
        let Some(had) = had.filter(|_| !letters.is_empty()) else {
            let why = format!("no line of {path} lets the container open 'c {major}:{minor}'");
            return Err(why);
        };
        for letters in letters {
            self.allow(is, letters)?;
        }
        if let Some((path, line)) = line_of(self.root, self.ctid, had, major) {
            let note = format!(
                "line {line} of {path} allows 'c {had}:*', and the driver came back with {major}. Hint: the container may open it \
                 until it ends; for its next start let the line say 'c {major}:*'"
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
        let outcome = said.and_then(|said| json::from_slice::<Outcome>(said.stdout.as_bytes()).map_err(no_answer));
        let outcome = outcome.unwrap_or_else(all);
        let said = |(place, result): (&String, Result<(), String>)| {
            let why = match result {
                Err(why) => why,
                Ok(()) => match self.look(place) {
                    Ok(At::Node(..) | At::Folder(..)) => return None,
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
    use crate::host::container_nodes::mounts_of_kind;

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
        put("proc/900/mountinfo", &mounts_of_kind("tmpfs"));
        put("proc/900/uid_map", "0 100000 65536\n");
        std::fs::create_dir_all(dir.path().join("dev/dri")).unwrap();
        std::fs::create_dir_all(dir.path().join("proc/900/root/dev/dri")).unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("dev/dri/card0")).unwrap();
        (dir, put)
    }

    fn said(dir: &tempfile::TempDir) -> String {
        let mut notes = Vec::new();
        let had = [("nvidia-uvm".to_owned(), 511)].into();
        let result = renew(&Root::at(dir.path()), "104".parse().unwrap(), &had, &mut notes);
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
        put("proc/900/mountinfo", &mounts_of_kind("fuse.x"));
        let why = "its /dev/dri/card0: what the container has there may never answer";
        assert_eq!(said(&dir), format!("{why}. {hint}"));
        put("programs/lxc-info -n 104 -p -H", "\n");
        assert_eq!(said(&dir), format!("lxc-info tells no process of it. {hint}"));
    }

    /// A node that may be opened, laid in the place of one that may not.
    #[test]
    fn what_lies_in_the_container_lets_it_open_nothing() {
        let (dir, put) = host();
        let top = dir.path().join("proc/900/root");
        std::fs::remove_dir_all(&top).unwrap();
        std::os::unix::fs::symlink("/", &top).unwrap();
        put("programs/lxc-cgroup -n 104 devices.allow c 1:3 rwm", "");
        for rule in ["c 1:5 rwm", "c *:* m"] {
            put(
                CONF,
                &format!(
                    "lxc.cgroup2.devices.allow: {rule}\nlxc.mount.entry: /dev/dri/card0 dev/zero none bind,create=file\n"
                ),
            );
            let said = said(&dir);
            let why = "its /dev/zero: no line of /etc/pve/lxc/104.conf lets the container open 'c 1:3'. Hint: ";
            assert!(said.starts_with(why), "{rule}: {said}");
        }
    }

    #[test]
    fn by_a_line_for_the_number_that_the_driver_had_it_may_do_what_that_line_says() {
        let (dir, put) = host();
        put("proc/devices", "Character devices:\n  1 nvidia-uvm\n");
        put(
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05\n",
        );
        std::fs::create_dir_all(dir.path().join("sys/module/nvidia_uvm")).unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("dev/nvidia-uvm")).unwrap();
        for (rule, letters) in [("c 511:* r", "r"), ("c 511:3 wm", "wm"), ("c *:3 rw", "")] {
            put(
                CONF,
                &format!("lxc.cgroup2.devices.allow: {rule}\nlxc.mount.entry: /dev/nvidia-uvm dev/x none bind\n"),
            );
            let words = format!("lxc-cgroup -n 104 devices.allow c 1:3 {letters}");
            put(&format!("programs/failed/{words}"), "it is asked\n");
            let said = said(&dir);
            match letters {
                "" => assert!(!said.contains("it is asked"), "{said}"),
                _ => assert!(
                    said.starts_with(&format!("its /dev/x: {words} failed: it is asked")),
                    "{said}"
                ),
            }
        }
        put(
            CONF,
            "lxc.cgroup2.devices.allow: c 510:* rwm\nlxc.mount.entry: /dev/nvidia-uvm dev/x none bind\n",
        );
        assert!(said(&dir).starts_with("its /dev/x: no line of"));
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
            had: &BTreeMap::new(),
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
