//! Which of Proxmox's grammars counts.

use serde::{Deserialize, Serialize};

/// Which generation of Proxmox VE reads the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Generation {
    /// qemu-server 8, and 9 up to 9.0.20.
    Pve8,
    /// qemu-server 9.0.21 to 9.0.24: as before, but that `machine:` knows `aw-bits`.
    Pve9Early,
    /// qemu-server 9.0.25 and later (from there on it knows `driver=`).
    Pve9,
}
