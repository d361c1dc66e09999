//! What every run has at hand: the settings, the records, a snapshot, a VM's config.
//!
//! Not here: the host-wide lock ([`crate::run::lock`]).

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use tracing::{debug, warn};

use crate::base::deadlines::Budgets;
use crate::base::pci::{PciAddr, PciSlot};
use crate::base::process::{Process, boot_id, boot_id_on, process, since_boot, since_boot_on};
use crate::base::root::Root;
use crate::base::text::{foreign, join, millis};
use crate::base::vmid::VmId;
use crate::execute::kernel::{ActError, Kernel};
use crate::execute::linux::Linux;
use crate::host::snapshot::Snapshot;
use crate::host::stuck_calls::StuckCall;
use crate::model::error::Error;
use crate::model::record::{Owner, Record};
use crate::model::refusal::{Reason, Refusal};
use crate::plan::selection::{self, Given};
use crate::proxmox::container_config::GpuContainer;
use crate::proxmox::files::{self, Cluster, ConfigText, Found, Wanted};
use crate::run::look::look;
use crate::settings::file::{self, NotUnderstood};
use crate::settings::values::Settings;
use crate::state::store::{DIR, Guard, Store, UnreadableRecord};

/// The host and what we know of it besides the request.
#[derive(Debug)]
pub struct Session {
    /// Where files are read.
    pub root: Root,
    /// Where acts go.
    pub kernel: Linux,
    /// The records.
    pub store: Store,
    /// How long things may take.
    pub budgets: Budgets,
    /// The settings in force on the way out; the way home does not depend on them.
    pub settings: Settings,
    /// Who called a phase by hand, without Proxmox's lock on the VM.
    pub caller: Option<Process>,
    /// Calls of others that have been there for longer than a moment, as of the last look.
    pub(crate) lasting: Vec<StuckCall>,
    /// When that look was over.
    pub(crate) looked: Duration,
}

impl Session {
    /// The running host, with the deadlines that are the default.
    pub fn real() -> Self {
        Session::with(Linux::new())
    }

    pub(crate) fn with(kernel: Linux) -> Self {
        Session {
            root: Root::real(),
            kernel,
            store: Store::at(DIR),
            budgets: Budgets::default(),
            settings: Settings::default(),
            caller: None,
            lasting: Vec::new(),
            looked: Duration::ZERO,
        }
    }

    /// The result of a run: an error does not say that nothing was changed where something was.
    ///
    /// # Errors
    /// What the run ends with.
    pub fn says_what_stays(&self, result: Result<(), Error>) -> Result<(), Error> {
        result.map_err(|error| match self.kernel.has_acted() {
            true => error.beside(),
            false => error,
        })
    }

    /// Reads the settings for a way out and puts them in force.
    ///
    /// # Errors
    /// What is not understood, with file and line: a refusal.
    pub fn read_settings(&mut self, vmid: Option<VmId>) -> Result<(), NotUnderstood> {
        let settings = file::load(&self.root, vmid).map_err(|mut why| {
            why.hint
                .get_or_insert_with(|| "correct the line, or remove it".to_owned());
            why
        })?;
        self.budgets = settings.budgets.clone();
        self.settings = settings;
        Ok(())
    }

    /// All records; what is no record is said and not used. As with [`Session::load`], the lock counts.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn records(&self, guard: Option<&Guard>) -> Result<Vec<Record>, Error> {
        let (records, problems) = self.load(guard)?;
        for problem in problems {
            warn!("{problem}");
        }
        Ok(records)
    }

    /// All records, for a run that may write one: what cannot be read could be of a device that is away, and its
    /// drivers would be forgotten.
    ///
    /// # Errors
    /// A refusal that names the file, besides those of [`Session::records`].
    pub fn readable_records(&self, guard: &Guard) -> Result<Vec<Record>, Error> {
        let (records, problems) = self.load(Some(guard))?;
        match problems.first() {
            None => Ok(records),
            Some(problem) => Err(problem.refusal().into()),
        }
    }

    /// All records, and each file that is none. With the lock, workers that are no longer waited for count as stuck; without
    /// it they may be those of a run that lives, and the records say who that is.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn load(&self, guard: Option<&Guard>) -> Result<(Vec<Record>, Vec<UnreadableRecord>), Error> {
        let (mut records, problems) = match guard {
            Some(_) => self.read()?,
            None => self.read_and_look_on()?,
        };
        if records.is_empty() && guard.is_none() {
            return Ok((records, problems)); // of whichever boot this is
        }
        let boot = self.boot()?;
        records.retain(|r| r.boot_id == boot);
        for record in &mut records {
            if guard.is_some() {
                let ours = self.kernel.workers();
                record.settle(|group| !ours.contains(&group) && !group.alive(&self.root).is_empty());
            }
            for wedge in &record.late {
                let (owner, group) = (record.owner, wedge.group);
                debug!(
                    "{owner}: '{}' was stuck in process group {group} and has ended, late",
                    wedge.act
                );
            }
        }
        Ok((records, problems))
    }

    /// The boot of the host that is looked at. A tree of files that has no word of it is of ours.
    pub(super) fn boot(&self) -> Result<String, Error> {
        match boot_id_on(&self.root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => this_boot(),
            read => read.map_err(no_boot),
        }
    }

    fn read(&self) -> Result<(Vec<Record>, Vec<UnreadableRecord>), Error> {
        let read = self.store.load();
        read.map_err(|e| Error::io(format!("reading the records in {DIR}"), e))
    }

    /// The records, with who is at work on each.
    fn read_and_look_on(&self) -> Result<(Vec<Record>, Vec<UnreadableRecord>), Error> {
        loop {
            let (mut records, problems) = self.read()?;
            if records.is_empty() {
                return Ok((records, problems));
            }
            let holder = self.lock_holder();
            let holder = holder.map_err(|e| Error::io(format!("looking at the lock in {DIR}"), e))?;
            let runs: Vec<Option<String>> = records.iter().map(|r| self.run_on(r, holder.as_deref())).collect();
            // A run that has ended in order since the records were read has written down what it leaves. Where the record
            // is still the same, it was killed.
            let seems_killed = |(record, run): (&Record, &Option<String>)| run.is_none() && !record.workers.is_empty();
            let killed: Vec<&Record> = records
                .iter()
                .zip(&runs)
                .filter(|p| seems_killed(*p))
                .map(|p| p.0)
                .collect();
            if !killed.is_empty() {
                let (now, _) = self.read()?;
                if !killed.iter().all(|record| now.contains(record)) {
                    continue;
                }
            }
            for (record, run) in records.iter_mut().zip(runs) {
                record.look_on(run, since_boot_on(&self.root), |group| {
                    !group.alive(&self.root).is_empty()
                });
            }
            return Ok((records, problems));
        }
    }

    /// The run that is at work on a record, in words. `holder` is who has the lock.
    fn run_on(&self, record: &Record, holder: Option<&str>) -> Option<String> {
        if record.workers.is_empty() {
            return None;
        }
        let Some(run) = record.run else {
            // A record of an earlier form does not say whose the workers are.
            return holder.map(foreign);
        };
        let Process { pid, .. } = run.process;
        let lives = process(&self.root, pid) == Some(run.process);
        lives.then(|| match holder.filter(|who| who.ends_with(&format!("(pid {pid})"))) {
            Some(who) => foreign(who),
            None => format!("process {pid}"),
        })
    }

    /// A record for what is away and on nobody's, by the name of this GPU.
    ///
    /// # Errors
    /// Where this boot cannot be told from others.
    pub(crate) fn unrecorded(&self, gpu: PciAddr, records: &[Record]) -> Result<Record, Error> {
        let owner = Owner::unrecorded(gpu, records);
        let mut record = Record::new(owner, this_boot()?, self.budgets.clone());
        record.number(since_boot());
        Ok(record)
    }

    /// A snapshot without details, in which devices that are known to be stuck, or that somebody is at, are left alone.
    ///
    /// # Errors
    /// [`Error::Overdue`] where the host did not let itself be read in time.
    pub fn look(&mut self, records: &[Record]) -> Result<Snapshot, Error> {
        let stuck: Vec<PciAddr> = records.iter().flat_map(Record::not_to_be_read).collect();
        let within = self.budgets.look;
        let start = self.kernel.now();
        let ours = records.iter().flat_map(Record::groups).collect::<Vec<_>>();
        let snapshot = look(&mut self.kernel, &stuck, &ours, &self.lasting, within).map_err(|e| match e {
            ActError::Overdue { within, .. } => Error::Overdue {
                what: "the host could not be read".to_owned(),
                within,
                hint: "some call is stuck in the kernel; see 'ps ax | grep \" D\"' and 'journalctl -k'".to_owned(),
            },
            e => Error::Io {
                what: "the host could not be read".to_owned(),
                source: io::Error::other(e),
            },
        })?;
        self.lasting = snapshot.calls.iter().filter(|c| c.lasts).cloned().collect();
        self.looked = self.kernel.now();
        debug!("the host was read in {}", millis(self.looked.saturating_sub(start)));
        Ok(snapshot)
    }

    /// Completes a snapshot with the details of these functions, and of no others: a card that is slow, as after a reset,
    /// keeps nobody waiting who does not ask for it. Each card is asked by itself; one that gives no answer in time stays
    /// without, and what needs them is refused.
    ///
    /// # Errors
    /// Where there is nobody to ask, or a signal came meanwhile.
    pub fn ask(&mut self, snapshot: &mut Snapshot, addrs: &[PciAddr], within: Duration) -> Result<(), Error> {
        let mut cards: BTreeMap<PciSlot, Vec<PciAddr>> = BTreeMap::new();
        for function in addrs.iter().filter_map(|a| snapshot.function(*a)).filter(|f| !f.stuck) {
            cards.entry(function.addr.slot()).or_default().push(function.addr);
        }
        let cards: Vec<Vec<PciAddr>> = cards.into_values().collect();
        for (card, answer) in cards.iter().zip(self.kernel.details(&cards, within)) {
            match answer {
                Ok(details) => snapshot.complete(card, details),
                Err(why @ (ActError::Overdue { .. } | ActError::Interrupted { .. })) => {
                    debug!("attributes of {}: {why}", join(card));
                }
                Err(e) => return Err(Error::io("the host could not be read", io::Error::other(e))),
            }
        }
        self.not_interrupted()
    }

    /// Ends a wait that a signal asked to end.
    ///
    /// # Errors
    /// [`Error::Interrupted`] where one has come.
    pub fn not_interrupted(&mut self) -> Result<(), Error> {
        match self.kernel.interrupted() {
            Some(_) => Err(Error::Interrupted),
            None => Ok(()),
        }
    }

    /// A VM's config. Lines about PCI devices that Proxmox ignores are said. None: it is a container.
    ///
    /// # Errors
    /// A refusal that names the file, or [`Error::Overdue`].
    pub fn guest_text(&mut self, vmid: VmId) -> Result<Option<ConfigText>, Error> {
        let migrated_from = std::env::var("PVE_MIGRATED_FROM").unwrap_or_default();
        let what = format!("the config of VM {vmid}");
        let found = self.find(&what, Wanted::VmConfig { vmid, migrated_from })?;
        if let Found::IsContainer = found {
            return Ok(None);
        }
        vm_text_in(found, vmid).map(Some)
    }

    /// What it says; a line that Proxmox ignores, as we do, is said.
    pub fn understood(&self, text: ConfigText) -> files::Config {
        let read = text.parse();
        for line in files::ignored(&read) {
            warn!("{line}");
        }
        debug!("{} read by the rules of {:?}", read.path, read.generation);
        read
    }

    /// A VM's config; a container's number is refused.
    ///
    /// # Errors
    /// As [`Session::guest_text`], and the refusal.
    pub fn vm_config(&mut self, vmid: VmId) -> Result<files::Config, Error> {
        match self.guest_text(vmid)? {
            Some(text) => Ok(self.understood(text)),
            None => vm_text_in(Found::IsContainer, vmid).map(ConfigText::parse),
        }
    }

    /// A VM's config, in silence. `migrated_from`: as [`Wanted::VmConfig`] has it.
    pub(crate) fn config_of(&mut self, vmid: VmId, migrated_from: String) -> Result<files::Config, Error> {
        let what = format!("the config of VM {vmid}");
        let found = self.find(&what, Wanted::VmConfig { vmid, migrated_from })?;
        vm_text_in(found, vmid).map(ConfigText::parse)
    }

    /// The VMs of this node.
    pub(crate) fn vms(&mut self) -> Result<Vec<VmId>, Error> {
        match self.find("the list of this node's VMs", Wanted::Vms)? {
            Found::Vms(vms) => Ok(vms),
            _ => Err(another_answer()),
        }
    }

    /// Proxmox's mappings and reservations.
    ///
    /// # Errors
    /// A refusal that names the file, or [`Error::Overdue`].
    pub fn cluster(&mut self) -> Result<Cluster, Error> {
        match self.find("the resource mappings and reservations", Wanted::Cluster)? {
            Found::Cluster(text) => Ok(text.parse()),
            _ => Err(another_answer()),
        }
    }

    /// The containers that are given a GPU when they run.
    ///
    /// # Errors
    /// A refusal that names the file, or [`Error::Overdue`].
    pub fn gpu_containers(&mut self) -> Result<Vec<GpuContainer>, Error> {
        match self.find("the configs of the containers", Wanted::Containers)? {
            Found::Containers(containers) => Ok(containers),
            _ => Err(another_answer()),
        }
    }

    /// What is found of Proxmox's files, which are on a file system that may not answer. `what` they are, as the beginning
    /// of a sentence.
    pub(super) fn find(&mut self, what: &str, wanted: Wanted) -> Result<Found, Error> {
        let found = match self.root.is_real() {
            true => self.kernel.find(wanted, self.budgets.look),
            false => Ok(files::find(&self.root, &wanted)), // a tree of files, which no worker knows of
        };
        match found {
            Ok(Found::Unreadable(why)) => Err(Refusal::from(why).into()),
            Ok(found) => Ok(found),
            Err(ActError::Overdue { within, .. }) => Err(Error::Overdue {
                what: format!("{what} could not be read"),
                within,
                hint: "see 'systemctl status pve-cluster': it serves /etc/pve, and reads of it wait for its answer"
                    .to_owned(),
            }),
            Err(ActError::Interrupted { .. }) => Err(Error::Interrupted),
            Err(e) => Err(Error::io(format!("{what} could not be read"), io::Error::other(e))),
        }
    }

    /// Whether a task of Proxmox holds the VM's lock, as it does through a whole start or stop.
    pub fn vm_is_busy(&self, vmid: VmId) -> bool {
        files::vm_lock(&self.root, vmid).is_ok_and(|lock| lock.is_some())
    }

    /// What a VM's entries mean on this host.
    ///
    /// # Errors
    /// A refusal, where a file of Proxmox cannot be read.
    pub fn devices_of(&mut self, vmid: VmId, read: &files::Config, snapshot: &Snapshot) -> Result<Given, Error> {
        let cluster = self.cluster()?;
        let given = selection::of_vm(vmid, read, snapshot, &cluster);
        Ok(given.judged(self.settings.unknown_keys))
    }
}

/// What tells this boot from every other one. Where it is not known nothing is done: what is on record may be true or not.
///
/// # Errors
/// Where the kernel does not say.
pub fn this_boot() -> Result<String, Error> {
    boot_id().map_err(no_boot)
}

fn no_boot(e: io::Error) -> Error {
    Error::io(
        "reading /proc/sys/kernel/random/boot_id, which tells this boot from others",
        e,
    )
}

/// A VM's config. Proxmox calls the hook of a container with the same words (pve-container, PVE/LXC.pm, vm_start).
fn vm_text_in(found: Found, vmid: VmId) -> Result<ConfigText, Error> {
    match found {
        Found::VmConfig(text) => Ok(text),
        Found::IsContainer => Err(Refusal::from(Reason::Other(format!(
            "{vmid} is a container ({}), and no VM. Hint: 'gpu-handoff holders' tells what of it uses a GPU",
            files::container_path(vmid)
        )))
        .into()),
        Found::Unreadable(why) => Err(Refusal::from(why).into()),
        _ => Err(another_answer()),
    }
}

fn another_answer() -> Error {
    Error::io("reading Proxmox's files", io::Error::other("another answer came"))
}

/// Moving a device between drivers is root's business.
///
/// # Errors
/// A refusal for everybody else.
pub fn must_be_root() -> Result<(), Error> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let why = "only root can move a device between drivers. Hint: run it as root";
    Err(Refusal::from(Reason::Other(why.to_owned())).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::process::{Group, since_boot};
    use crate::model::error::Exit;

    use crate::host::units::Unit;
    use crate::model::act::Act;
    use crate::model::record::{Owner, Run, Taken};
    use crate::state::store::Ledger as _;

    #[test]
    fn a_container_is_called_one_and_not_a_vm_without_a_config() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        for path in [
            "etc/pve/lxc/104.conf",
            "etc/pve/lxc/111.conf",
            "etc/pve/qemu-server/111.conf",
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        for (vmid, said) in [
            (
                "104",
                Some(
                    "104 is a container (/etc/pve/lxc/104.conf), and no VM. Hint: 'gpu-handoff holders' tells what of it \
                     uses a GPU",
                ),
            ),
            ("111", None),
            (
                "112",
                Some(
                    "the config of VM 112 cannot be read: /etc/pve/qemu-server/112.conf: No such file or directory (os \
                     error 2). Hint: 'qm list' shows the VMs of this node",
                ),
            ),
        ] {
            let vmid: VmId = vmid.parse().unwrap();
            let migrated_from = String::new();
            let found = files::find(&root, &Wanted::VmConfig { vmid, migrated_from });
            // As it comes from the worker.
            let found = serde_json::from_slice(&serde_json::to_vec(&found).unwrap()).unwrap();
            let read = vm_text_in(found, vmid);
            let refused = read.err().map(|e| (e.to_string(), e.exit()));
            assert_eq!(refused, said.map(|said| (said.to_owned(), Exit::Refused)));
        }
    }

    /// When the run started; it is the process of the test, as the lock's file says. Its worker started a tick later.
    const STARTED: u64 = 4700;
    const WORKER: u32 = 4_000_001;

    /// A session with records of its own, on a host with these processes.
    fn session(processes: &[(u32, u64)]) -> (tempfile::TempDir, Session) {
        let dir = tempfile::tempdir().unwrap();
        for (pid, started) in processes {
            let path = dir.path().join(format!("proc/{pid}"));
            std::fs::create_dir_all(&path).unwrap();
            let stat = format!("{pid} (gpu-handoff) D 1 {pid} {pid} 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 {started} 1000 10");
            std::fs::write(path.join("stat"), stat).unwrap();
        }
        let session = Session {
            root: Root::at(dir.path()),
            store: Store::at(dir.path().join("run")),
            ..Session::real()
        };
        (dir, session)
    }

    /// As a run writes it down that is about to unbind a function.
    fn at_an_act(run: bool) -> Record {
        let addr: PciAddr = "0000:01:00.0".parse().unwrap();
        let mut record = Record::new(
            Owner::Vm("111".parse().unwrap()),
            boot_id().unwrap(),
            Budgets::default(),
        );
        record.taken.push(Taken::on_nvidia(addr));
        record.under_way = vec![Act::Unbind {
            addr,
            driver: "nvidia".to_owned(),
        }];
        record.workers = vec![Group {
            number: WORKER,
            started: run.then_some(STARTED + 1),
        }];
        let pid = std::process::id();
        let since_ms = u64::try_from(since_boot().as_millis()).unwrap() - 2_000;
        record.run = run.then_some(Run {
            process: Process { pid, started: STARTED },
            since_ms,
        });
        record
    }

    /// A record that says nothing of its boot would be of every one that says nothing either.
    #[test]
    fn where_the_boot_is_not_known_no_record_is_used_and_none_is_forgotten() {
        let (dir, mut session) = session(&[]);
        let mut record = at_an_act(false);
        record.boot_id = String::new();
        let guard = session.store.lock("test", Duration::from_secs(5)).unwrap();
        guard.save(&record).unwrap();
        drop(guard);
        let file = dir.path().join("proc/sys/kernel/random/boot_id");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let end = session.kernel.now() + Duration::from_secs(60);
        for text in [Some(""), Some("\n"), None] {
            match text {
                Some(text) => std::fs::write(&file, text).unwrap(),
                None => {
                    std::fs::remove_file(&file).unwrap();
                    std::fs::create_dir(&file).unwrap(); // it cannot be read
                }
            }
            let refused = [
                session.load(None).map(drop).unwrap_err(),
                session.lock("test", end).map(drop).unwrap_err(),
            ];
            for error in refused {
                let said = error.to_string();
                assert!(said.contains("which tells this boot from others"), "{text:?}: {said}");
            }
            assert_eq!(session.store.load().unwrap().0.len(), 1, "{text:?}");
        }
        // Of a boot that is known, it is not.
        std::fs::remove_dir(&file).unwrap();
        std::fs::write(&file, "0a1b\n").unwrap();
        assert_eq!(session.load(None).unwrap(), (Vec::new(), Vec::new()));
        drop(session.lock("test", end).unwrap());
        assert_eq!(session.store.load().unwrap().0, []);
    }

    #[test]
    fn what_a_killed_run_has_left_stuck_is_waited_for_once() {
        let (_dir, mut session) = session(&[(WORKER, STARTED + 1)]);
        session.budgets.lock = Duration::from_secs(1);
        let end = session.kernel.now() + Duration::from_secs(60);
        let guard = session.lock("test", end).unwrap();
        guard.save(&at_an_act(true)).unwrap();
        drop(guard);
        let mut waited = Vec::new();
        for _ in 0..2 {
            let before = session.kernel.now();
            drop(session.lock("test", end).unwrap());
            waited.push((session.kernel.now() - before) >= session.budgets.lock);
            let wedges = &session.store.load().unwrap().0[0].wedges;
            assert_eq!(wedges.iter().map(|w| w.group.number).collect::<Vec<_>>(), [WORKER]);
        }
        assert_eq!(waited, [true, false]);
    }

    /// As the container's or the user's end of it may have it: deaf to what asks it to end.
    #[test]
    fn what_a_killed_run_has_left_at_a_service_is_ended_and_no_later_run_waits_for_it() {
        let (_dir, mut session) = session(&[]);
        session.root = Root::real();
        let mut leader = std::process::Command::new("setsid")
            .args(["sh", "-c", "trap '' TERM HUP; sleep 600 & wait"])
            .spawn()
            .unwrap();
        let group = Group::of_child(&session.root, leader.id());
        let mut record = at_an_act(true);
        record.workers = vec![group];
        record.under_way = vec![Act::StartUnit {
            name: Unit::Inside {
                container: "104".parse().unwrap(),
                unit: "ollama.service".to_owned(),
            },
            within_s: 0,
            has_ended: false,
        }];
        let end = session.kernel.now() + Duration::from_secs(60);
        let guard = session.lock("test", end).unwrap();
        guard.save(&record).unwrap();
        drop(guard);
        let before = session.kernel.now();
        drop(session.lock("test", end).unwrap());
        assert!(session.kernel.now() - before < session.budgets.lock);
        leader.wait().unwrap();
        assert!(group.alive(&session.root).is_empty());
        let left = &session.store.load().unwrap().0[0];
        assert_eq!((&left.workers, &left.wedges), (&vec![], &vec![]));
        assert_eq!(left.under_way, record.under_way);
    }

    /// Who runs it has begun with it, and would find it running where it is asked to start it before it is down.
    #[test]
    fn a_container_that_goes_down_is_waited_for() {
        let (_dir, mut session) = session(&[]);
        session.root = Root::real();
        let mut leader = std::process::Command::new("setsid")
            .args(["sh", "-c", "sleep 4; exit 7"])
            .spawn()
            .unwrap();
        let mut record = at_an_act(true);
        record.workers = vec![Group::of_child(&session.root, leader.id())];
        let container = "104".parse().unwrap();
        record.under_way = vec![Act::stop(&Unit::Whole { container }, Duration::from_secs(30))];
        let end = session.kernel.now() + Duration::from_secs(60);
        let guard = session.lock("test", end).unwrap();
        guard.save(&record).unwrap();
        drop(guard);
        drop(session.lock("test", end).unwrap());
        assert_eq!(leader.wait().unwrap().code(), Some(7), "it was ended");
    }

    #[test]
    fn without_the_lock_workers_are_those_of_a_run_that_lives_or_left_by_one_that_was_killed() {
        let us = std::process::id();
        let (run, worker) = ((us, STARTED), (WORKER, STARTED + 1));
        let named = format!("VM 111 pre-start (pid {us})");
        for (case, known, held, there, at_work) in [
            ("at work", true, true, vec![run, worker], Some(Some(named.clone()))),
            (
                "the lock is just let go",
                true,
                false,
                vec![run, worker],
                Some(Some(format!("process {us}"))),
            ),
            ("killed", true, false, vec![worker], Some(None)),
            (
                "killed, its number another's",
                true,
                false,
                vec![(us, STARTED + 9), worker],
                Some(None),
            ),
            ("killed, another run at work", true, true, vec![worker], Some(None)),
            ("killed, and over", true, false, vec![], None),
            (
                "killed, the worker's number another's",
                true,
                false,
                vec![(WORKER, STARTED + 9)],
                None,
            ),
            (
                "of an earlier form, at work",
                false,
                true,
                vec![worker],
                Some(Some(named.clone())),
            ),
            ("of an earlier form, killed", false, false, vec![worker], Some(None)),
        ] {
            let (_dir, session) = session(&there);
            let guard = session.store.lock("VM 111 pre-start", Duration::from_secs(5)).unwrap();
            guard.save(&at_an_act(known)).unwrap();
            let guard = Some(guard).filter(|_| held);
            let records = session.records(None).unwrap();
            assert_eq!(records[0].wedges.len(), 0, "{case}");
            let run = records[0].at_work.as_ref().map(|w| w.run.clone());
            assert_eq!(run, at_work, "{case}");
            drop(guard);
        }
    }

    #[test]
    fn with_the_lock_what_a_killed_run_has_left_is_stuck() {
        let (_dir, session) = session(&[(WORKER, STARTED + 1)]);
        let guard = session.store.lock("recover", Duration::from_secs(5)).unwrap();
        guard.save(&at_an_act(true)).unwrap();
        let records = session.records(Some(&guard)).unwrap();
        assert_eq!((records[0].wedges.len(), &records[0].at_work), (1, &None));
    }
}
