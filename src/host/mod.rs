//! The host as it is: one immutable [`snapshot::Snapshot`], read in one pass from sysfs, procfs and modprobe.
//!
//! Readers take a root and call parsers; nothing here changes the host or knows what a handoff is. What a stuck call holds
//! up is not touched, and what can block is read in a worker with a deadline ([`crate::execute::worker`]).

pub mod belongs; // what a process belongs to
pub mod container_nodes; // nodes in containers that are another device's now
pub mod displays; // framebuffers and consoles
pub mod functions; // PCI functions
pub mod holders; // who uses a GPU
pub mod modules; // what is loaded, and what could be loaded again
pub mod nodes; // the device nodes of each GPU
pub mod nvidia; // NVIDIA's driver
pub mod pci_ids; // what a device is called
pub mod snapshot; // all of it in one value
pub mod stuck_calls; // calls of others that hold a function's lock
pub mod units; // units of systemd's: whether they run, what goes down with them
pub mod usb; // what hangs below a card's USB controller
pub mod vms;
