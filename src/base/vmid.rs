//! The number of a VM or container.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The id of a VM or container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct VmId(u32);

impl VmId {
    /// The smallest id there is (pve-common, PVE/JSONSchema.pm, `pve-vmid`).
    pub const MIN: u32 = 100;
    /// The largest id there is.
    pub const MAX: u32 = 999_999_999;

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// A number or a text is no VM id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a VM id (100 to 999999999)")]
pub struct BadVmId(pub String);

impl TryFrom<u32> for VmId {
    type Error = BadVmId;

    fn try_from(number: u32) -> Result<Self, Self::Error> {
        if (Self::MIN..=Self::MAX).contains(&number) {
            Ok(VmId(number))
        } else {
            Err(BadVmId(number.to_string()))
        }
    }
}

impl From<VmId> for u32 {
    fn from(id: VmId) -> u32 {
        id.0
    }
}

impl FromStr for VmId {
    type Err = BadVmId;

    /// Digits only, without leading zeros: the way Proxmox spells it in arguments and file names.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadVmId(text.to_owned());
        if text.len() > 9 || text.starts_with('0') || text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        text.parse::<u32>().map_err(|_| bad())?.try_into()
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vm_ids_have_a_range_and_one_spelling() {
        for (text, id) in [
            ("100", Some(100)),
            ("999999999", Some(999_999_999)),
            ("99", None),
            ("0100", None),
        ] {
            assert_eq!(text.parse::<VmId>().ok().map(VmId::get), id, "{text:?}");
        }
        for text in ["", "+100", "100 ", "1000000000", "99999999999999999999", "1e3"] {
            assert!(text.parse::<VmId>().is_err(), "{text:?}");
        }
        assert_eq!(serde_json::to_string(&VmId(105)).unwrap(), "105");
        assert!(serde_json::from_str::<VmId>("99").is_err());
    }
}
