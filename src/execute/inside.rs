//! In a container: nodes of GPUs that are put there anew while it runs, as Proxmox puts one there that is added to a container that
//! runs (pve-container, PVE/LXC.pm, device_passthrough_hotplug).
//!
//! ```text
//! worker ── starts ──> a process of its own
//!                        a mount namespace of its own, a tmpfs in it: nodes with number, owner and mode
//!                        each of them, or a node of the host's, as a mount that is nowhere (open_tree(2))
//!                        the container's mount namespace, by the pidfd of its init
//!                        each mount onto its place (move_mount(2)); who has the old node open keeps it
//!        <── what became of each ──
//! ```
//!
//! A container says in its /dev what it likes. So no link of its is followed, nothing is written but an empty file to mount onto,
//! as who owns its /dev, and nothing that it says is passed on. Not here: which nodes ([`crate::execute::renew_nodes`]).

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode as NodeMode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Uid, chown, fchdir, setfsgid, setfsuid};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags, mkdirat, open, openat, statx};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use serde::{Deserialize, Serialize};

use crate::base::json;
use crate::base::root::Root;
use crate::base::vmid::VmId;
use crate::base::wait::{pidfds, poll_readable};
use crate::host::container_nodes::{At, Inside};

/// The second argument of a worker that does this alone, and ends.
pub const INSIDE_ARG: &str = "inside";

/// Where the nodes are made before they are moved: in a mount namespace of our own nobody else sees what is mounted there, and
/// devices on it can be opened, other than in /run itself.
const STAGE: &str = "/run/gpu-handoff";

/// Most mounts that are taken off a place. More than one are there where somebody else has put a node there.
const DEEPEST: usize = 8;

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Whose.
    pub(crate) ctid: VmId,
    /// Its init, on the host.
    pub(crate) pid: u32,
    /// The nodes.
    pub(crate) nodes: Vec<Fresh>,
}

/// A node that is put there.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Fresh {
    /// Where, without the slash that it begins with.
    pub(crate) inside: String,
    /// What.
    pub(crate) source: Source,
}

/// What is put there.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Source {
    /// A node of its own.
    Made {
        /// Its number.
        major: u32,
        /// Its number.
        minor: u32,
        /// Its permissions.
        mode: u32,
        /// Its owner, on the host.
        uid: u32,
        /// Its group, on the host.
        gid: u32,
    },
    /// The host's own, or a folder of the host's.
    Bound {
        /// Its path on the host.
        path: String,
        /// Nothing of it is changed there: not who owns it, nor its mode.
        #[serde(default)]
        read_only: bool,
        /// It is a folder.
        #[serde(default)]
        is_folder: bool,
    },
}

/// What became of each, in their order.
pub(crate) type Outcome = Vec<Result<(), String>>;

/// Does it, and says what became of it.
///
/// # Errors
/// Where the container could not be entered at all.
pub fn serve(job: Option<&OsStr>) -> io::Result<()> {
    let job: Job = json::from_slice(job.unwrap_or_default().as_encoded_bytes())?;
    let outcome = match enter(&job) {
        Ok(outcome) => outcome,
        Err(why) => vec![Err(why); job.nodes.len()],
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(&serde_json::to_vec(&outcome)?)?;
    stdout.flush()
}

fn enter(job: &Job) -> Result<Outcome, String> {
    let root = Root::real();
    let init = init_of(&root, job)?;
    let mounts = Inside::of(&root, job.pid).map_err(|e| format!("its mounts: {e}"))?;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: nix::Error| format!("{what}: {e}")
    };
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("a mount namespace of our own"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(failed("making its mounts our own"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("none"), STAGE, Some("tmpfs"), flags, Some("size=64k,mode=700")).map_err(failed("a place for nodes"))?;
    let staged: Vec<Result<OwnedFd, String>> = job
        .nodes
        .iter()
        .enumerate()
        .map(|(n, fresh)| stage(n, &fresh.source).map_err(|e| e.to_string()))
        .collect();
    setns(&init, CloneFlags::CLONE_NEWNS).map_err(failed("entering its mount namespace"))?;
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = open("/", folder, Mode::empty()).map_err(|e| format!("its root: {e}"))?;
    let container = mounts.below(top);
    let put = |(fresh, tree): (&Fresh, Result<OwnedFd, String>)| {
        let tree = tree?;
        put(&container, &tree, fresh).map_err(|e| e.to_string())
    };
    Ok(job.nodes.iter().zip(staged).map(put).collect())
}

/// The container's init: the process that has the number is in its cgroup, and has it for as long as it lives.
fn init_of(root: &Root, job: &Job) -> Result<OwnedFd, String> {
    let gone = || "it has ended".to_owned();
    let pid = i32::try_from(job.pid).map_err(|_| gone())?;
    let mut fds = pidfds(&[pid]).ok_or_else(gone)?;
    let init = fds.pop().ok_or_else(gone)?;
    let groups = root.text(format!("/proc/{pid}/cgroup")).map_err(|_| gone())?;
    let has_ended = poll_readable(&[init.as_fd()], Duration::ZERO) == [true];
    match is_of(&groups, job.ctid) && !has_ended {
        true => Ok(init),
        false => Err(gone()),
    }
}

/// Whether a process with this /proc/PID/cgroup is of a container (pve-container, PVE/LXC.pm, update_lxc_config).
fn is_of(groups: &str, ctid: VmId) -> bool {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let below = path.and_then(|path| path.strip_prefix(&format!("/lxc/{ctid}")));
    below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

/// A node as a mount that is nowhere yet.
fn stage(n: usize, source: &Source) -> io::Result<OwnedFd> {
    let path = match source {
        Source::Bound {
            path, read_only: false, ..
        } => path.clone(),
        Source::Bound { path, is_folder, .. } => {
            let place = format!("{STAGE}/{n}");
            match is_folder {
                true => std::fs::create_dir(&place)?,
                false => std::fs::write(&place, "")?,
            }
            let none = None::<&str>;
            mount(Some(path.as_str()), place.as_str(), none, MsFlags::MS_BIND, none)?;
            let flags =
                MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
            mount(none, place.as_str(), none, flags, none)?;
            place
        }
        Source::Made {
            major,
            minor,
            mode,
            uid,
            gid,
        } => {
            let path = format!("{STAGE}/{n}");
            let number = makedev(u64::from(*major), u64::from(*minor));
            let mode = NodeMode::from_bits_truncate(*mode);
            mknod(path.as_str(), SFlag::S_IFCHR, mode, number)?;
            // Whatever our umask is.
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode.bits()))?;
            chown(path.as_str(), Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)))?;
            path
        }
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, path.as_str(), flags)?)
}

/// Mounts a node onto its place, in the mount namespace that we are in.
fn put(container: &Inside, tree: &OwnedFd, fresh: &Fresh) -> io::Result<()> {
    let (folder, name) = fresh.inside.rsplit_once('/').ok_or(io::ErrorKind::InvalidInput)?;
    let is_folder = matches!(fresh.source, Source::Bound { is_folder: true, .. });
    let folder = match container.open(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let dev = container.open("dev")?;
            let below = folder.strip_prefix("dev/").filter(|below| !below.contains('/'));
            let below = below.ok_or(io::ErrorKind::NotFound)?;
            as_its_owner(&dev, || Ok(mkdirat(&dev, below, Mode::from_raw_mode(0o755))?))?;
            container.open(folder)?
        }
        folder => folder?,
    };
    fchdir(&folder)?;
    for _ in 0..DEEPEST {
        // What cannot be taken off is mounted onto.
        if !is_mounted(container, &folder, name)
            || umount2(name, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_err()
        {
            break;
        }
    }
    match container.look_in(&folder, name)? {
        At::Node(..) | At::File if !is_folder => {}
        At::Folder(..) if is_folder => {}
        At::Nothing if is_folder => as_its_owner(&folder, || Ok(mkdirat(&folder, name, Mode::from_raw_mode(0o755))?))?,
        At::Nothing => as_its_owner(&folder, || {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&folder, name, flags, Mode::from_raw_mode(0o600))?;
            Ok(())
        })?,
        _ => return Err(io::Error::other("something else lies there")),
    }
    let place = container.open_in(&folder, name)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", &place, "", flags)?)
}

fn is_mounted(container: &Inside, folder: &OwnedFd, name: &str) -> bool {
    let place = container.open_in(folder, name).ok();
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = place.and_then(|place| statx(&place, "", flags, StatxFlags::TYPE).ok());
    found.is_some_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Does something as who owns a folder: nobody whom a container's user namespace does not know can make a file there (linux,
/// fs/namei.c, may_create), and who owns it may.
fn as_its_owner(folder: &OwnedFd, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = statx(folder, "", flags, StatxFlags::UID | StatxFlags::GID)?;
    setfsgid(Gid::from_raw(found.stx_gid));
    setfsuid(Uid::from_raw(found.stx_uid));
    let made = make();
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_of_the_container_in_whose_cgroup_it_is() {
        let ctid: VmId = "104".parse().unwrap();
        for (groups, is) in [
            ("0::/lxc/104/ns/init.scope\n", true),
            ("0::/lxc/104\n", true),
            ("1:name=systemd:/\n0::/lxc/104/ns\n", true),
            ("0::/lxc/1040/ns\n", false),
            ("0::/lxc.monitor/104\n", false),
            ("0::/system.slice/ssh.service\n", false),
            ("0::/x/lxc/104/ns\n", false),
            ("", false),
        ] {
            assert_eq!(is_of(groups, ctid), is, "{groups:?}");
        }
    }
}
