//! Which containers run, and what there is at a place in one: looked at so that nothing is followed that leads out of it, and
//! nobody in it can hold up who looks.
//!
//! What a container has in its /dev it was given at its start (pve-container, PVE/LXC.pm, vm_start), and it says there what it
//! likes. Not here: which nodes are to be there (`src/execute/renew_nodes.rs`), and what is said of those that are not right
//! ([`crate::execute::stale_nodes`]).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags, openat, openat2, statx};
use rustix::io::Errno;

use crate::base::root::Root;
use crate::base::sets::IntoSet as _;
use crate::base::vmid::VmId;

/// The containers that run.
pub(crate) fn running(root: &Root) -> Vec<VmId> {
    let names = root.names("/sys/fs/cgroup/lxc").unwrap_or_default();
    let ctids = names.into_iter().filter_map(|name| name.parse::<VmId>().ok());
    ctids.filter(|ctid| runs(root, *ctid)).collect()
}

/// Whether a container runs: there is a process in its cgroup or in one below (cgroups(7), cgroup.events), of which its init makes
/// what it likes.
pub(crate) fn runs(root: &Root, ctid: VmId) -> bool {
    first_of(root, ctid).is_some() || is_populated(root, ctid)
}

/// A process of a container that runs: its first one.
pub(crate) fn process_of(root: &Root, ctid: VmId) -> Option<u32> {
    let by_lxc = || {
        let said = root.program(&["lxc-info", "-n", &ctid.to_string(), "-p", "-H"]);
        said.ok()?.stdout.trim().parse().ok()
    };
    first_of(root, ctid).or_else(|| is_populated(root, ctid).then(by_lxc)?)
}

/// The same where systemd has it in a group of its own, or no group was made.
fn first_of(root: &Root, ctid: VmId) -> Option<u32> {
    let groups = ["ns/init.scope", "ns", "."];
    groups.iter().find_map(|group| {
        let procs = root.line(format!("/sys/fs/cgroup/lxc/{ctid}/{group}/cgroup.procs"))?;
        procs.parse().ok()
    })
}

fn is_populated(root: &Root, ctid: VmId) -> bool {
    let events = root.text(format!("/sys/fs/cgroup/lxc/{ctid}/cgroup.events"));
    events.is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}

/// File systems that answer by themselves: a container may have another one anywhere, whose server need not.
const PROMPT: [&str; 8] = ["tmpfs", "devtmpfs", "ext4", "xfs", "btrfs", "zfs", "ext3", "overlay"];

/// What a process has below its root.
#[derive(Debug)]
pub(crate) struct Inside {
    /// The kind of each file system that it has mounted, by the mount's number; None: in a tree of files, which all answer.
    kinds: Option<BTreeMap<u64, String>>,
    top: OwnedFd,
}

/// Of a folder that somebody else's server, or nobody, may have to answer for.
const MAY_NOT_ANSWER: &str = "what the container has there may never answer";

impl Inside {
    /// Of a process; its root is opened without its file system being asked.
    ///
    /// # Errors
    /// Where it has ended.
    pub(crate) fn of(root: &Root, pid: u32) -> io::Result<Inside> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = root.path(format!("/proc/{pid}/root"));
        let kinds = match root.text(format!("/proc/{pid}/mountinfo")) {
            Err(e) if !root.is_real() && e.kind() == io::ErrorKind::NotFound => None,
            mountinfo => Some(kinds(&mountinfo?)),
        };
        Ok(Inside {
            kinds,
            top: openat(CWD, path, flags, Mode::empty())?,
        })
    }

    /// What there is at a place.
    ///
    /// # Errors
    /// Where it cannot be looked at, or may not answer.
    pub(crate) fn at(&self, path: &str) -> io::Result<At> {
        At::of(self.open(path))
    }

    /// What has a name in a folder that was opened so.
    ///
    /// # Errors
    /// As [`Inside::at`].
    pub(crate) fn look_in(&self, folder: impl AsFd, name: &str) -> io::Result<At> {
        At::of(self.open_in(folder, name))
    }

    /// A place, to be looked at; nothing that it leads to.
    ///
    /// Each folder on the way is on a mount of a kind that answers before anything is looked for in it. Which mount that is the
    /// kernel says of the folder itself (statx(2), STX_MNT_ID), since neither the order of mountinfo nor its paths do: a mount
    /// that is moved keeps its place there, and may be moved while we look.
    ///
    /// # Errors
    /// Where there is none, or it may not answer.
    pub(crate) fn open(&self, path: &str) -> io::Result<OwnedFd> {
        let mut place = self.top.try_clone()?;
        for name in path.split('/') {
            place = self.open_in(&place, name)?;
        }
        Ok(place)
    }

    /// A folder, to be read.
    ///
    /// # Errors
    /// As [`Inside::open`].
    pub(crate) fn folder(&self, path: &str) -> io::Result<OwnedFd> {
        let folder = self.open(path)?;
        if !self.answers(&folder) {
            return Err(io::Error::other(MAY_NOT_ANSWER));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(openat(folder, ".", flags, Mode::empty())?)
    }

    /// What has a name in a folder that was opened so.
    ///
    /// # Errors
    /// Where there is nothing, it may not answer, or it is no folder.
    pub(crate) fn open_in(&self, folder: impl AsFd, name: &str) -> io::Result<OwnedFd> {
        if !self.answers(&folder) {
            return Err(io::Error::other(MAY_NOT_ANSWER));
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(folder, name, flags, Mode::empty(), within)?)
    }

    /// Whether what is looked for in a folder is answered at once.
    fn answers(&self, folder: impl AsFd) -> bool {
        let Some(kinds) = &self.kinds else { return true };
        // Nothing is asked of a server for that (linux, fs/fuse/dir.c, fuse_update_get_attr).
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let found = statx(folder, "", flags, StatxFlags::MNT_ID).ok();
        let mount = found.filter(|found| found.stx_mask & StatxFlags::MNT_ID.bits() != 0);
        let kind = mount.and_then(|found| kinds.get(&found.stx_mnt_id));
        kind.is_some_and(|kind| PROMPT.contains(&kind.as_str()))
    }

    /// The same mounts from another root: of who has entered the mount namespace.
    pub(crate) fn below(self, top: OwnedFd) -> Inside {
        Inside { top, ..self }
    }
}

/// The kind of each file system, from /proc/PID/mountinfo (proc_pid_mountinfo(5)).
fn kinds(mountinfo: &str) -> BTreeMap<u64, String> {
    let kind = |line: &str| {
        let number = line.split(' ').next()?.parse().ok()?;
        let kind = line.split_once(" - ")?.1.split(' ').next()?;
        Some((number, kind.to_owned()))
    };
    mountinfo.lines().filter_map(kind).into_map()
}

/// What there is at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// A character device: its major and minor number.
    Node(u32, u32),
    /// A regular file: what a node can be bound onto, too.
    File,
    /// A folder: which one, by its device and its number there.
    Folder(u32, u32, u64),
    /// Nothing, or not even the folder.
    Nothing,
    /// Something that nobody has put there who gives nodes to containers: a link.
    Other,
}

impl At {
    /// What was opened to be looked at, or was not there to be opened.
    fn of(place: io::Result<OwnedFd>) -> io::Result<At> {
        let place = match place {
            Ok(place) => place,
            Err(e) => {
                return match Errno::from_io_error(&e) {
                    Some(Errno::NOENT) => Ok(At::Nothing),
                    Some(Errno::LOOP | Errno::NOTDIR) => Ok(At::Other),
                    _ => Err(e),
                };
            }
        };
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let found = statx(place, "", flags, StatxFlags::TYPE | StatxFlags::INO)?;
        Ok(match FileType::from_raw_mode(found.stx_mode.into()) {
            FileType::CharacterDevice => At::Node(found.stx_rdev_major, found.stx_rdev_minor),
            FileType::RegularFile => At::File,
            FileType::Directory => At::Folder(found.stx_dev_major, found.stx_dev_minor, found.stx_ino),
            _ => At::Other,
        })
    }
}

/// This process's own mounts, all of them of this kind, for the tests of the house: the machine has character devices where a node
/// cannot be made in a test.
#[cfg(test)]
pub(crate) fn mounts_of_kind(kind: &str) -> String {
    let own = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let all = own.lines().filter_map(|line| line.split_once(" - "));
    all.map(|(mount, _)| format!("{mount} - {kind} none rw\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    fn host() -> (tempfile::TempDir, impl Fn(&str, &str)) {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().to_owned();
        let put = move |path: &str, text: &str| {
            let path = top.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        (dir, put)
    }

    #[test]
    fn a_container_runs_whatever_its_init_has_made_of_its_groups() {
        let (dir, put) = host();
        let root = Root::at(dir.path());
        put("sys/fs/cgroup/lxc/104/ns/init.scope/cgroup.procs", "900\n");
        put("sys/fs/cgroup/lxc/105/ns/cgroup.procs", "");
        put("sys/fs/cgroup/lxc/105/cgroup.events", "populated 0\nfrozen 0\n");
        put("sys/fs/cgroup/lxc/106/ns/init/cgroup.procs", "902\n");
        put("sys/fs/cgroup/lxc/106/cgroup.events", "populated 1\nfrozen 0\n");
        put("programs/lxc-info -n 106 -p -H", "902\n");
        put("sys/fs/cgroup/lxc/lxc.monitor/cgroup.procs", "1\n");
        let ctid = |number: &str| number.parse::<VmId>().unwrap();
        assert_eq!(running(&root), [ctid("104"), ctid("106")]);
        for (number, process) in [("104", Some(900)), ("105", None), ("106", Some(902))] {
            assert_eq!(process_of(&root, ctid(number)), process, "{number}");
        }
    }

    #[test]
    fn nothing_is_looked_for_where_it_may_not_be_answered_or_a_link_leads() {
        let (dir, put) = host();
        let root = Root::at(dir.path());
        let top = dir.path().join("proc/900/root");
        std::fs::create_dir_all(top.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/", &top).unwrap();
        let at = |kind: &str, path: &str| {
            put("proc/900/mountinfo", &mounts_of_kind(kind));
            Inside::of(&root, 900).and_then(|inside| inside.at(path))
        };
        assert_eq!(at("tmpfs", "dev/null").unwrap(), At::Node(1, 3));
        assert_eq!(at("ext4", "dev/no/such").unwrap(), At::Nothing);
        assert_eq!(at("tmpfs", "proc/self/exe").unwrap(), At::Other);
        assert!(matches!(at("tmpfs", "dev").unwrap(), At::Folder(..)));
        for kind in ["fuse.x", "nfs4", "ramfs", ""] {
            assert_eq!(at(kind, "dev/null").unwrap_err().to_string(), MAY_NOT_ANSWER, "{kind}");
        }
        put("proc/900/mountinfo", "1 0 0:5 / /dev rw - tmpfs none rw\n");
        let unknown = Inside::of(&root, 900).unwrap().at("dev/null");
        assert_eq!(unknown.unwrap_err().to_string(), MAY_NOT_ANSWER);
    }

    /// The one that was moved is older, and stands before the other in mountinfo.
    #[test]
    fn a_mount_that_was_moved_over_another_is_not_taken_for_that() {
        if !nix::unistd::geteuid().is_root() {
            return; // nobody else may mount
        }
        let dir = tempfile::tempdir().unwrap();
        let script = "cd \"$0\" && mkdir old dev && mount -t ramfs ramfs old && mount -t tmpfs tmpfs dev && touch dev/file \
                      && echo begun && read go && mount --move old dev && echo moved && read end";
        let mut child = Command::new("unshare")
            .args(["-m", "sh", "-c", script])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut stdin = child.stdin.take().unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "begun");
        let place = format!("{}/dev/file", dir.path().display());
        let at = || {
            Inside::of(&Root::real(), child.id())
                .unwrap()
                .at(place.trim_start_matches('/'))
        };
        assert_eq!(at().unwrap(), At::File);
        io::Write::write_all(&mut stdin, b"\n").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "moved");
        let error = at().unwrap_err();
        drop(stdin);
        child.wait().unwrap();
        assert_eq!(error.to_string(), MAY_NOT_ANSWER);
    }
}
