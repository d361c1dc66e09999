//! The gate: while a GPU is handed over nobody opens its nodes anew. The kernel's device controller asks a program of ours at
//! every open of a device node, in the host and in its containers, and that says no for these numbers.
//!
//! ```text
//! shut   program checked by the kernel -> linked to the root cgroup (cgroups(7), "device controller")
//! open   the link's descriptor is closed: by us, or by the kernel when the worker that has it ends, however it ends
//! ```
//!
//! What it does not stop: descriptors that are open already, and what is handed on by those who have one. So the look for
//! holders comes after it, and then what it has found can only become less.
//!
//! Not here: which numbers those are ([`crate::host::nodes`]), and when it is shut (`src/plan/out_steps.rs`,
//! `src/plan/home_steps.rs`).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::fstatfs;

use crate::base::pci::PciAddr;
use crate::base::root::Root;
use crate::base::unsafe_calls::{Insn, link_to_cgroup, load_device_program};
use crate::host::nodes::Door;
use crate::host::{displays, functions, nodes, nvidia};

/// Where the root of the cgroups of version 2 is mounted, if not some of version 1 beside (systemd's "hybrid", which has
/// the device controller among those).
const ROOT_CGROUP: &str = "/sys/fs/cgroup";

/// CGROUP2_SUPER_MAGIC (linux, include/uapi/linux/magic.h).
const CGROUP2: u64 = 0x6367_7270;

/// The name under which `bpftool prog` shows it.
const NAME: &str = "gpu_handoff";

/// A gate that is shut, until this is dropped.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Closing it opens the gate.
    _link: OwnedFd,
}

impl Gate {
    /// Shuts the gate to what these functions can be held by; with `whole`, to every node of NVIDIA's driver.
    ///
    /// # Errors
    /// Why this host, or this GPU, has none.
    pub(crate) fn shut(root: &Root, addrs: &[PciAddr], whole: bool) -> Result<Gate, String> {
        let doors = doors(root, addrs, whole)?;
        let dir = File::open(root.path(ROOT_CGROUP)).map_err(|e| format!("{ROOT_CGROUP}: {e}"))?;
        let is_v2 = fstatfs(&dir).is_ok_and(|s| u64::try_from(s.f_type) == Ok(CGROUP2));
        if !is_v2 {
            return Err(format!("{ROOT_CGROUP} is not of cgroup version 2 alone"));
        }
        let program = load_device_program(&program(&doors), NAME)
            .map_err(|e| format!("the kernel takes no program for the device controller: {e}"))?;
        let link = link_to_cgroup(&program, &dir).map_err(|e| format!("linking it to {ROOT_CGROUP}: {e}"))?;
        Ok(Gate { _link: link })
    }
}

/// The numbers that are refused.
fn doors(root: &Root, addrs: &[PciAddr], whole: bool) -> Result<Vec<Door>, String> {
    let unread = |e: io::Error| format!("the host's device numbers cannot be read: {e}");
    let read = |addr: &PciAddr| functions::read_function(root, *addr, true);
    let functions: Vec<functions::Function> = addrs.iter().filter_map(read).collect();
    let driver = nvidia::read(root).map_err(unread)?;
    let gpus = driver.as_ref().map_or(&[][..], |d| &d.gpus);
    let on_nvidia = functions.iter().filter(|f| f.is_on_nvidia() && f.is_nvidia_gpu());
    for gpu in on_nvidia.filter(|_| !whole) {
        if gpus.iter().all(|g| g.addr != gpu.addr || g.minor.is_none()) {
            return Err(format!(
                "NVIDIA's driver does not say which /dev/nvidiaN {} is",
                gpu.addr
            ));
        }
    }
    let framebuffers = displays::framebuffers(root, &functions);
    let nodes = nodes::nodes(root, &functions, &framebuffers, gpus).map_err(unread)?;
    let groups = functions.iter().filter_map(|f| f.group).collect();
    Ok(nodes.doors(addrs, &groups, whole))
}

/// Kinds and ways of access in the first word of what the program is given: (access << 16) | kind (linux,
/// include/uapi/linux/bpf.h, struct bpf_cgroup_dev_ctx). A mknod (access 1) is let be: a container that is started now must
/// not fail for that it cannot make its node.
const BLOCK: i32 = 1;
const CHAR: i32 = 2;
const READ: i32 = 2 << 16;
const WRITE: i32 = 4 << 16;

/// The program. Registers: 0 the answer, 1 the words that it is given, 2 the access, 3 the kind, 4 the major number, 5 the
/// minor number.
fn program(doors: &[Door]) -> Vec<Insn> {
    const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
    const MOVE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
    const COPY: u8 = 0xbf; // BPF_ALU64 | BPF_MOV | BPF_X
    const AND: u8 = 0x57; // BPF_ALU64 | BPF_AND | BPF_K
    const UNLESS_EQUAL: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
    const UNLESS_ANY: u8 = 0x45; // BPF_JMP | BPF_JSET | BPF_K jumps where a bit is set
    const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT
    let insn = |code, to: u8, from: u8, off, imm| Insn {
        code,
        regs: to | from << 4,
        off,
        imm,
    };
    let number = |n: u32| i32::from_ne_bytes(n.to_ne_bytes());
    let mut program = vec![
        insn(LOAD_WORD, 2, 1, 0, 0),
        insn(COPY, 3, 2, 0, 0),
        insn(AND, 3, 0, 0, 0xffff),
        insn(LOAD_WORD, 4, 1, 4, 0),
        insn(LOAD_WORD, 5, 1, 8, 0),
    ];
    for door in doors {
        let (kind, access) = match door {
            Door { block: true, .. } => (BLOCK, READ | WRITE),
            Door { writers_only: true, .. } => (CHAR, WRITE),
            _ => (CHAR, READ | WRITE),
        };
        // Each jump goes to the end of this door: behind what follows it here.
        let refuse = [
            insn(UNLESS_ANY, 2, 0, 1, access),
            insn(0x05, 0, 0, 2, 0), // BPF_JMP | BPF_JA
            insn(MOVE, 0, 0, 0, 0),
            insn(EXIT, 0, 0, 0, 0),
        ];
        let minor = door.minor.map(|minor| insn(UNLESS_EQUAL, 5, 0, 4, number(minor)));
        let rest = if minor.is_some() { 5 } else { 4 };
        program.push(insn(UNLESS_EQUAL, 3, 0, rest + 1, kind));
        program.push(insn(UNLESS_EQUAL, 4, 0, rest, number(door.major)));
        program.extend(minor);
        program.extend(refuse);
    }
    program.extend([insn(MOVE, 0, 0, 0, 1), insn(EXIT, 0, 0, 0, 0)]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program answers, by an interpreter of the few operations that it has. The kernel's own is asked in the lab.
    fn answer(program: &[Insn], words: [u32; 3]) -> u64 {
        let mut registers = [0_u64; 6];
        let mut at = 0_usize;
        loop {
            let insn = program[at];
            let (to, from) = (usize::from(insn.regs & 0xf), usize::from(insn.regs >> 4));
            let jump = usize::try_from(insn.off).unwrap();
            let imm = i64::from(insn.imm).cast_unsigned(); // with its sign, as the kernel has it
            at += 1;
            match insn.code {
                0x61 => registers[to] = u64::from(words[jump / 4]),
                0xb7 => registers[to] = imm,
                0xbf => registers[to] = registers[from],
                0x57 => registers[to] &= imm,
                0x55 if registers[to] != imm => at += jump,
                0x45 if registers[to] & imm != 0 => at += jump,
                0x05 => at += jump,
                0x55 | 0x45 => {}
                0x95 => return registers[0],
                code => panic!("operation {code:x}"),
            }
        }
    }

    #[test]
    fn the_nodes_named_are_refused_and_all_others_open() {
        let door = |block, major, minor, writers_only| Door {
            block,
            major,
            minor,
            writers_only,
        };
        let doors = [
            door(false, 195, Some(0), false),
            door(false, 226, Some(128), false),
            door(true, 8, Some(16), false),
            door(false, 511, None, false),
            door(false, 242, Some(3), true),
        ];
        let program = program(&doors);
        let (mknod, read, write) = (1, 2, 4);
        for (kind, access, major, minor, opens) in [
            (CHAR, read, 195, 0, false),
            (CHAR, write, 195, 0, false),
            (CHAR, read | write, 195, 0, false),
            (CHAR, mknod, 195, 0, true),
            (CHAR, mknod | read, 195, 0, false),
            (CHAR, read | write, 195, 1, true),
            (CHAR, read | write, 195, 255, true),
            (BLOCK, read | write, 195, 0, true),
            (CHAR, read, 226, 128, false),
            (CHAR, read, 226, 0, true),
            (BLOCK, read, 8, 16, false),
            (CHAR, read, 8, 16, true),
            (CHAR, read, 511, 7, false),
            (CHAR, read | write, 242, 3, false),
            (CHAR, read, 242, 3, true),
            (CHAR, read, 1, 3, true),
        ] {
            let words = [(access << 16) | u32::try_from(kind).unwrap(), major, minor];
            assert_eq!(answer(&program, words) == 1, opens, "{words:x?}");
        }
    }

    #[test]
    fn the_kernel_takes_it_where_it_lets_us_ask() {
        let door = Door {
            block: false,
            major: 195,
            minor: Some(0),
            writers_only: false,
        };
        // As many doors as sixteen cards have.
        let many = vec![door; 400];
        match load_device_program(&program(&many), NAME) {
            Ok(_) => {}
            Err(e) => assert!(
                matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported)
                    || e.raw_os_error() == Some(nix::libc::ENOSYS),
                "{e}"
            ),
        }
    }

    #[test]
    fn without_cgroups_of_version_2_there_is_no_gate() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let why = Gate::shut(&root, &[], true).unwrap_err();
        assert!(why.starts_with("/sys/fs/cgroup: No such file"), "{why}");
        std::fs::create_dir_all(dir.path().join("sys/fs/cgroup")).unwrap();
        let why = Gate::shut(&root, &[], true).unwrap_err();
        assert_eq!(why, "/sys/fs/cgroup is not of cgroup version 2 alone");
    }
}
