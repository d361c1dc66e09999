//! A host that is a tree of files, with a qm and a pct that edit its configs, and somebody who answers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::time::Duration;

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::base::root::Root;
use gpu_handoff::base::vmid::VmId;
use gpu_handoff::check::facts::Facts;
use gpu_handoff::check::read::{Part, read};
use gpu_handoff::check::texts::Texts;
use gpu_handoff::commands::cli::{Command, Request, parse};
use gpu_handoff::commands::guests::Host;
use gpu_handoff::commands::{attach, detach};
use gpu_handoff::host::belongs::Belongs;
use gpu_handoff::host::holders::Holder;
use gpu_handoff::host::nodes::Node;
use gpu_handoff::host::snapshot::Snapshot;
use gpu_handoff::host::unit_states;
use gpu_handoff::host::units::Said;
use gpu_handoff::host::vms::RunningVm;
use gpu_handoff::model::error::{Error, chain};
use gpu_handoff::plan::clients;
use gpu_handoff::prepare::effects::{Attributes, Effects, Host as Files};
use gpu_handoff::settings::values::Settings;

use crate::asked;
use crate::hosts::{Ask, facts, host};

/// What a tree of files does not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// A service of the host uses the GPU.
    Service(&'static str),
    /// One of a user's systemd does.
    OfUser(u32, &'static str),
    /// A service inside a container does.
    Inside(&'static str, &'static str),
    /// Something inside a container does that is no service.
    InContainer(&'static str),
    /// The VM runs.
    Runs,
    /// It has the GPU.
    Away,
    /// Proxmox's programs fail.
    Fails,
    /// The one that is run as the so-manieth fails.
    FailsAt(usize),
    /// They say that they have failed, and have done it.
    DoneAllTheSame,
    /// They fail, and have changed something else.
    Halfway,
    /// A signal comes while they run.
    Signal,
    /// No file whose path has this can be written, or removed.
    Fixed(&'static str),
    /// While the question stands a file gets this text.
    Meanwhile(&'static str, &'static str),
    /// Nobody who looks after a unit gives an answer.
    NoAnswer,
    /// Who asks is not root.
    NotRoot,
    /// Nobody can be asked.
    NoTerminal,
}

#[derive(Debug)]
pub struct World {
    files: Files,
    tree: Tree,
    ask: Ask,
    beside: &'static [Beside],
    answers: Vec<&'static str>,
    /// Everything that was said, asked, and run.
    pub told: String,
    /// What was shown of it.
    pub shown: String,
    /// How many programs were run.
    runs: usize,
}

struct Tree(asked::Host);

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a tree of files")
    }
}

impl World {
    pub fn of(ask: Ask, beside: &'static [Beside]) -> World {
        let tree = host(&ask);
        World {
            files: Files::at(tree.root.clone()),
            tree: Tree(tree),
            ask,
            beside,
            answers: Vec::new(),
            told: String::new(),
            shown: String::new(),
            runs: 0,
        }
    }

    pub fn root(&self) -> &Root {
        &self.tree.0.root
    }

    fn is(&self, what: Beside) -> bool {
        self.beside.contains(&what)
    }

    /// Runs a command line, with these answers; what is told ends with how it ended.
    ///
    /// # Errors
    /// The exit status.
    pub fn run(&mut self, words: &str, answers: &[&'static str]) -> Result<(), u8> {
        writeln!(self.told, "$ gpu-handoff {words}").unwrap();
        self.answers = answers.to_vec();
        let args: Vec<std::ffi::OsString> = words.split(' ').map(Into::into).collect();
        let Ok(Request::Command(cli)) = parse(&args) else {
            panic!("{words}");
        };
        let ended = match &cli.command {
            Command::Attach(how) => attach::attach(self, &cli, how),
            Command::Detach(how) => detach::detach(self, &cli, how),
            other => panic!("{other:?}"),
        };
        assert!(self.answers.is_empty(), "{words}: not asked: {:?}", self.answers);
        if let Err(why) = ended {
            let exit = why.exit() as u8;
            let text = chain(why);
            writeln!(self.told, "exit {exit}: {text}").unwrap();
            return Err(exit);
        }
        Ok(())
    }

    /// The folders that a command may change, with every file's text.
    pub fn changed(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        let mut folders = ["/etc/pve/nodes", "/etc/gpu-handoff", "/var/lib/gpu-handoff"]
            .map(str::to_owned)
            .to_vec();
        while let Some(folder) = folders.pop() {
            for name in self.root().names(&folder).unwrap_or_default() {
                let path = format!("{folder}/{name}");
                match fs::metadata(self.root().path(&path)) {
                    Ok(found) if found.is_dir() => folders.push(path),
                    // A link that leads nowhere is there, too.
                    Err(_) => drop(files.insert(path, "leads nowhere\n".to_owned())),
                    Ok(_) => drop(files.insert(path.clone(), self.root().text(&path).unwrap())),
                }
            }
        }
        files
    }

    fn is_fixed(&self, file: &str) -> io::Result<()> {
        let is = |what: &Beside| matches!(what, Beside::Fixed(part) if file.contains(part));
        match self.beside.iter().any(is) {
            true => Err(io::Error::from_raw_os_error(30)),
            false => Ok(()),
        }
    }

    fn holder(&self, belongs_to: Belongs, gpu: Node) -> Holder {
        Holder {
            pid: 700,
            comm: "ollama".to_owned(),
            belongs_to,
            nodes: vec![gpu],
        }
    }

    /// `qm set` and `pct set`: settings of the current section; of a guest that runs, those that wait for its next start go
    /// elsewhere, and so does that they go.
    fn set(&self, words: &[&str]) {
        let is_vm = words[0] == "qm";
        let (folder, id) = (if is_vm { "qemu-server" } else { "lxc" }, words[2]);
        let path = self.root().path(format!("/etc/pve/{folder}/{id}.conf"));
        let text = fs::read_to_string(&path).unwrap();
        let header = if is_vm { "[PENDING]" } else { "[pve:pending]" };
        let mut sections: [BTreeMap<String, String>; 2] = Default::default();
        let (mut rest, mut at) = (String::new(), 0);
        for line in text.lines() {
            match line {
                _ if line == header => at = 1,
                _ if line.starts_with('[') || at == 2 => {
                    at = 2;
                    writeln!(rest, "{line}").unwrap();
                }
                "" => {}
                line => {
                    let (key, value) = line.split_once(':').unwrap();
                    sections[at].insert(key.to_owned(), value.trim().to_owned());
                }
            }
        }
        let [mut current, mut pending] = sections;
        let deletes = pending.remove("delete").unwrap_or_default();
        let mut deletes: Vec<String> = deletes
            .split(',')
            .filter(|d| !d.is_empty())
            .map(str::to_owned)
            .collect();
        let waits =
            |key: &str| self.is(Beside::Runs) && ["hostpci", "dev", "machine"].iter().any(|k| key.starts_with(k));
        for option in words[3..].chunks(2) {
            let (key, value) = (option[0].strip_prefix("--").unwrap(), option[1]);
            match key {
                "delete" => {
                    for key in value.split(',') {
                        let waited = pending.remove(key).is_some();
                        match current.contains_key(key) {
                            true if waits(key) => deletes.push(key.to_owned()),
                            true => drop(current.remove(key)),
                            false => assert!(waited, "{key} is not set"),
                        }
                    }
                }
                key if waits(key) => {
                    deletes.retain(|one| one != key);
                    pending.insert(key.to_owned(), value.to_owned());
                }
                key => drop(current.insert(key.to_owned(), value.to_owned())),
            }
        }
        if !deletes.is_empty() {
            pending.insert("delete".to_owned(), deletes.join(","));
        }
        let lines = |section: &BTreeMap<String, String>| -> String {
            section.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
        };
        let mut text = lines(&current);
        if !pending.is_empty() {
            text += &format!("\n{header}\n{}", lines(&pending));
        }
        if !rest.is_empty() {
            text += &format!("\n{rest}");
        }
        fs::write(path, text).unwrap();
    }
}

impl Host for World {
    fn facts(&mut self, id: Option<VmId>) -> Result<Facts, Error> {
        assert_eq!(id.map(|id| id.to_string()).as_deref(), self.ask.vm);
        self.not_interrupted()?;
        let mut facts = facts(&self.tree.0, &self.ask);
        let Some(gpu) = facts.snapshot.gpus().map(|f| f.addr).next() else {
            return Ok(facts);
        };
        for what in self.beside {
            let container = |ctid: &str, unit: Option<&str>| Belongs::Container {
                ctid: ctid.to_owned(),
                unit: unit.map(str::to_owned),
            };
            let belongs = match what {
                Beside::Service(name) => Belongs::Unit((*name).to_owned()),
                Beside::OfUser(uid, name) => Belongs::UserUnit {
                    uid: Some(*uid),
                    name: (*name).to_owned(),
                },
                Beside::Inside(ctid, unit) => container(ctid, Some(unit)),
                Beside::InContainer(ctid) => container(ctid, None),
                Beside::Runs => {
                    let process = gpu_handoff::base::process::Process { pid: 900, started: 1 };
                    let vmid: VmId = self.ask.vm.unwrap().parse().unwrap();
                    match facts.vms.iter().any(|vm| vm.vmid == vmid) {
                        true => facts.snapshot.vms.push(RunningVm { vmid, process }),
                        false => drop(facts.texts.inside.insert(vmid, Vec::new())),
                    }
                    continue;
                }
                Beside::Away => {
                    let record = include_str!("../records/0.1.0/vm-111.json");
                    facts.records.push(serde_json::from_str(record).unwrap());
                    continue;
                }
                _ => continue,
            };
            let mut holder = self.holder(belongs, Node::Gpu(gpu));
            holder.pid += i32::try_from(facts.snapshot.holders.len()).unwrap();
            facts.snapshot.holders.push(holder);
        }
        let settings = facts.settings.clone().unwrap_or_default();
        self.ask_for_units(&mut facts.snapshot, &[gpu], &settings);
        Ok(facts)
    }

    fn configs(&mut self) -> Texts {
        match self.ask.missed {
            Some(Part::Proxmox) => Texts {
                missed: vec![(Part::Proxmox.covers().to_owned(), "no answer within 10 s".to_owned())],
                ..Texts::default()
            },
            _ => read(self.root(), Part::Proxmox),
        }
    }

    /// Each runs and can be stopped, but for those of which the tree says something.
    fn ask_for_units(&mut self, snapshot: &mut Snapshot, gpus: &[PciAddr], settings: &Settings) {
        let units = clients::to_ask(snapshot, gpus, &[], settings);
        snapshot.units = unit_states::read(self.root(), &units);
        for unit in snapshot.units.iter_mut().filter(|unit| unit.said.is_err()) {
            unit.said = match self.is(Beside::NoAnswer) {
                true => Err("no answer within 30 s".to_owned()),
                false => Ok(Said {
                    state: if unit.unit.is_container() { "running" } else { "active" }.to_owned(),
                    ..Said::default()
                }),
            };
        }
    }

    fn not_interrupted(&mut self) -> Result<(), Error> {
        match self.is(Beside::Signal) && self.runs > 0 {
            true => Err(Error::Interrupted),
            false => Ok(()),
        }
    }

    fn effects(&mut self) -> &mut dyn Effects {
        self
    }

    fn may_ask(&self) -> bool {
        !self.is(Beside::NoTerminal)
    }

    fn ask(&mut self, question: &str) -> Result<bool, Error> {
        assert!(self.may_ask());
        let answer = if self.answers.is_empty() {
            ""
        } else {
            self.answers.remove(0)
        };
        writeln!(self.told, "{question} [y/N] {answer}").unwrap();
        for what in self.beside.iter().filter(|_| question == "Do it?") {
            if let Beside::Meanwhile(path, text) = what {
                writeln!(self.told, "(meanwhile {path} is another one)").unwrap();
                let path = self.root().path(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
        }
        Ok(answer == "y")
    }

    fn is_root(&self) -> bool {
        !self.is(Beside::NotRoot)
    }

    fn show(&mut self, text: &str) -> Result<(), Error> {
        self.told += text;
        self.shown += text;
        Ok(())
    }
}

impl Effects for World {
    fn root(&self) -> &Root {
        self.files.root()
    }

    fn write(&mut self, file: &str, bytes: &[u8], attributes: Attributes) -> io::Result<()> {
        writeln!(self.told, "(writes {file}, {:o})", attributes.mode).unwrap();
        self.is_fixed(file)?;
        // The owner is whoever runs the tests.
        let path = self.root().path(file);
        fs::create_dir_all(path.parent().unwrap())?;
        fs::write(path, bytes)
    }

    fn remove(&mut self, file: &str) -> io::Result<()> {
        writeln!(self.told, "(removes {file})").unwrap();
        self.is_fixed(file)?;
        self.files.remove(file)
    }

    fn forget_leftover(&mut self, file: &str) -> io::Result<()> {
        self.files.forget_leftover(file)
    }

    fn remove_dir(&mut self, dir: &str) {
        self.files.remove_dir(dir);
    }

    fn run(&mut self, words: &[&str], within: Duration) -> Result<(), String> {
        assert!(within <= Duration::from_secs(60));
        writeln!(self.told, "(runs {})", words.join(" ")).unwrap();
        self.runs += 1;
        let failed = || Err("failed (exit status: 255): can't lock file - got timeout".to_owned());
        if self.is(Beside::Fails) || self.is(Beside::FailsAt(self.runs)) {
            return failed();
        }
        if self.is(Beside::Halfway) {
            let path = self.root().path("/etc/pve/qemu-server/111.conf");
            fs::write(path, "memory: 1\n").unwrap();
            return failed();
        }
        self.set(words);
        if self.is(Beside::DoneAllTheSame) {
            failed()
        } else {
            Ok(())
        }
    }
}
