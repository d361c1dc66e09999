//! A process as an act and a record know it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::text::foreign;
use crate::host::holders::Holder;

/// A process by its number, and its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its process id.
    pub pid: i32,
    /// Its name, as it chose it.
    pub comm: String,
}

impl Named {
    /// One that uses something.
    pub(crate) fn of(holder: &Holder) -> Named {
        Named {
            pid: holder.pid,
            comm: holder.comm.clone(),
        }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, foreign(&self.comm))
    }
}
