//! Guests that are given the hook, and a GPU: what is set, by which command of Proxmox's, and what keeps it from being set.
//!
//! ```text
//! Facts, Wish -> Change (a command of qm or pct) -> Facts as if -> checks, offers -> a person's answers -> command, file
//! ```
//!
//! Nothing here writes to /etc/pve: that is the business of qm(1) and pct(1), which look at what they are given, and hold the
//! guest's lock meanwhile. The one file that is ours is /etc/gpu-handoff/conf.d/VMID.toml.

pub mod change; // what is set and deleted for one guest, and the command
pub mod devices; // hostpciN lines
pub mod guest; // which guest is meant, and what speaks against it
pub mod hook; // which hookscript it has, and which one it is given
mod lines; // what is set and taken away, and what is kept of it on disk
mod nodes; // devN lines
pub mod offers; // who is in the way of a start, and what may be allowed
pub mod own_file; // the settings of one VM, in a file of its own
pub mod pending; // what waits for a guest's next start
pub mod unwanted; // all of it for detach
pub mod wanted; // and for attach
