//! What no crate of ours has a safe form of: bpf(2), kcmp(2), fork(2), PROCMAP_QUERY of ioctl(2), fcntl(2) of a bare number, and
//! what a child does before it becomes a program; and with them all that is `unsafe` in this program.
//!
//! Not here: what a BPF program refuses (`src/execute/gate.rs`), whose descriptors are compared
//! ([`crate::host::holders`]), and what a child does that is no other program ([`crate::execute::worker`]).
#![allow(unsafe_code)] // each block has its reason; tests/walls.rs finds any that is elsewhere

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, Pid, fork};

/// One instruction of BPF (linux, include/uapi/linux/bpf.h, struct bpf_insn).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Insn {
    /// Operation: class, source, and what is done.
    pub(crate) code: u8,
    /// Destination register, and in the upper half the source's.
    pub(crate) regs: u8,
    /// Offset, of memory or of a jump.
    pub(crate) off: i16,
    /// A constant.
    pub(crate) imm: i32,
}

/// BPF_PROG_LOAD and BPF_LINK_CREATE of enum bpf_cmd.
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
/// BPF_PROG_TYPE_CGROUP_DEVICE of enum bpf_prog_type.
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
/// BPF_CGROUP_DEVICE of enum bpf_attach_type.
const ATTACH_CGROUP_DEVICE: u32 = 6;

/// The part of union bpf_attr that BPF_PROG_LOAD reads here: the kernel takes a shorter one than its own.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// The part that BPF_LINK_CREATE reads.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// Has the kernel check and take a program that is asked at each open of a device. `name` is what bpftool shows, at most
/// 15 letters, digits and underscores.
///
/// # Errors
/// EPERM without CAP_BPF and CAP_NET_ADMIN or CAP_SYS_ADMIN; ENOSYS and EINVAL of a kernel without it.
pub(crate) fn load_device_program(insns: &[Insn], name: &str) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut prog_name = [0; 16];
    for (to, from) in prog_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    let attr = ProgLoad {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(insns.len()).map_err(io::Error::other)?,
        insns: address(insns.as_ptr()),
        license: address(license.as_ptr()),
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name,
    };
    bpf(PROG_LOAD, &attr)
}

/// Attaches such a program to a cgroup, for as long as the link that is returned stays open: the kernel closes it with the
/// process that has it (linux, kernel/bpf/cgroup.c, bpf_cgroup_link_release).
///
/// # Errors
/// EINVAL where the directory is no cgroup of version 2; EPERM where a program is attached that lets none come beside it.
pub(crate) fn link_to_cgroup(program: &OwnedFd, cgroup: impl AsFd) -> io::Result<OwnedFd> {
    let number = |fd: i32| u32::try_from(fd).map_err(io::Error::other);
    let attr = LinkCreate {
        prog_fd: number(program.as_raw_fd())?,
        target_fd: number(cgroup.as_fd().as_raw_fd())?,
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: 0,
    };
    bpf(LINK_CREATE, &attr)
}

fn address<T>(of: *const T) -> u64 {
    of.addr() as u64
}

/// bpf(2), for commands that return a descriptor, which the kernel makes close-on-exec.
fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` lives through the call and is as large as is said; the addresses in it are of slices that the callers
    // hold until it returns; the kernel writes to none of them, since no log is asked for.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has a program begin with no signal blocked. std passes on those of the thread that starts it (from Rust 1.66 on), and a
/// program that starts another does so too: a container's process would be deaf to the signal that asks it to end.
pub(crate) fn with_no_signal_blocked(command: &mut Command) -> &mut Command {
    // SAFETY: between fork(2) and exec(2) there is one system call, sigprocmask(2), which is safe there (signal-safety(7)).
    unsafe { command.pre_exec(|| SigSet::empty().thread_set_mask().map_err(io::Error::from)) }
}

/// Makes a child that does this work and ends, with 0 where it says that all was well. Returns the child's process id. Of what is
/// to be done at a program's end the child does nothing: that is the parent's.
///
/// # Errors
/// Unsupported where this process has more than one thread: none of the others is in the child, and what they have locked stays
/// so. Otherwise those of fork(2).
pub(crate) fn fork_to(work: impl FnOnce() -> bool) -> io::Result<Pid> {
    // A link for each thread beside the two of every directory (linux, fs/proc/base.c, proc_task_getattr).
    if std::fs::metadata("/proc/self/task")?.nlink() != 3 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: this is the only thread, so that in the child's copy of the memory nothing is half done by another.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let is_well = work();
            // SAFETY: it ends the process, and asks for nothing.
            unsafe { libc::_exit(i32::from(!is_well)) }
        }
    }
}

/// Whether a descriptor of ours is closed where this process becomes another program (fcntl(2), `FD_CLOEXEC`). Of a number that is
/// none it is not.
pub(crate) fn is_close_on_exec(fd: RawFd) -> bool {
    // SAFETY: numbers go in and a number comes out; nothing is done to the descriptor, whosever it is.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC != 0
}

/// What std asks at each start for where this thread's stack ends, so as to have a sentence for an overflow before the same SIGSEGV
/// (rust, library/std/src/sys/pal/unix/stack_overflow.rs, which does without where there is no answer). libc finds it out by reading
/// and scanning all of /proc/self/maps (glibc, nptl/pthread_getattr_np.c): a seventh of all instructions of a call with nothing to do,
/// of which a host has some at each start and stop of each VM.
#[unsafe(no_mangle)]
extern "C" fn pthread_getattr_np(_thread: libc::pthread_t, _attributes: *mut libc::pthread_attr_t) -> libc::c_int {
    libc::ENOSYS
}

/// Whether two tasks share one table of descriptors (kcmp(2), KCMP_FILES).
///
/// # Errors
/// ESRCH where one of them is gone; EPERM of who may not trace them; ENOSYS of a kernel without it.
pub(crate) fn share_files(one: i32, other: i32) -> io::Result<bool> {
    /// KCMP_FILES of enum kcmp_type (linux, include/uapi/linux/kcmp.h).
    const FILES: libc::c_int = 2;
    // SAFETY: numbers go in and a number comes out.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            one,
            other,
            FILES,
            0 as libc::c_ulong,
            0 as libc::c_ulong,
        )
    };
    match result {
        0 => Ok(true),
        1.. => Ok(false),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A mapping that others share, of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SharedMapping {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// struct procmap_query (linux, include/uapi/linux/fs.h).
#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

/// The first such mapping at this address or behind it, of the process whose /proc/PID/maps this is; None: there is no more. The
/// kernel passes over all others by itself, and writes no text of any.
///
/// # Errors
/// ENOTTY of a kernel without it (before 6.11); ESRCH where the process has no memory (any more).
pub(crate) fn next_shared_mapping(maps: impl AsFd, from: u64) -> io::Result<Option<SharedMapping>> {
    /// _IOWR('f', 17, struct procmap_query).
    const PROCMAP_QUERY: libc::c_ulong =
        (3 << 30) | ((size_of::<ProcmapQuery>() as libc::c_ulong) << 16) | (0x66 << 8) | 17;
    /// Of enum procmap_query_flags: PROCMAP_QUERY_VMA_SHARED, _COVERING_OR_NEXT_VMA and _FILE_BACKED_VMA.
    const FLAGS: u64 = 0x08 | 0x10 | 0x20;
    let mut query = ProcmapQuery {
        size: size_of::<ProcmapQuery>() as u64,
        query_flags: FLAGS,
        query_addr: from,
        ..ProcmapQuery::default()
    };
    // SAFETY: `query` lives through the call and is as large as it says; no address in it is one to write to.
    let result = unsafe { libc::ioctl(maps.as_fd().as_raw_fd(), PROCMAP_QUERY, std::ptr::from_mut(&mut query)) };
    if result == 0 {
        return Ok(Some(SharedMapping {
            start: query.vma_start,
            end: query.vma_end,
        }));
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        e => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_share_is_found_by_its_address_and_nothing_else_is() {
        use std::os::fd::AsFd as _;

        let maps = std::fs::File::open("/proc/self/maps").unwrap();
        let mut found = Vec::new();
        let mut from = 0;
        loop {
            match next_shared_mapping(maps.as_fd(), from) {
                Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => return, // a kernel without it
                next => match next.unwrap() {
                    Some(mapping) => {
                        found.push(format!("{:08x}-{:08x} ", mapping.start, mapping.end));
                        from = mapping.end;
                    }
                    None => break,
                },
            }
        }
        // Its own threads may map something meanwhile, but nothing that they share.
        let text = std::fs::read_to_string("/proc/self/maps").unwrap();
        let shared = text
            .lines()
            .filter(|line| line.split(' ').nth(1).is_some_and(|p| p.ends_with('s')));
        let shared: Vec<&str> = shared.filter(|line| line.contains('/')).collect();
        assert_eq!(found.len(), shared.len(), "{found:?}, {shared:?}");
        assert!(
            shared
                .iter()
                .zip(&found)
                .all(|(line, found)| line.starts_with(found.as_str()))
        );
    }

    #[test]
    fn what_std_opens_is_closed_on_exec_and_what_is_inherited_is_not() {
        let file = std::fs::File::open("/proc/self/maps").unwrap();
        assert!(is_close_on_exec(file.as_raw_fd()));
        let kept = rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty());
        kept.unwrap();
        assert!(!is_close_on_exec(file.as_raw_fd()));
        assert!(!is_close_on_exec(-1));
    }

    #[test]
    fn a_process_shares_its_files_with_itself_and_not_with_another() {
        let us = i32::try_from(std::process::id()).unwrap();
        let other = i32::try_from(std::os::unix::process::parent_id()).unwrap();
        match share_files(us, us) {
            Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => return, // a kernel without it
            same => assert!(same.unwrap()),
        }
        // Where we may trace our parent.
        if let Ok(same) = share_files(us, other) {
            assert!(!same);
        }
        let gone = share_files(us, i32::MAX).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn an_instruction_is_eight_bytes_and_the_attributes_have_no_gaps() {
        assert_eq!(size_of::<Insn>(), 8);
        assert_eq!(size_of::<ProgLoad>(), 64);
        assert_eq!(size_of::<LinkCreate>(), 16);
    }
}
