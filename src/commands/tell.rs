//! `tell`: what people and monitoring have to hear of, after a handoff. Run by `gpu-handoff-tell@.service`, which whoever
//! moved something has asked for: nobody waits for it, and it holds no lock of a handoff.

use std::path::Path;
use std::time::Duration;

use tracing::warn;

use crate::base::files::publish;
use crate::base::systemd::ABANDONED;
use crate::base::text::foreign;
use crate::base::vmid::VmId;
use crate::commands::stopped;
use crate::execute::linux::Linux;
use crate::host::snapshot::Snapshot;
use crate::model::error::{Error, chain};
use crate::model::record::Record;
use crate::run::session::{Session, must_be_root, this_boot};
use crate::settings::file;
use crate::settings::messages::Notify;
use crate::settings::values::Settings;
use crate::state::history::Handoff;
use crate::state::store::Store;
use crate::tell::events::{Event, Seen, events};
use crate::tell::metrics;
use crate::tell::send::{Host, say, send};
use crate::tell::told::{DIR, Told};

/// How long whoever tells just now is waited for.
const PATIENCE: Duration = Duration::from_secs(300);

/// Who asks when all is started that a boot starts: `gpu-handoff-stopped.service`.
const BOOTED: &str = "booted";

/// Tells what is news, and writes the metrics. `asked_by` is the unit's instance: who asks, and the VM whose watcher has tried
/// in vain; or that a boot is over.
///
/// # Errors
/// Where the records cannot be read, or somebody else tells all the time.
pub(crate) fn run(asked_by: &str) -> Result<(), Error> {
    must_be_root()?;
    if asked_by == BOOTED {
        stopped::name(&mut Session::with(Linux::for_looking()), || false);
        return Ok(());
    }
    let abandoned = asked_by.split_once(ABANDONED).and_then(|(_, vmid)| vmid.parse().ok());
    let mut host = Session::with(Linux::for_looking());
    let guard = Store::at(DIR).lock("tell", PATIENCE);
    let _guard = guard.map_err(|e| Error::io("waiting for another run that tells", std::io::Error::other(e)))?;
    // Read with the lock, so that nobody tells of what was before.
    let (records, _) = host.load(None)?;
    let past = host.kernel.past().map_err(|why| warn!("{why}")).ok();
    let news = News::of(&records, past.as_deref().unwrap_or_default(), abandoned);
    // What is at hand first: a mail server that does not answer holds up nothing else.
    if let Ok(news) = &news {
        say(&news.fresh);
    }
    if let Some(path) = settings(&host, None).metrics.0
        && let Err(why) = write_metrics(&mut host, &path, &records, past.as_deref())
    {
        warn!("the metrics were not written to {}: {why}", foreign(&path));
    }
    news?.send(&host);
    Ok(())
}

/// What there is to be told.
struct News {
    told: Told,
    fresh: Vec<Event>,
    /// In the journal already, and taken by nobody.
    unsent: Vec<Event>,
}

impl News {
    /// It counts as told from here on: a mail server that ends us is not to have the same again and again.
    fn of(records: &[Record], past: &[Handoff], abandoned: Option<VmId>) -> Result<News, Error> {
        let dir = Path::new(DIR);
        let mut told = Told::read(dir).unwrap_or_else(|why| {
            warn!("what was told already is not known: {why}");
            Told::default()
        });
        let boot = this_boot()?;
        let now = events(&Seen {
            records,
            past,
            boot: &boot,
            abandoned,
        });
        let unsent = told.unsent(&now);
        let fresh = told.news(now);
        let news = News { told, fresh, unsent };
        if !news.is_empty() {
            news.write();
        }
        Ok(news)
    }

    fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.unsent.is_empty()
    }

    fn write(&self) {
        if let Err(why) = self.told.write(Path::new(DIR)) {
            warn!("what is told cannot be written down, and may be told again: {why}");
        }
    }

    fn send(mut self, host: &Session) {
        if self.is_empty() {
            return;
        }
        let name = host.root.line("/proc/sys/kernel/hostname").unwrap_or_default();
        let is_off = |event: &Event| settings(host, event.vmid).notify == Notify::Off;
        let mut sink = Host {
            root: host.root.clone(),
        };
        let refused = send(self.unsent.iter().chain(&self.fresh), &name, is_off, &mut sink);
        for event in &refused {
            self.told.refused(event);
        }
        if !refused.is_empty() {
            self.write();
        }
    }
}

/// The settings for a VM, or those for all; the defaults, where they are not understood.
fn settings(host: &Session, vmid: Option<VmId>) -> Settings {
    file::load(&host.root, vmid).unwrap_or_else(|why| {
        warn!("the settings count as their defaults here: {why}");
        Settings::default()
    })
}

fn write_metrics(host: &mut Session, path: &str, records: &[Record], past: Option<&[Handoff]>) -> Result<(), String> {
    // Counters that begin anew would say that there was nothing.
    let past = past.ok_or("the history could not be read, and those of before stay")?;
    let path = Path::new(path);
    if !path.parent().is_some_and(Path::is_dir) {
        return Err("its folder is not there".to_owned());
    }
    // Without an answer there is what the records say.
    let snapshot = host.look(records).unwrap_or_else(|why| {
        warn!("the metrics are of lent GPUs alone: {}", chain(why));
        Snapshot::default()
    });
    let text = metrics::text(&metrics::Seen {
        snapshot: &snapshot,
        records,
        past,
    });
    publish(path, text.as_bytes()).map_err(|e| e.to_string())
}
