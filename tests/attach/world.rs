//! A host that is a tree of files, with a qm and a pct that edit its configs, and somebody who answers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::time::Duration;

use gpu_handoff::base::root::Root;
use gpu_handoff::base::vmid::VmId;
use gpu_handoff::check::facts::Facts;
use gpu_handoff::commands::cli::{Command, Request, parse};
use gpu_handoff::commands::guests::Host;
use gpu_handoff::commands::{attach, detach};
use gpu_handoff::host::belongs::Belongs;
use gpu_handoff::host::holders::Holder;
use gpu_handoff::host::nodes::Node;
use gpu_handoff::host::vms::RunningVm;
use gpu_handoff::model::error::{Error, chain};
use gpu_handoff::prepare::effects::{Attributes, Effects, Host as Files};

use crate::asked;
use crate::hosts::{Ask, facts, host};

/// What a tree of files does not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// A service of the host uses the GPU.
    Service(&'static str),
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
        }
    }

    pub fn root(&self) -> &Root {
        &self.tree.0.root
    }

    fn is(&self, what: Beside) -> bool {
        self.beside.contains(&what)
    }

    /// Runs a command line, with these answers; what is told ends with how it ended.
    pub fn run(&mut self, words: &str, answers: &[&'static str]) -> Result<(), Error> {
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
            return Err(Error::Usage(text));
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
                match fs::metadata(self.root().path(&path)).unwrap().is_dir() {
                    true => folders.push(path),
                    false => drop(files.insert(path.clone(), self.root().text(&path).unwrap())),
                }
            }
        }
        files
    }

    fn holder(&self, belongs_to: Belongs, gpu: Node) -> Holder {
        Holder {
            pid: 700,
            comm: "ollama".to_owned(),
            belongs_to,
            nodes: vec![gpu],
        }
    }

    /// `qm set` and `pct set`: settings of the current section; those that wait for the next start go elsewhere.
    fn set(&self, words: &[&str]) {
        let (folder, id) = (if words[0] == "qm" { "qemu-server" } else { "lxc" }, words[2]);
        let path = self.root().path(format!("/etc/pve/{folder}/{id}.conf"));
        let text = fs::read_to_string(&path).unwrap();
        let (head, rest) = text.split_at(text.find("\n[").map_or(text.len(), |at| at + 1));
        let mut lines: BTreeMap<String, String> = BTreeMap::new();
        let mut pending = String::new();
        for line in head.lines().filter(|l| !l.is_empty()) {
            let (key, value) = line.split_once(':').unwrap();
            lines.insert(key.to_owned(), value.trim().to_owned());
        }
        for option in words[3..].chunks(2) {
            let (key, value) = (option[0].strip_prefix("--").unwrap(), option[1]);
            match key {
                "delete" => value.split(',').for_each(|key| drop(lines.remove(key).unwrap())),
                key if self.is(Beside::Runs) && key.starts_with("hostpci") => {
                    writeln!(pending, "{key}: {value}").unwrap();
                }
                key => drop(lines.insert(key.to_owned(), value.to_owned())),
            }
        }
        let lines: String = lines.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        let pending = if pending.is_empty() {
            pending
        } else {
            format!("\n[PENDING]\n{pending}")
        };
        fs::write(path, format!("{lines}{pending}{rest}")).unwrap();
    }
}

impl Host for World {
    fn facts(&mut self, id: Option<VmId>) -> Result<Facts, Error> {
        assert_eq!(id.map(|id| id.to_string()).as_deref(), self.ask.vm);
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
                Beside::Inside(ctid, unit) => container(ctid, Some(unit)),
                Beside::InContainer(ctid) => container(ctid, None),
                Beside::Runs => {
                    let process = gpu_handoff::base::process::Process { pid: 900, started: 1 };
                    let vmid = self.ask.vm.unwrap().parse().unwrap();
                    facts.snapshot.vms.push(RunningVm { vmid, process });
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
        Ok(facts)
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
        Ok(answer == "y")
    }

    fn is_root(&self) -> bool {
        !self.is(Beside::NotRoot)
    }

    fn show(&mut self, text: &str) -> Result<(), Error> {
        self.told += text;
        Ok(())
    }
}

impl Effects for World {
    fn root(&self) -> &Root {
        self.files.root()
    }

    fn write(&mut self, file: &str, bytes: &[u8], attributes: Attributes) -> io::Result<()> {
        writeln!(self.told, "(writes {file}, {:o})", attributes.mode).unwrap();
        // The owner is whoever runs the tests.
        let path = self.root().path(file);
        fs::create_dir_all(path.parent().unwrap())?;
        fs::write(path, bytes)
    }

    fn remove(&mut self, file: &str) -> io::Result<()> {
        writeln!(self.told, "(removes {file})").unwrap();
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
        if self.is(Beside::Fails) {
            return Err("failed (exit status: 255): can't lock file - got timeout".to_owned());
        }
        self.set(words);
        Ok(())
    }
}
