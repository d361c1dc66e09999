//! The table of descriptors of a process or a thread: which device nodes it has open.
//!
//! Not here: whose tables are looked at, and in which order ([`crate::host::holders`]).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, StatxFlags, openat, statx};

use crate::base::process::open_flags;
use crate::base::root::Root;
use crate::host::nodes::{Node, Nodes};

/// A turn: about as many descriptors of a process are looked at before the next one has its turn. All of most processes.
const TURN: usize = 1024;

/// How many descriptors of each node.
pub(crate) type Held = BTreeMap<Node, u32>;

/// Where names of descriptors are read into, a turn of them at once.
pub(crate) struct Room(Vec<u8>);

impl Default for Room {
    fn default() -> Room {
        // An entry is 24 bytes, or 32 where the number is a long one (linux, struct linux_dirent64).
        Room(Vec::with_capacity(TURN * 32))
    }
}

/// A table of descriptors that is being read.
pub(crate) struct Table {
    dir: OwnedFd,
    /// What there is so far.
    pub(crate) held: Held,
    /// There is no descriptor so far.
    pub(crate) is_empty: bool,
}

impl Table {
    /// That of a process, or of a thread: the directory below /proc.
    pub(crate) fn of(root: &Root, task: &str) -> io::Result<Table> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Table {
            dir: openat(CWD, root.path(format!("{task}/fd")), flags, Mode::empty())?,
            held: Held::new(),
            is_empty: true,
        })
    }

    /// Looks at the next descriptors. Returns whether those were the last.
    pub(crate) fn next_turn(&mut self, nodes: &Nodes, room: &mut Room) -> io::Result<bool> {
        let mut entries = RawDir::new(&self.dir, room.0.spare_capacity_mut());
        let mut count = 0;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            count += 1;
            if !name.to_bytes().starts_with(b".") {
                self.is_empty = false;
                if let Some(node) = look_at(&self.dir, name).node(nodes)
                    && !is_path_only(&self.dir, &name.to_string_lossy())
                {
                    *self.held.entry(node).or_default() += 1;
                }
            }
            // Where the next one is read from is known only when all that were read have been looked at.
            if count >= TURN && entries.is_buffer_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// All of it, without turns.
    pub(crate) fn read_whole(mut self, nodes: &Nodes) -> io::Result<Held> {
        let mut room = Room::default();
        while !self.next_turn(nodes, &mut room)? {}
        Ok(self.held)
    }
}

/// It was opened with O_PATH: a name of the node and no use of the device, which anybody may have (open(2)).
fn is_path_only(dir: &OwnedFd, name: &str) -> bool {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let Ok(file) = openat(dir, format!("../fdinfo/{name}"), flags, Mode::empty()) else {
        return false;
    };
    let text = io::read_to_string(std::fs::File::from(file)).unwrap_or_default();
    open_flags(&text) & OFlags::PATH.bits() != 0
}

/// What a link of /proc leads to.
pub(crate) enum LeadsTo {
    /// A character device of this major and minor number.
    Device(u64, u64),
    /// A block device of this major and minor number.
    Block((u64, u64)),
    /// Something else.
    NoDevice,
    /// Nothing that can be told: it was closed meanwhile, or its file system does not answer to root (FUSE without
    /// allow_other, a dead network mount). Such file systems carry no usable device nodes.
    Nothing,
}

impl LeadsTo {
    pub(crate) fn node(&self, nodes: &Nodes) -> Option<Node> {
        match self {
            LeadsTo::Device(major, minor) => nodes.of(*major, *minor),
            LeadsTo::Block(number) => nodes.disks.get(number).copied(),
            LeadsTo::NoDevice | LeadsTo::Nothing => None,
        }
    }
}

/// Without asking a server: what is cached tells a device node from a file, and a dead server answers never.
pub(crate) fn look_at(dir: impl std::os::fd::AsFd, link: impl rustix::path::Arg) -> LeadsTo {
    let seen = statx(dir, link, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE);
    let Ok(meta) = seen else { return LeadsTo::Nothing };
    let (major, minor) = (u64::from(meta.stx_rdev_major), u64::from(meta.stx_rdev_minor));
    match FileType::from_raw_mode(u32::from(meta.stx_mode)) {
        FileType::CharacterDevice => LeadsTo::Device(major, minor),
        FileType::BlockDevice => LeadsTo::Block((major, minor)),
        _ => LeadsTo::NoDevice,
    }
}
