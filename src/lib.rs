//! gpu-handoff: lends a host's NVIDIA GPU to a Proxmox VE guest and brings it home again.
//!
//! The modules in the order in which a run passes through them.

pub mod execute;
pub mod plan;
pub mod state;
pub mod model;
pub mod settings;
pub mod output;
pub mod proxmox; // Proxmox's files and grammar
pub mod host; // the host as it is
pub mod base; // what everything stands on

pub mod cli; // arguments -> a request
pub mod phases; // what each phase of a VM does
pub mod commands; // what a person can ask for
pub mod recover; // every stranded GPU home
pub mod watch; // nobody to call back
pub mod context; // what every run has at hand
pub mod run; // what every run does

pub mod report; // text and JSON
pub mod journal; // the log
