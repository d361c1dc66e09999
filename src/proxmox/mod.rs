//! Proxmox VE's own files, in its own grammar, and the choice of devices that it will make at a VM's start.
//!
//! Pure but for `files.rs`: text in, values out. Nothing here knows what a handoff is or whether a device is an NVIDIA GPU
//! that we hand over ([`crate::plan::selection`]).

pub mod choice; // the choice Proxmox will make
pub mod container_config; // which devices a container's config gives it
pub mod files; // where Proxmox keeps these files
pub(crate) mod given_nodes; // the nodes of GPUs it gives it, and where
pub mod grammar; // words, values, schemas
pub mod hostpci; // one hostpci entry
pub mod mappings; // resource mappings
pub mod reservations; // which VM has which device reserved
pub mod resolve; // the functions an entry means
pub mod start_error; // why Proxmox will not start a VM
pub mod storages; // where hookscripts lie
pub mod unreadable; // the error of this wing
pub mod vm_config; // a VM's config file

/// Where the cluster file system is mounted (pve-cluster, pmxcfs).
pub(crate) const PVE: &str = "/etc/pve";
