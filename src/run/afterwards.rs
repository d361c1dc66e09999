//! What comes after a run, beside whoever waited for it: people and monitoring hear of it.

use tracing::warn;

use crate::base::systemd;
use crate::base::vmid::VmId;
use crate::model::error::{Error, Exit};
use crate::run::session::Session;

/// Has it told what a run has done or left, if it has done or left anything: by a unit of its own, which is not waited for.
/// To be called when the host-wide lock is let go.
pub fn have_it_told(host: &Session, result: &Result<(), Error>) {
    let is_left = result.as_ref().is_err_and(|error| error.exit() == Exit::NotRestored);
    if !host.kernel.has_acted() && !is_left {
        return;
    }
    tell(None);
}

/// Has it told what there is to tell, of a VM in particular whose watcher has tried in vain.
pub fn tell(abandoned: Option<VmId>) {
    if let Err(why) = systemd::tell(abandoned) {
        warn!("messages and metrics are not up to date: {why}");
    }
}
