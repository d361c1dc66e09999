//! Logging: the lines people read on stderr, and the same with fields in the journal where there is one.
//!
//! Levels, from the administrator's point of view:
//! - error: the run did not do what was asked; the last line, a sentence with a hint.
//! - warn: something went wrong that the run could deal with, or that needs a look later.
//! - info: what was done, to which device, how long it took. What a task log should show, no more.
//! - debug: why it was decided so (`-v`).
//!
//! On stderr a line is the message alone. In the journal it carries VMID, PHASE, DEVICE, DURATION_USEC and
//! MESSAGE_ID (`journalctl -t gpu-handoff -o verbose`).

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// A handoff to vfio-pci is complete.
pub const MESSAGE_OUT: &str = "5a1d8f0a4a0c4d0f9d3d6b8c1f5e7a21";
/// The devices are home.
pub const MESSAGE_HOME: &str = "0f5b6c1e2d7a4b38b1a9e4d3c2f60817";
/// A run was refused; nothing was changed.
pub const MESSAGE_REFUSED: &str = "c3e9a7d45b1f4c62a8d07e6f9b2c1d53";
/// A run failed.
pub const MESSAGE_FAILED: &str = "7b2d4e6f8a904c1db3e5f70a1c2d3e4f";

/// Installs both layers. The journal layer is left out where no journald listens.
pub fn init(level: LevelFilter) {
    let stderr = (!stderr_is_journal())
        .then(tracing_subscriber::fmt::layer)
        .map(|layer| {
            layer
                .event_format(Lines)
                .with_writer(std::io::stderr)
                .log_internal_errors(false)
                .with_filter(level)
        });
    let journal = tracing_journald::layer().ok().map(|layer| {
        layer
            .with_syslog_identifier("gpu-handoff".to_owned())
            .with_field_prefix(None)
            .with_filter(LevelFilter::DEBUG)
    });
    // Only a second call could fail, and main makes one.
    let _ = tracing_subscriber::registry().with(stderr).with(journal).try_init();
}

/// Whether stderr leads to the journal, as in a unit: each line would be there twice (systemd.exec(5), $JOURNAL_STREAM).
fn stderr_is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let stat = rustix::fs::fstat(std::io::stderr());
    stat.is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// A line is its message, with a word before it where it is bad news.
struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut message = Message(String::new());
        event.record(&mut message);
        let word = match *event.metadata().level() {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            _ => "",
        };
        writeln!(writer, "gpu-handoff: {word}{}", message.0)
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
