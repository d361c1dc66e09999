//! The hosts of tests/hosts: trees of files, what is asked of each, and what the program makes of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::base::root::Root;
use gpu_handoff::base::vmid::VmId;
use gpu_handoff::execute::kernel::{ActError, Kernel};
use gpu_handoff::host::functions::{Details, read_details};
use gpu_handoff::host::modules::{self, Loadable};
use gpu_handoff::host::snapshot::{self, Snapshot};
use gpu_handoff::host::unit_states;
use gpu_handoff::model::act::Act;
use gpu_handoff::model::plan::Plan;
use gpu_handoff::model::record::Owner;
use gpu_handoff::model::refusal::{Reason, Refusal};
use gpu_handoff::plan::clients;
use gpu_handoff::plan::out::{self, Wanted};
use gpu_handoff::plan::selection::{self, Given};
use gpu_handoff::proxmox::{container_config, files};
use gpu_handoff::report::unpack::{Tree as Unpacked, unpack};
use gpu_handoff::run::look::look;
use gpu_handoff::settings::file;
use gpu_handoff::settings::values::Settings;

use crate::tree;

pub fn folders() -> Vec<PathBuf> {
    let all = match std::env::var_os("HOSTS_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosts"),
    };
    let entries = fs::read_dir(&all).unwrap_or_else(|e| panic!("{}: {e}", all.display()));
    let mut folders: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    assert!(!folders.is_empty(), "no hosts below {}", all.display());
    folders
}

#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    Plan,
    Home,
    Json,
    Status,
}

/// A line of `request`.
#[derive(Debug)]
pub struct Request {
    pub kind: Kind,
    /// As it is typed after `gpu-handoff`.
    pub command: String,
    pub vm: Option<VmId>,
    pub gpu: Option<String>,
}

pub fn requests(folder: &Path) -> Result<Vec<Request>, String> {
    let text = fs::read_to_string(folder.join("request")).map_err(|e| format!("request: {e}"))?;
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    let requests: Result<Vec<Request>, String> = lines.map(request).collect();
    requests.and_then(|r| {
        if r.is_empty() {
            Err("request is empty".to_owned())
        } else {
            Ok(r)
        }
    })
}

pub fn request(line: &str) -> Result<Request, String> {
    if line == "status" {
        return Ok(Request {
            kind: Kind::Status,
            command: line.to_owned(),
            vm: None,
            gpu: None,
        });
    }
    let (kind, rest) = match line.split_once(' ') {
        Some(("home", rest)) => (Kind::Home, rest),
        Some(("json", rest)) => (Kind::Json, rest),
        _ => (Kind::Plan, line),
    };
    let words: Vec<&str> = rest.split_ascii_whitespace().collect();
    let (vm, gpu, command) = match words.as_slice() {
        ["vm", vmid] => (vmid.parse().ok(), None, format!("plan --vm {vmid}")),
        ["gpu", name] => (None, Some((*name).to_owned()), format!("plan --gpu {name}")),
        ["gpu"] => (None, None, "plan".to_owned()),
        _ => {
            return Err(format!(
                "request: '{line}' is no 'vm VMID', 'gpu NAME', 'gpu' or 'status'"
            ));
        }
    };
    Ok(Request { kind, command, vm, gpu })
}

/// A host as a tree of files.
pub struct Host {
    pub root: Root,
    _tree: Kept,
}

/// Where its files are, for as long as it is there.
#[allow(dead_code)] // it only has to be there
enum Kept {
    Made(tempfile::TempDir),
    Report(Unpacked),
}

/// A tree as a run reads it, with a clock that goes only while something is waited for.
struct Tree(Root, Duration);

impl Kernel for Tree {
    fn now(&self) -> Duration {
        self.1
    }

    fn look(&mut self, stuck: &[PciAddr], _: Duration) -> Result<Snapshot, ActError> {
        snapshot::read(&self.0, stuck).map_err(|e| ActError::Failed(e.to_string()))
    }

    fn details(&mut self, cards: &[Vec<PciAddr>], _: Duration) -> Vec<Result<Vec<Details>, ActError>> {
        cards.iter().map(|card| Ok(read_details(&self.0, card))).collect()
    }

    fn loadable(&mut self, names: &[String], _: Duration) -> Result<Vec<Loadable>, ActError> {
        Ok(modules::read(&self.0, names))
    }

    fn act(&mut self, act: &Act, _: Duration) -> Result<(), ActError> {
        Err(ActError::NotBegun(format!("{act}: nothing is done to a tree of files")))
    }

    fn await_exit(&mut self, _: &[i32], within: Duration) -> bool {
        self.1 += within;
        false
    }
}

/// What a request leads to.
pub struct Answer {
    pub given: Given,
    pub snapshot: Snapshot,
    pub settings: Settings,
    pub containers: Vec<container_config::GpuContainer>,
    pub outcome: Option<Result<Plan, Refusal>>,
}

impl Host {
    pub fn of(folder: &Path) -> Result<Host, String> {
        if let Ok(report) = fs::File::open(folder.join("report.tar.gz")) {
            let tree = unpack(report)?;
            return Ok(Host {
                root: Root::at(tree.root()),
                _tree: Kept::Report(tree),
            });
        }
        let text = fs::read_to_string(folder.join("host")).map_err(|e| format!("host: {e}"))?;
        Host::from_text(&text)
    }

    /// From the text of a host.
    pub fn from_text(text: &str) -> Result<Host, String> {
        // Hundreds of small files, which memory takes faster than a disk.
        let tree = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        tree::build(text, tree.path()).map_err(|e| format!("host: {e}"))?;
        Ok(Host {
            root: Root::at(tree.path()),
            _tree: Kept::Made(tree),
        })
    }

    /// As a run looks: what others hang in is there each time.
    pub fn look(&self) -> Result<Snapshot, String> {
        let mut tree = Tree(self.root.clone(), Duration::ZERO);
        look(&mut tree, &[], &[], &[], Duration::ZERO).map_err(|e| e.to_string())
    }

    /// As `gpu-handoff plan` does it, without a worker, and without records: nothing is away.
    pub fn answer(&self, request: &Request) -> Result<Answer, String> {
        let root = &self.root;
        let settings = file::load(root, request.vm).map_err(|e| e.to_string())?;
        let mut snapshot = self.look()?;
        let found = self.given(request, &snapshot);
        let (given, refused) = match found {
            Ok(given) => {
                let refused = given.refused.clone();
                (given, refused)
            }
            Err(reason) => (Given::default(), Some(reason)),
        };
        let outcome = match refused {
            Some(reason) => Some(Err(Refusal::from(reason))),
            None if given.gpus.is_empty() => None,
            None => {
                let functions: Vec<PciAddr> = given.functions.iter().copied().collect();
                let wanted = Wanted {
                    owner: request.vm.map_or(Owner::ByHand(given.gpus[0]), Owner::Vm),
                    gpus: &given.gpus,
                    given: &functions,
                };
                let moving = out::moving(&snapshot, wanted, &[], &settings);
                snapshot.complete(&moving, read_details(root, &moving));
                let needed = out::needed(&snapshot, &given.gpus, &functions, &settings);
                snapshot.loadable = modules::read(root, &needed);
                snapshot.units =
                    unit_states::read(root, &clients::to_ask(&snapshot, &given.gpus, &functions, &settings));
                Some(out::plan(&snapshot, wanted, &[], &settings))
            }
        };
        // For those who go on from here: all of the host.
        let all: Vec<PciAddr> = snapshot.functions.iter().map(|f| f.addr).collect();
        snapshot.complete(&all, read_details(root, &all));
        Ok(Answer {
            given,
            snapshot,
            settings,
            containers: files::gpu_containers(root).map_err(|e| e.to_string())?,
            outcome,
        })
    }

    fn given(&self, request: &Request, snapshot: &Snapshot) -> Result<Given, Reason> {
        let gpu = match (request.vm, &request.gpu) {
            (Some(vmid), _) => {
                let config = files::vm_config_text(&self.root, vmid, "")?.parse();
                let given = selection::of_vm(vmid, &config, snapshot, &files::cluster_text(&self.root)?.parse());
                return Ok(given.judged(Settings::default().unknown_keys));
            }
            (None, Some(name)) => selection::named(name, snapshot)?,
            (None, None) => selection::only(snapshot)?,
        };
        Ok(Given {
            gpus: vec![gpu],
            ..Given::default()
        })
    }
}
