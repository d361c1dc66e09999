//! Whether this host is ready for handoffs: a static table of checks, each a pure look at facts that were read before.
//!
//! ```text
//! read  -> Facts -> every row of the table -> Report
//! ```
//!
//! Not here: what keeps one handoff from happening now (a refusal, [`crate::plan`]), how a report is shown
//! ([`crate::output`]), and any change to the host. What is found is told with file and line and with what mends it; what
//! could not be looked at is another answer than "nothing found".

pub mod report; // every row, asked
pub mod table; // one row for each check
mod host; // the host itself
mod iommu; // the IOMMU
mod gpu; // each GPU
mod link; // how a GPU is connected
mod driver; // NVIDIA's driver
mod known_bad; // combinations that are known to go wrong
mod models; // which GPU is of which time
pub(crate) mod hook; // the hookscript, and who has it
mod vm; // VMs with a GPU
mod hiding; // what a guest may not see
pub(crate) mod cluster; // what goes beyond this node
mod containers; // containers that are given a GPU
mod package; // our own files, and what others have left
mod lines; // lines of the host's configuration that fight
pub mod line; // such a line
mod configured; // the host's configuration as such lines
pub mod fights; // which of them fight a handoff; prepare asks the same
pub mod read; // reads what is looked at
mod versions; // versions in names
pub mod facts; // what is looked at
pub mod texts; // files as they were read
pub mod guests; // VMs and containers, understood
pub mod finding; // what a check says
