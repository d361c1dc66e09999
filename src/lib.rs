//! gpu-handoff: lends a host's NVIDIA GPU to a Proxmox VE guest and brings it home again.
//!
//! The wings of the house, from the top to the ground. What a file imports lies in its own wing or in one below, never
//! above, and no two files import each other: `tests/walls.rs` holds the code against that. ARCHITECTURE.md shows the way
//! of one handoff through them.

pub mod commands; // what Proxmox and people can ask for
pub mod run; // what every run does and has at hand
pub mod execute; // steps become acts
pub mod tell; // what reaches people who are not at the screen
pub mod output; // what is shown
pub mod attach; // guests that are given the hook, and a GPU
pub mod prepare; // the host made ready for handoffs, and given back as it was
pub mod check; // whether a host is ready for handoffs
pub mod plan; // what is done, decided
pub mod report; // what of a host leaves it in a bug report, and how it is read again
pub mod state; // what is kept on disk
pub mod model; // what a handoff is made of, as data
pub mod settings; // what there is to set
pub mod proxmox; // Proxmox's files, in its own grammar
pub mod host; // the host as it is
pub mod base; // what everything stands on
