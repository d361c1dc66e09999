//! Metrics for node_exporter's textfile collector: the table of them, and their text; pure.
//!
//! The text is OpenMetrics (prometheus/OpenMetrics, specification/OpenMetrics.md) and, with the same samples, the text format
//! 0.0.4 that node_exporter reads: to that one the last line is a comment, and a counter, whose samples have a name that is
//! longer by `_total` than the one in its TYPE line, has no type (prometheus/common, expfmt/text_parse.go).

use std::collections::{BTreeMap, BTreeSet};

use crate::base::pci::PciAddr;
use crate::base::sets::IntoSet as _;
use crate::host::snapshot::{Snapshot, card};
use crate::model::plan::Direction;
use crate::model::record::{Record, State};
use crate::output::card_state::{CardState, OnRecord};
use crate::state::history::{Counts, Handoff};

/// A metric: what is said of it, and its samples.
#[derive(Debug)]
pub struct Metric {
    /// Its name; a counter's samples have `_total` behind it.
    pub name: &'static str,
    /// "gauge" or "counter".
    pub kind: &'static str,
    /// What it is, in a line without a backslash.
    pub help: &'static str,
    samples: fn(&Seen<'_>) -> Vec<Sample>,
}

/// What metrics are read from.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The host; nothing, where it could not be read.
    pub snapshot: &'a Snapshot,
    /// The records of this boot.
    pub records: &'a [Record],
    /// Past handoffs, the oldest first.
    pub past: &'a [Handoff],
}

/// Labels, and a value as it is written.
type Sample = (Vec<(&'static str, String)>, String);

/// All metrics.
pub static METRICS: &[Metric] = &[
    Metric {
        name: "gpu_handoff_gpu_holder",
        kind: "gauge",
        help: "1 for who has the GPU: host, a VM, by hand, or vfio-pci without a handoff.",
        samples: |seen| gpus(seen).map(|gpu| (gpu.labels(), "1".to_owned())).collect(),
    },
    Metric {
        name: "gpu_handoff_gpu_holder_since_timestamp_seconds",
        kind: "gauge",
        help: "When the handoff ended that gave it the GPU; none where that is not known.",
        samples: |seen| {
            let since = gpus(seen).filter_map(|gpu| Some((gpu.labels(), gpu.since(seen)?)));
            since.collect()
        },
    },
    Metric {
        name: "gpu_handoff_gpu_stranded",
        kind: "gauge",
        help: "Whether an act on the GPU failed and could not be undone.",
        samples: |seen| gpus(seen).map(|gpu| (gpu.alone(), flag(gpu.stranded))).collect(),
    },
    Metric {
        name: "gpu_handoff_gpu_wedged",
        kind: "gauge",
        help: "Whether a call on the GPU is stuck in the kernel.",
        samples: |seen| gpus(seen).map(|gpu| (gpu.alone(), flag(gpu.wedged))).collect(),
    },
    Metric {
        name: "gpu_handoff_handoffs",
        kind: "counter",
        help: "Handoffs that were begun, by direction and result.",
        samples: |seen| {
            let counts = Counts::of(seen.past);
            let sample = |direction, result: &str, count: u64| {
                (vec![of(direction), ("result", result.to_owned())], count.to_string())
            };
            vec![
                sample(Direction::Out, "done", counts.out_done),
                sample(Direction::Out, "failed", counts.out_failed),
                sample(Direction::Home, "done", counts.home_done),
                sample(Direction::Home, "failed", counts.home_failed),
            ]
        },
    },
    Metric {
        name: "gpu_handoff_last_handoff_timestamp_seconds",
        kind: "gauge",
        help: "When the last handoff in a direction began.",
        samples: |seen| {
            last(seen)
                .map(|h| (vec![of(h.direction)], h.time.to_string()))
                .collect()
        },
    },
    Metric {
        name: "gpu_handoff_last_handoff_failed",
        kind: "gauge",
        help: "Whether the last handoff in a direction failed.",
        samples: |seen| {
            last(seen)
                .map(|h| (vec![of(h.direction)], flag(!h.is_done())))
                .collect()
        },
    },
    Metric {
        name: "gpu_handoff_last_handoff_duration_seconds",
        kind: "gauge",
        help: "How long the last handoff in a direction took.",
        samples: |seen| {
            last(seen)
                .map(|h| (vec![of(h.direction)], seconds(h.took_ms)))
                .collect()
        },
    },
    Metric {
        name: "gpu_handoff_last_handoff_step_duration_seconds",
        kind: "gauge",
        help: "How long each step of the last handoff in a direction took.",
        samples: |seen| last(seen).flat_map(steps).collect(),
    },
];

/// The text of all metrics.
pub fn text(seen: &Seen<'_>) -> String {
    let mut text = String::new();
    for Metric {
        name,
        kind,
        help,
        samples,
    } in METRICS
    {
        let samples = samples(seen);
        if samples.is_empty() {
            continue;
        }
        text += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        let suffix = if *kind == "counter" { "_total" } else { "" };
        for (labels, value) in samples {
            let labels: Vec<String> = labels
                .iter()
                .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
                .collect();
            text += &format!("{name}{suffix}{{{}}} {value}\n", labels.join(","));
        }
    }
    text + "# EOF\n"
}

/// The value of a label (OpenMetrics, ABNF, escaped-string; the same in 0.0.4).
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn flag(is: bool) -> String {
    u8::from(is).to_string()
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

fn of(direction: Direction) -> (&'static str, String) {
    let word = match direction {
        Direction::Out => "out",
        Direction::Home => "home",
    };
    ("direction", word.to_owned())
}

/// A GPU, and who has it.
struct Gpu {
    addr: PciAddr,
    holder: String,
    lent: bool,
    stranded: bool,
    wedged: bool,
}

impl Gpu {
    fn alone(&self) -> Vec<(&'static str, String)> {
        vec![("gpu", self.addr.to_string())]
    }

    fn labels(&self) -> Vec<(&'static str, String)> {
        vec![("gpu", self.addr.to_string()), ("holder", self.holder.clone())]
    }

    /// When the last handoff ended, where it was the one that has led to this.
    fn since(&self, seen: &Seen<'_>) -> Option<String> {
        let slot = self.addr.slot().to_string();
        let mut of_it = seen
            .past
            .iter()
            .rev()
            .filter(|h| h.is_done() && h.cards.contains(&slot));
        let last = of_it.next()?;
        let is_it = (last.direction == Direction::Out) == self.lent;
        is_it.then(|| (last.time + last.took_ms / 1000).to_string())
    }
}

/// Every GPU: those that are there, and those that are on record and are not.
fn gpus<'a>(seen: &Seen<'a>) -> impl Iterator<Item = Gpu> + use<'a> {
    let Seen { snapshot, records, .. } = *seen;
    let there = snapshot.gpus().map(|f| f.addr);
    let taken = records.iter().flat_map(|r| &r.taken);
    let on_record = taken.filter(|t| t.driver.as_deref() == Some("nvidia")).map(|t| t.addr);
    let addrs: BTreeSet<PciAddr> = there.chain(on_record).into_set();
    addrs.into_iter().map(move |addr| {
        let card: Vec<PciAddr> = card(snapshot, addr).into_iter().chain([addr]).collect();
        let record = records.iter().find(|r| r.has(addr));
        let on_record = OnRecord {
            addrs: &card,
            record,
            beside: None,
            records,
        };
        let (state, vmid) = on_record.state(snapshot);
        let holder = match (record, vmid, state) {
            (Some(record), _, _) => record.owner.to_string(),
            (None, Some(vmid), _) => format!("VM {vmid}"),
            (None, None, CardState::Nobody) => "vfio-pci".to_owned(),
            (None, None, _) => "host".to_owned(),
        };
        let wedged = matches!(state, CardState::Wedged | CardState::Stuck);
        Gpu {
            addr,
            lent: record.is_some(),
            holder,
            stranded: !wedged && record.is_some_and(|r| r.state == State::Stranded && r.at_work.is_none()),
            wedged,
        }
    })
}

/// The last handoff in each direction.
fn last<'a>(seen: &Seen<'a>) -> impl Iterator<Item = &'a Handoff> + use<'a> {
    let past = seen.past;
    [Direction::Out, Direction::Home]
        .into_iter()
        .filter_map(move |direction| past.iter().rev().find(|h| h.direction == direction))
}

/// The steps of a handoff; the times of those that are called the same, an undo's and a second try's, are added.
fn steps(handoff: &Handoff) -> Vec<Sample> {
    let mut steps: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for act in &handoff.acts {
        let device = act.text.subject.as_deref().unwrap_or_default();
        *steps.entry((device, &act.text.verb)).or_default() += act.took_ms;
    }
    let sample = |((device, step), ms): ((&str, &str), u64)| {
        let labels = vec![
            of(handoff.direction),
            ("device", device.to_owned()),
            ("step", step.to_owned()),
        ];
        (labels, seconds(ms))
    };
    steps.into_iter().map(sample).collect()
}
