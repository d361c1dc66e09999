//! Reading the settings: /etc/gpu-handoff/config.toml and conf.d/*.toml, every key optional, with a section per VM. A file
//! of conf.d that is called by a VM's number, as conf.d/111.toml, is such a section by itself.
//!
//! ```toml
//! on-backup = "if-free"
//! [deadlines]              # seconds
//! way-out = 60
//! [vm.111]                 # the same keys again, for one VM
//! on-backup = "handoff"
//! deadlines.way-out = 90
//! ```
//!
//! A key or value that is not understood is an error with its file and line, and refuses the way out. The way home
//! never reads these files.

use std::borrow::Cow;
use std::io;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::base::root::Root;
use crate::base::text::foreign;
use crate::base::vmid::VmId;
use crate::settings::known_gpus::Fact;
use crate::settings::reset::Reset;
use crate::settings::table::{self, DEVICE, KEYS};
use crate::settings::values::Settings;

/// The directory of our settings.
const DIR: &str = "/etc/gpu-handoff";

/// The file of settings of one VM alone.
pub fn of_vm(vmid: VmId) -> String {
    format!("{DIR}/conf.d/{vmid}.toml")
}

/// The VM whose own file it is.
fn whose(path: &str) -> Option<VmId> {
    let name = path.strip_prefix(DIR)?.strip_prefix("/conf.d/")?;
    name.strip_suffix(".toml")?.parse().ok()
}

/// Something in the settings that is not understood, or cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}{}", .hint.as_ref().map(|hint| format!(". Hint: {hint}")).unwrap_or_default())]
pub struct NotUnderstood {
    /// What, with its file and line, as a sentence.
    pub what: String,
    /// What the user can do, where that is more than to correct the line.
    pub hint: Option<String>,
}

impl From<String> for NotUnderstood {
    fn from(what: String) -> Self {
        NotUnderstood { what, hint: None }
    }
}

/// Reads the settings for a VM, or those of no VM in particular: config.toml, then conf.d in the order of the names;
/// of a key given twice the later one counts, a VM's section counts more than the rest, and its own file most.
///
/// # Errors
/// A sentence for the first thing that is not understood, with its file and line.
pub fn load(root: &Root, vmid: Option<VmId>) -> Result<Settings, NotUnderstood> {
    let mut files = vec![format!("{DIR}/config.toml")];
    let more = root.names(format!("{DIR}/conf.d"));
    let more = more.map_err(|e| format!("{DIR}/conf.d cannot be read: {e}"))?;
    files.extend(
        more.iter()
            .filter(|n| n.ends_with(".toml"))
            .map(|n| format!("{DIR}/conf.d/{n}")),
    );
    let mut all = Vec::new();
    for path in files {
        match root.text(&path) {
            Ok(text) => all.push((path, text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(format!("{path} cannot be read: {e}").into()),
        }
    }
    let mut settings = Settings::default();
    let (mut own, mut last) = (Vec::new(), Vec::new());
    for (path, text) in &all {
        let file = File { path, text };
        let table = DeTable::parse(text).map_err(|e| file.error(e.span().unwrap_or(0..0).start, e.message()))?;
        match whose(path) {
            None => file.apply(&mut settings, table.get_ref(), "", vmid, &mut own)?,
            Some(id) => file.of_one(table.get_ref(), Some(id) == vmid, &mut last)?,
        }
    }
    for (key, value, at) in own.into_iter().chain(last) {
        settings
            .set(&key, &value)
            .map_err(|why| format!("{at}: {key}: {why}"))?;
        settings.origins.insert(key, at);
    }
    Ok(settings)
}

struct File<'a> {
    path: &'a str,
    text: &'a str,
}

/// A key of a VM's own section, its value, and where it stands.
type Own<'a> = (String, DeValue<'a>, String);

/// A key as it is written, and its value.
type Line<'l, 'a> = (&'l Spanned<Cow<'a, str>>, &'l DeValue<'a>);

impl<'a> File<'a> {
    fn at(&self, offset: usize) -> String {
        let before = self.text.get(..offset).unwrap_or(self.text);
        format!("{}:{}", self.path, 1 + before.matches('\n').count())
    }

    fn error(&self, offset: usize, why: &str) -> NotUnderstood {
        format!("{}: {}", self.at(offset), crate::base::text::one_line(why)).into()
    }

    /// Applies a table; what belongs to the VM is only collected, to count more than what other files say to all.
    /// Sections of other VMs are checked too: an error in one is not to come out on the night that VM starts.
    fn apply(
        &self,
        settings: &mut Settings,
        table: &DeTable<'a>,
        prefix: &str,
        vmid: Option<VmId>,
        own: &mut Vec<Own<'a>>,
    ) -> Result<(), NotUnderstood> {
        for (name, value) in table {
            let key = format!("{prefix}{}", name.get_ref());
            match value.get_ref() {
                DeValue::Array(devices) if key == "device" => {
                    for device in devices {
                        settings.facts.push(self.device(device)?);
                    }
                }
                DeValue::Table(vms) if key == "vm" => self.vms(vms, vmid, own)?,
                DeValue::Table(inner) if table::is_section(&key) => {
                    self.apply(settings, inner, &format!("{key}."), vmid, own)?;
                }
                value => {
                    let start = name.span().start;
                    if table::row(&key).is_none() {
                        let keys: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
                        return Err(self.unknown(prefix, (name, value), &key, &keys));
                    }
                    settings
                        .set(&key, value)
                        .map_err(|why| self.error(start, &format!("{key}: {why}")))?;
                    settings.origins.insert(key, self.at(start));
                }
            }
        }
        Ok(())
    }

    /// A `[[device]]` section: one more row of [`crate::settings::known_gpus`].
    fn device(&self, section: &Spanned<DeValue<'a>>) -> Result<Fact, NotUnderstood> {
        let device_keys: Vec<&str> = DEVICE.iter().map(|key| key.name).collect();
        let start = section.span().start;
        let DeValue::Table(table) = section.get_ref() else {
            return Err(self.error(start, "device must be a section, [[device]]"));
        };
        let mut fact = Fact {
            first: 1,
            last: 0,
            note: "as the settings say".to_owned(),
            reset: None,
            d3cold: None,
        };
        for (name, value) in table {
            let wrong =
                |why: &str| self.error(name.span().start, &format!("device.{}: {why}", foreign(name.get_ref())));
            match (name.get_ref().as_ref(), value.get_ref()) {
                ("ids", DeValue::String(text)) => {
                    let ids =
                        device_ids(text).ok_or_else(|| wrong("it must be ids such as \"2b85\" or \"2b80-2bff\""))?;
                    (fact.first, fact.last) = ids;
                }
                ("note", DeValue::String(text)) => fact.note = foreign(text),
                ("reset", value) => match Reset::read(value).map_err(|why| wrong(&why))? {
                    Reset::By(methods) => fact.reset = Some(methods),
                    _ => return Err(wrong("it must be reset methods")),
                },
                ("d3cold", DeValue::Boolean(allowed)) => fact.d3cold = Some(*allowed),
                (key, _) if device_keys.contains(&key) => return Err(wrong("it is of another type")),
                (key, value) => return Err(self.unknown("device", (name, value), key, &device_keys)),
            }
        }
        if fact.first > fact.last {
            return Err(self.error(start, "a [[device]] section needs 'ids'"));
        }
        Ok(fact)
    }

    fn vms(&self, vms: &DeTable<'a>, vmid: Option<VmId>, own: &mut Vec<Own<'a>>) -> Result<(), NotUnderstood> {
        for (name, value) in vms {
            let start = name.span().start;
            let DeValue::Table(table) = value.get_ref() else {
                return Err(self.error(start, &format!("vm.{} must be a section", foreign(name.get_ref()))));
            };
            let id = name.get_ref().parse::<VmId>();
            let id = id.map_err(|_| self.error(start, &format!("'{}' is not a VM id", foreign(name.get_ref()))))?;
            self.of_one(table, Some(id) == vmid, own)?;
        }
        Ok(())
    }

    /// The settings of one VM, checked whichever that is; collected where it is the one that is asked about.
    fn of_one(&self, table: &DeTable<'a>, is_asked: bool, own: &mut Vec<Own<'a>>) -> Result<(), NotUnderstood> {
        let for_all = |name: &&Spanned<Cow<'_, str>>| ["vm", "device"].contains(&name.get_ref().as_ref());
        if let Some(name) = table.keys().find(for_all) {
            let why = format!("{}: it cannot be set for one VM alone", name.get_ref());
            return Err(self.error(name.span().start, &why));
        }
        self.apply(&mut Settings::default(), table, "", None, &mut Vec::new())?;
        if is_asked {
            self.collect(table, "", own);
        }
        Ok(())
    }

    fn collect(&self, table: &DeTable<'a>, prefix: &str, own: &mut Vec<Own<'a>>) {
        for (name, value) in table {
            let key = format!("{prefix}{}", name.get_ref());
            match value.get_ref() {
                DeValue::Table(inner) => self.collect(inner, &format!("{key}."), own),
                value => own.push((key, value.clone(), self.at(name.span().start))),
            }
        }
    }

    /// A key that is none of these. `prefix`: its section, whether with a dot behind it or not.
    fn unknown(&self, prefix: &str, line: Line<'_, 'a>, key: &str, keys: &[&str]) -> NotUnderstood {
        let (name, value) = line;
        let is_setting = || Settings::default().set(name.get_ref(), value).is_ok();
        let hint = match self.first_heading(prefix, name.span().start) {
            // Added at the end of a file, where it was forgotten that the last section goes on.
            Some(first) if is_setting() => {
                format!(
                    "it stands in a section; put '{}' above the line '{first}'",
                    name.get_ref()
                )
            }
            _ => {
                let nearest = keys.iter().min_by_key(|k| distance(k, key)).unwrap_or(&keys[0]);
                format!("the nearest one is '{nearest}'")
            }
        };
        NotUnderstood {
            hint: Some(hint),
            ..self.error(name.span().start, &format!("there is no setting '{}'", foreign(key)))
        }
    }

    /// The first heading of the file, if what stands at this place is below the heading of this section: no section is above it.
    /// Elsewhere the section is a part of the key, as it is written.
    fn first_heading(&self, prefix: &str, offset: usize) -> Option<String> {
        let before = self.text.get(..offset)?.lines().map(str::trim);
        let headings: Vec<&str> = before.filter(|line| line.starts_with('[')).collect();
        let (first, last) = (headings.first()?, headings.last()?);
        let brackets = first.len() - first.trim_start_matches('[').len();
        let name = foreign(heading_of(first));
        let is_its = heading_of(last) == prefix.trim_end_matches('.');
        is_its.then(|| format!("{}{name}{}", "[".repeat(brackets), "]".repeat(brackets)))
    }
}

/// What a line that is a section's heading calls it.
fn heading_of(line: &str) -> &str {
    line.trim_start_matches('[')
        .split(']')
        .next()
        .unwrap_or_default()
        .trim()
}

/// One device id or a range of them, hexadecimal.
fn device_ids(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let id = |text: &str| u16::from_str_radix(text.trim(), 16).ok();
    let (first, last) = (id(first)?, id(last)?);
    (first <= last).then_some((first, last))
}

/// How many letters have to be changed, added or removed to make one word of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    use crate::settings::known_gpus;
    use crate::settings::values::OnBackup;
    fn load_files(files: &[(&str, &str)], vmid: Option<&str>) -> Result<Settings, NotUnderstood> {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("etc/gpu-handoff");
        std::fs::create_dir_all(base.join("conf.d")).unwrap();
        for (name, text) in files {
            std::fs::write(base.join(name), text).unwrap();
        }
        load(&Root::at(dir.path()), vmid.map(|v| v.parse().unwrap()))
    }

    #[test]
    fn no_file_is_all_defaults() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(&Root::at(dir.path()), None).unwrap(), Settings::default());
    }

    #[test]
    fn a_vms_own_section_counts_more_than_any_file() {
        let files = [
            (
                "config.toml",
                "on-backup = \"refuse\"\n[vm.111]\non-backup = \"handoff\"\n",
            ),
            (
                "conf.d/50-more.toml",
                "on-backup = \"if-free\"\n\n[deadlines]\nway-out = 90\n",
            ),
        ];
        let settings = load_files(&files, Some("111")).unwrap();
        assert_eq!(settings.on_backup, OnBackup::Handoff);
        assert_eq!(settings.budgets.way_out, Duration::from_secs(90));
        assert_eq!(settings.origins["on-backup"], "/etc/gpu-handoff/config.toml:3");
        assert_eq!(
            settings.origins["deadlines.way-out"],
            "/etc/gpu-handoff/conf.d/50-more.toml:4"
        );
        let others = load_files(&files, Some("112")).unwrap();
        assert_eq!(others.on_backup, OnBackup::IfFree);
        assert_eq!(
            others.listed()[0],
            (
                "on-backup",
                "if-free".to_owned(),
                "/etc/gpu-handoff/conf.d/50-more.toml:1"
            )
        );
    }

    #[test]
    fn a_file_called_by_a_vms_number_is_of_that_vm_alone_and_counts_most() {
        let files = [
            (
                "config.toml",
                "services = \"a\"\n[vm.111]\nservices = \"b\"\nway = \"unbind\"\n",
            ),
            ("conf.d/111.toml", "\nservices = \"c\"\ndeadlines.unit = 9\n"),
            ("conf.d/50-more.toml", "[vm.111]\nservices = \"d\"\n"),
        ];
        let (own, others) = (load_files(&files, Some("111")), load_files(&files, Some("112")));
        let own = own.unwrap();
        assert!(own.services.names("c.service"), "{:?}", own.services);
        assert_eq!(own.origins["services"], "/etc/gpu-handoff/conf.d/111.toml:2");
        assert_eq!(own.origins["way"], "/etc/gpu-handoff/config.toml:4");
        assert_eq!(own.budgets.unit, Duration::from_secs(9));
        assert!(others.unwrap().services.names("a.service"));
        assert!(load_files(&files, None).unwrap().services.names("a.service"));
        // One of another VM is not to come out on the night that VM starts.
        for (text, message) in [
            (
                "\nservice = \"x\"\n",
                "2: there is no setting 'service'. Hint: the nearest one is 'services'",
            ),
            ("[vm.112]\n", "1: vm: it cannot be set for one VM alone"),
            (
                "[[device]]\nids = \"2b85\"\n",
                "1: device: it cannot be set for one VM alone",
            ),
        ] {
            let error = load_files(&[("conf.d/112.toml", text)], Some("111")).unwrap_err();
            assert_eq!(error.to_string(), format!("/etc/gpu-handoff/conf.d/112.toml:{message}"));
        }
    }

    #[test]
    fn who_is_stopped_or_ended_may_be_said_of_one_vm_alone() {
        let text = "services = \"a\"\ncontainers = \"release\"\n[vm.111]\nservices = \"refuse\"\ncontainers = \"shutdown\"\n\
                    ha-containers = \"stop\"\nprocesses = \"kill\"\ndisplay-manager = \"stop\"\n";
        let of = |vmid| {
            let settings = load_files(&[("config.toml", text)], vmid).unwrap();
            let names = [
                "services",
                "containers",
                "ha-containers",
                "processes",
                "display-manager",
            ];
            let listed = settings.listed();
            let value = |name| {
                listed
                    .iter()
                    .find(|(one, ..)| *one == name)
                    .map(|(_, value, _)| value.clone())
            };
            names.map(|name| value(name).unwrap())
        };
        assert_eq!(of(Some("111")), ["refuse", "shutdown", "stop", "kill", "stop"]);
        for others in [Some("112"), None] {
            assert_eq!(
                of(others),
                ["a.service", "release", "refuse", "refuse", "refuse"],
                "{others:?}"
            );
        }
    }

    #[test]
    fn a_device_section_adds_to_what_is_known() {
        let text =
            "reset = \"bus flr\"\n[[device]]\nids = \"2204\"\nreset = \"bus\"\nd3cold = false\nnote = \"mine\"\n";
        let settings = load_files(&[("config.toml", text)], None).unwrap();
        assert_eq!(settings.reset, Reset::By("bus flr".to_owned()));
        let mine = Fact {
            first: 0x2204,
            last: 0x2204,
            note: "mine".to_owned(),
            reset: Some("bus".to_owned()),
            d3cold: Some(false),
        };
        assert_eq!(settings.facts.last(), Some(&mine));
        assert_eq!(settings.facts.len(), known_gpus::known().len() + 1);
    }

    #[test]
    fn what_is_not_understood_is_named_with_file_line_and_the_nearest_key() {
        for (text, message) in [
            (
                "\non-bakup = \"refuse\"\n",
                "config.toml:2: there is no setting 'on-bakup'. Hint: the nearest one is 'on-backup'",
            ),
            (
                "[deadlines]\nwayout = 3\n",
                "config.toml:2: there is no setting 'deadlines.wayout'. Hint: the nearest one is 'deadlines.way-out'",
            ),
            (
                "gate = \"off\"\n[deadlines] # seconds\nlook = 3\ncontainers = \"release\"\n",
                "config.toml:4: there is no setting 'deadlines.containers'. Hint: it stands in a section; put 'containers' \
                 above the line '[deadlines]'",
            ),
            (
                "[[device]]\nids = \"2b85\"\n[deadlines]\nservices = \"ollama\"\n",
                "config.toml:4: there is no setting 'deadlines.services'. Hint: it stands in a section; put 'services' above \
                 the line '[[device]]'",
            ),
            (
                "[[device]]\nids = \"2b85\"\nnotify = \"off\"\n",
                "config.toml:3: there is no setting 'notify'. Hint: it stands in a section; put 'notify' above the line \
                 '[[device]]'",
            ),
            // It is no value of the other one's.
            (
                "[deadlines]\ncontainers = 40\n",
                "config.toml:2: there is no setting 'deadlines.containers'. Hint: the nearest one is 'deadlines.container'",
            ),
            // No section begins here.
            (
                "deadlines.containers = \"release\"\n",
                "config.toml:1: there is no setting 'deadlines.containers'. Hint: the nearest one is 'deadlines.container'",
            ),
            (
                "on-backup = 7\n",
                "config.toml:1: on-backup: it must be \"if-free\", \"handoff\" or \"refuse\"",
            ),
            (
                "deadlines.load = 0\n",
                "config.toml:1: deadlines.load: it must be a whole number of seconds from 1 to 86400",
            ),
            (
                "deadlines.load = \"5\"\n",
                "config.toml:1: deadlines.load: it must be a whole number of seconds from 1 to 86400",
            ),
            ("[vm.99]\n", "config.toml:1: '99' is not a VM id"),
            (
                "[[vm.111.device]]\nids = \"2b85\"\n",
                "config.toml:1: device: it cannot be set for one VM alone",
            ),
            ("[vm]\n111 = 5\n", "config.toml:2: vm.111 must be a section"),
            (
                "[vm.112]\nx = 1\n",
                "config.toml:2: there is no setting 'x'. Hint: the nearest one is 'way'",
            ),
            (
                "way = \"unlod\"\n",
                "config.toml:1: way: it must be \"auto\", \"unload\" or \"unbind\"",
            ),
            (
                "reset = \"flr fast\"\n",
                "config.toml:1: reset: it must be \"auto\", \"never\", or methods out of: device_specific acpi flr af_flr \
                 pm bus cxl_bus",
            ),
            (
                "[[device]]\nnote = \"x\"\n",
                "config.toml:1: a [[device]] section needs 'ids'",
            ),
            (
                "[[device]]\nids = \"2bff-2b80\"\n",
                "config.toml:2: device.ids: it must be ids such as \"2b85\" or \"2b80-2bff\"",
            ),
            (
                "[[device]]\nid = \"2b80\"\n",
                "config.toml:2: there is no setting 'id'. Hint: the nearest one is 'ids'",
            ),
        ] {
            let error = load_files(&[("config.toml", text)], Some("111")).unwrap_err();
            assert_eq!(error.to_string(), format!("/etc/gpu-handoff/{message}"), "{text:?}");
        }
        let error = load_files(&[("config.toml", "on-bakup = 1\n")], None).unwrap_err();
        let nearest = NotUnderstood {
            what: "/etc/gpu-handoff/config.toml:1: there is no setting 'on-bakup'".to_owned(),
            hint: Some("the nearest one is 'on-backup'".to_owned()),
        };
        assert_eq!(error, nearest);
        let error = load_files(&[("config.toml", "a = = 1\n")], None).unwrap_err();
        assert!(error.what.starts_with("/etc/gpu-handoff/config.toml:1: "), "{error}");
    }
}
