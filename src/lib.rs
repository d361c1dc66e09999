//! gpu-handoff: lends a host's NVIDIA GPU to a Proxmox VE guest and brings it home again.
//!
//! The modules in the order in which a run passes through them.

pub mod cli; // arguments -> a request
pub mod config; // how long things may take
pub mod exit; // exit codes and the error the administrator reads
pub mod run; // a run from request to end

pub mod choice;
pub mod formats; // names, numbers and lists in Proxmox's configs
pub mod hostpci; // one hostpci entry
pub mod mapping; // the functions an entry means, and resource mappings
pub mod pci; // addresses, ids, classes
pub mod propstring; // Proxmox's property strings
pub mod vmconf; // the VM's config file, in Proxmox's own grammar
pub mod vmschema; // which keys and values a VM's config file may have // reservations, and the choice Proxmox will make

pub mod devices;
pub mod holders; // who uses a GPU
pub mod host; // files below a root
pub mod inventory; // the snapshot // which of it is meant

pub mod plan; // snapshot and record -> steps, or every reason why not
pub mod step; // the vocabulary of a plan

pub mod exec; // steps -> acts, with undo
pub mod kernel; // the interface to the host
pub mod record;
pub mod worker; // acts that the kernel can hold up // what was taken from where

pub mod journal;
pub mod report; // text and JSON // the log
