//! What the checks look at: a value that was read before, and stays as it is.
//!
//! Pure. The reader is [`crate::check::read`]; what VMs and containers say is understood in [`crate::check::guests`].

use serde::{Deserialize, Serialize};

use crate::base::pci::PciAddr;
use crate::base::sets::IntoSet as _;
use crate::base::vmid::VmId;
use crate::check::finding::NotSeen;
use crate::check::guests::{Container, Vm};
use crate::check::line::Line;
use crate::check::texts::{Seen, Texts};
use crate::check::versions::numbers;
use crate::host::functions::Function;
use crate::host::snapshot::{Snapshot, card};
use crate::model::record::Record;
use crate::model::refusal::Reason;
use crate::plan::clients::{self, Client};
use crate::proxmox::files::Cluster;
use crate::settings::file::NotUnderstood;
use crate::settings::values::Settings;

/// Everything that the checks look at.
#[derive(Debug)]
pub struct Facts {
    /// The host, with the details of its NVIDIA functions.
    pub snapshot: Snapshot,
    /// Further files.
    pub texts: Texts,
    /// The settings in force, or why they are not understood.
    pub settings: Result<Settings, NotUnderstood>,
    /// The records.
    pub records: Vec<Record>,
    /// Files of records that are none, a sentence each.
    pub unreadable_records: Vec<String>,
    /// Who uses GPUs, and what the settings have done to each.
    pub users: Vec<Client>,
    /// Who may use them besides.
    pub other_users: Vec<Reason>,
    /// Mappings, reservations, the node's name.
    pub cluster: Cluster,
    /// This node's VMs, understood.
    pub vms: Vec<Vm>,
    /// This node's containers that are given a GPU.
    pub containers: Vec<Container>,
    /// What is asked.
    pub asked: Asked,
}

/// What is asked of the checks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Only this VM, of all VMs.
    pub vm: Option<VmId>,
    /// Only this container.
    pub ct: Option<VmId>,
    /// What takes seconds, too.
    pub full: bool,
    /// Who asks is root.
    pub root: bool,
}

/// What is on record.
#[derive(Debug, Default)]
pub struct Lent {
    /// The records.
    pub records: Vec<Record>,
    /// Files that are none, a sentence each.
    pub unreadable: Vec<String>,
}

impl Facts {
    /// From what was read.
    pub fn of(
        snapshot: Snapshot,
        texts: Texts,
        settings: Result<Settings, NotUnderstood>,
        cluster: Cluster,
        lent: Lent,
        asked: Asked,
    ) -> Facts {
        let gpus: Vec<PciAddr> = snapshot.gpus().map(|f| f.addr).collect();
        let defaults = Settings::default();
        let (users, other_users) = clients::of(&snapshot, &gpus, settings.as_ref().unwrap_or(&defaults));
        Facts {
            vms: Vm::all(&texts, &snapshot, &cluster),
            containers: Container::all(&texts),
            settings,
            records: lent.records,
            unreadable_records: lent.unreadable,
            users,
            other_users,
            cluster,
            asked,
            snapshot,
            texts,
        }
    }

    /// The same as if a guest's config had this text.
    #[must_use]
    pub fn as_if(mut self, path: &str, text: String) -> Facts {
        self.texts.seen.insert(path.to_owned(), Seen::Text(text));
        self.vms = Vm::all(&self.texts, &self.snapshot, &self.cluster);
        self.containers = Container::all(&self.texts);
        self
    }

    /// The lines of the host's configuration.
    ///
    /// # Errors
    /// Where its files gave no answer in time.
    pub fn lines(&self) -> Result<&[Line], NotSeen> {
        match self.texts.missed.iter().find(|(part, _)| part == "/") {
            Some((_, why)) => Err(NotSeen(format!("the host's configuration: {why}"))),
            None => Ok(&self.texts.lines),
        }
    }

    /// The NVIDIA GPUs, in order.
    pub fn gpus(&self) -> Vec<&Function> {
        self.snapshot.gpus().collect()
    }

    /// What moves with a GPU.
    pub fn card(&self, gpu: PciAddr) -> Vec<&Function> {
        let card = card(&self.snapshot, gpu);
        card.into_iter()
            .filter_map(|addr| self.snapshot.function(addr))
            .collect()
    }

    /// Vendor and device ids of everything on NVIDIA's cards, each once.
    pub fn ids(&self) -> Vec<(u16, u16)> {
        let cards = self.snapshot.gpus().flat_map(|gpu| self.card(gpu.addr));
        cards.map(|f| (f.vendor, f.device)).into_set().into_iter().collect()
    }

    /// What a GPU is called: its address, and its name where the driver says it.
    pub fn name(&self, gpu: &Function) -> String {
        let model = self
            .snapshot
            .nvidia_gpu(gpu.addr)
            .map(|g| crate::base::text::foreign(&g.model));
        match model.filter(|m| !m.is_empty()) {
            Some(model) => format!("{} ({model})", gpu.addr),
            None => gpu.addr.to_string(),
        }
    }

    /// The VMs that are asked about.
    pub fn asked_vms(&self) -> impl Iterator<Item = &Vm> {
        let only = self.asked.vm;
        self.vms
            .iter()
            .filter(move |vm| only.is_none_or(|only| only == vm.vmid))
    }

    /// The containers that are asked about.
    pub fn asked_containers(&self) -> impl Iterator<Item = &Container> {
        let only = self.asked.ct;
        self.containers
            .iter()
            .filter(move |c| only.is_none_or(|only| only == c.ctid))
    }

    /// The release of the running kernel, as uname(1) has it.
    ///
    /// # Errors
    /// Where it could not be read.
    pub fn kernel(&self) -> Result<&str, NotSeen> {
        self.texts.needed("/proc/sys/kernel/osrelease").map(str::trim_end)
    }

    /// The newest kernel whose modules are installed: what boots next, if nobody has pinned another.
    ///
    /// # Errors
    /// Where it could not be read.
    pub fn newest_kernel(&self) -> Result<Option<&str>, NotSeen> {
        let installed = self.texts.names("/lib/modules")?;
        Ok(installed
            .iter()
            .map(String::as_str)
            .max_by_key(|release| numbers(release)))
    }

    /// The words of the running kernel's command line.
    ///
    /// # Errors
    /// Where it could not be read.
    pub fn arguments(&self) -> Result<Vec<&str>, NotSeen> {
        Ok(self.texts.needed("/proc/cmdline")?.split_ascii_whitespace().collect())
    }
}
