//! What is said to people who are not at the screen, and to monitoring.

use toml::de::DeValue;

use crate::base::text::foreign;
use crate::settings::kinds::{Choice, Value};

/// Whether messages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// By Proxmox's notifications, or by mail to root.
    Auto,
    /// None.
    Off,
}

impl Choice for Notify {
    const WORDS: &'static [(Self, &'static str, &'static str)] = &[
        (
            Notify::Auto,
            "auto",
            "through Proxmox's own notifications, where a matcher can tell them by 'type' \"gpu-handoff\"; on a host without \
             them, by mail to root.",
        ),
        (Notify::Off, "off", "none. The journal has the same lines."),
    ];
}

/// The file that metrics are written to; None: they are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics(pub Option<String>);

/// What ends the name of each file that node_exporter reads (node_exporter, collector/textfile.go).
const SUFFIX: &str = ".prom";

impl Value for Metrics {
    fn take(&mut self, value: &DeValue<'_>) -> Option<()> {
        let DeValue::String(text) = value else { return None };
        let is_path = text.starts_with('/') && text.ends_with(SUFFIX) && !text.ends_with("/.prom");
        let is_plain = !text.contains(char::is_control) && !text.split('/').any(|part| part == "..");
        self.0 = match text.as_ref() {
            "off" => None,
            path if is_path && is_plain => Some(path.to_owned()),
            _ => return None,
        };
        Some(())
    }

    fn allowed(&self) -> String {
        "\"off\", or the absolute path of a file that ends in .prom".to_owned()
    }

    fn shown(&self) -> String {
        self.0.as_deref().map_or("off".to_owned(), foreign)
    }

    fn toml(&self) -> String {
        format!("\"{}\"", self.0.as_deref().unwrap_or("off"))
    }

    fn words(&self) -> Vec<(&'static str, String)> {
        let words = [
            ("off", "no file is written."),
            (
                "/var/lib/prometheus/node-exporter/gpu-handoff.prom",
                "this file. Debian's node_exporter reads all that end in .prom in that folder; it must be there.",
            ),
        ];
        words.map(|(word, means)| (word, means.to_owned())).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_go_to_an_absolute_path_that_node_exporter_reads() {
        for (text, taken) in [
            ("off", Some(None)),
            ("/var/lib/x/gpu.prom", Some(Some("/var/lib/x/gpu.prom"))),
            ("gpu.prom", None),
            ("/var/lib/x/gpu.txt", None),
            ("/var/lib/x/.prom", None),
            ("/var/lib/x/../gpu.prom", None),
            ("/var/lib/x\n/gpu.prom", None),
            ("", None),
        ] {
            let mut value = Metrics(Some("/before.prom".to_owned()));
            let done = value.take(&DeValue::String(text.into()));
            assert_eq!(done.map(|()| value.0.as_deref()), taken, "{text:?}");
        }
    }
}
