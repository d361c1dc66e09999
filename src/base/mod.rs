//! What everything stands on, and what knows nothing of GPUs, plans or Proxmox's files: addresses, numbers, text for
//! people, deadlines, processes, programs, files below a root.
//!
//! Not here: what any of it means for a handoff. Every wing may use all of it; it uses none of them.

pub(crate) mod bytes; // bytes that are mostly text, in JSON
pub mod clock; // moments as people write them
pub mod deadlines; // how long each kind of act may take
pub mod files; // replacing a file whole or not at all
pub(crate) mod json; // JSON read into our types: a struct is an object
pub mod message_ids; // the journal's names for what happens
pub mod pci; // addresses, ids, classes
pub mod process; // /proc/PID/stat: who lives, since when
pub mod program; // asking a program, with a deadline
pub mod recording; // what was looked at, kept
pub mod root; // files of the host below a root
pub(crate) mod sets; // sets and maps without a sort
pub mod systemd; // what systemd is asked
mod systemd_socket; // ... over its own socket
pub mod text; // text for people
pub(crate) mod threads; // threads, and how many may run at once
pub mod uevents; // what the kernel tells of devices
pub(crate) mod unsafe_calls; // bpf(2), kcmp(2), fork(2), a child's signals: all that is unsafe
pub mod vmid; // the number of a VM or container
pub mod wait;
