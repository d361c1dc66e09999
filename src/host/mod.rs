//! The host as it is: one immutable [`snapshot::Snapshot`], read in one pass from sysfs, procfs and modprobe.
//!
//! Readers take a root and call parsers; nothing here changes the host or knows what a handoff is. What a stuck call holds
//! up is not touched, and what can block is read in a worker with a deadline ([`crate::execute::worker`]).

pub mod belongs; // what a process belongs to
pub mod boot_loader; // the kernel's command line, of now and of the next boot
pub mod container_nodes; // which containers run, and what there is in one
pub mod desktop; // the display manager, and who is logged in by it
pub mod displays; // framebuffers and consoles
pub mod functions; // PCI functions
pub mod holders; // who uses a GPU
pub(crate) mod ha; // containers that the cluster's manager looks after
pub mod grub_config; // GRUB's settings, as far as they are plain
pub mod kernel_args; // arguments of a command line, each with its place
mod memories; // what a process maps, and its threads have open
pub mod modprobe_config; // modprobe.d, line by line
pub mod module_lists; // what is to be loaded at boot
pub mod modules; // what is loaded, and what could be loaded again
pub mod nodes; // the device nodes of each GPU
pub mod nvidia; // NVIDIA's driver
pub mod place; // where something stands in the configuration
pub mod pci_ids; // what a device is called
pub mod snapshot; // all of it in one value
pub mod stuck_calls; // calls of others that hold a function's lock
mod tables; // what a process has open
pub mod unit_names; // which units of systemd's may be stopped at all
pub mod unit_states; // whether these run, and what goes down with them
pub mod units; // what can be stopped and started again: units of systemd's, containers
pub mod usb; // what hangs below a card's USB controller
pub mod vms;
