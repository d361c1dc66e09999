//! What comes after a run, beside whoever waited for it: people and monitoring hear of it.

use std::path::Path;

use tracing::warn;

use crate::base::systemd;
use crate::base::vmid::VmId;
use crate::model::error::{Error, Exit};
use crate::model::record::{Record, State};
use crate::run::session::Session;
use crate::settings::file;
use crate::tell::told::{self, Told};

/// Has it told what a run has done or left, if there may be anything to tell: by a unit of its own, which is not waited for.
/// To be called when the host-wide lock is let go.
pub fn have_it_told(host: &Session, result: &Result<(), Error>) {
    let is_left = result.as_ref().is_err_and(|error| error.exit() == Exit::NotRestored);
    if (host.kernel.has_acted() || is_left) && may_be_news(host, result) {
        tell(None);
    }
}

/// Whether there may be something that nobody has heard of: what did not go well, or went on before us and was not told, or was
/// told and taken by nobody; and where metrics are written there always is. To have systemd start a unit costs as much as half of
/// a way out.
fn may_be_news(host: &Session, result: &Result<(), Error>) -> bool {
    let is_bad = |record: &Record| record.state == State::Stranded || !record.wedges.is_empty();
    let has_metrics = || file::load(&host.root, None).map_or(true, |settings| settings.metrics.0.is_some());
    let is_untold = || Told::read(Path::new(told::DIR)).map_or(true, |told| told.has_unsent());
    let is_unwell = || {
        let read = host.load(None);
        read.map_or(true, |(records, problems)| {
            !problems.is_empty() || records.iter().any(is_bad)
        })
    };
    result.is_err() || host.has_failed || has_metrics() || is_untold() || is_unwell()
}

/// Has it told what there is to tell, of a VM in particular whose watcher has tried in vain.
pub fn tell(abandoned: Option<VmId>) {
    if let Err(why) = systemd::tell(abandoned) {
        warn!("messages and metrics are not up to date: {why}");
    }
}
