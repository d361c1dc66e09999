//! Before a VM takes what it wants: what it has on record and no longer wants comes home, and what others have on record of
//! it who are gone. And who has a claim on what a person asks for.
//!
//! What is decided is in [`crate::plan::owners`]. Not here: what the VM is given ([`crate::plan::selection`]).

use std::collections::BTreeSet;
use std::io;

use tracing::{info, warn};

use crate::base::pci::{PciAddr, PciSlot};
use crate::base::process;
use crate::base::sets::IntoSet as _;
use crate::base::text::{are, join};
use crate::base::vmid::VmId;
use crate::execute::kernel::Kernel;
use crate::host::snapshot::Snapshot;
use crate::model::claim::Claim;
use crate::model::error::{Error, chain};
use crate::model::plan::Direction;
use crate::model::record::{Owner, Record};
use crate::model::refusal::{Reason, Refusal};
use crate::plan::owners::{self, First, Over, Part, Signs, first, take_over};
use crate::plan::selection;
use crate::proxmox::files::{self, Cluster};
use crate::proxmox::reservations::Hold;
use crate::run::session::{Session, this_boot};
use crate::state::store::{Guard, Ledger};

/// What the settling of owners asks of a run. The tests have another one, on the model kernel.
pub trait Host {
    /// All records, as who has the lock reads them.
    ///
    /// # Errors
    /// Where they cannot be read.
    fn records(&mut self) -> Result<Vec<Record>, Error>;

    /// A snapshot.
    ///
    /// # Errors
    /// Where the host cannot be read.
    fn look(&mut self, records: &[Record]) -> Result<Snapshot, Error>;

    /// What a snapshot does not show of a record's owner.
    fn signs(&self, record: &Record) -> Signs;

    /// Why these functions, of a record of this owner, are needed by somebody who has them not on record.
    ///
    /// # Errors
    /// Where Proxmox's files cannot be read.
    fn needed(&mut self, addrs: &[PciAddr], snapshot: &Snapshot, but: &[Owner]) -> Result<Vec<Reason>, Error>;

    /// Brings a part of a record home.
    ///
    /// # Errors
    /// A refusal: somebody uses it; or what the executor made of a failure.
    fn bring_home(&mut self, first: &First, records: &[Record]) -> Result<(), Error>;

    /// Ends the run where a signal asked it to.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    fn not_interrupted(&mut self) -> Result<(), Error>;

    /// The record of a handoff of which nothing was done yet.
    ///
    /// # Errors
    /// Where it is not known which boot this is.
    fn new_record(&self, owner: Owner) -> Result<Record, Error>;
}

/// The host and the records, once nobody is left who is gone.
#[derive(Debug)]
pub struct Settled {
    /// All records; of what is taken over as it will be.
    pub records: Vec<Record>,
    /// The host after that.
    pub snapshot: Snapshot,
    /// What is taken over, and not written down yet.
    pub over: Vec<Over>,
    /// Something was brought home, or tried to be.
    pub moved: bool,
}

impl Settled {
    /// Where nobody's claim is in question.
    pub fn as_is(records: Vec<Record>, snapshot: Snapshot) -> Self {
        Settled {
            records,
            snapshot,
            over: Vec::new(),
            moved: false,
        }
    }
}

/// Settles whose is what `owner` wants: the cards of these GPUs, `given` among what it is given. `records` and `snapshot`:
/// as they are now.
///
/// Where its own does not come home, which it does not want, that is said, and it stays on record. Where another's does not
/// come home, what is wanted of it is taken over.
///
/// # Errors
/// A refusal: somebody has a claim, or uses what would come home; what the executor made of a failure; or why the host
/// could not be read.
pub fn settle(
    host: &mut dyn Host,
    owner: Owner,
    gpus: &[PciAddr],
    given: &[PciAddr],
    mut records: Vec<Record>,
    mut snapshot: Snapshot,
) -> Result<Settled, Error> {
    let (mut tried, mut left): (Vec<Owner>, Vec<Owner>) = (Vec::new(), Vec::new());
    loop {
        let own = records.iter().find(|r| r.owner == owner);
        let wanted = owners::wanted(&snapshot, gpus, given, own);
        let next = first(&snapshot, &records, owner, &wanted, &tried, |r| host.signs(r));
        let Some(first) = next.map_err(Refusal)? else {
            let moved = !tried.is_empty();
            return taken_over(host, records, snapshot, owner, &wanted, &left)
                .map(|settled| Settled { moved, ..settled });
        };
        let of = first.record.owner;
        tried.push(of);
        let addrs = first.part.addrs();
        let needed = host.needed(&addrs, &snapshot, &[owner, of])?;
        let devices = join(&addrs);
        let is_wanted = addrs.iter().any(|a| wanted.contains(&a.slot()));
        if !needed.is_empty() {
            let refusal = Refusal(needed);
            if !is_wanted {
                warn!("{of}: {devices}, of an earlier handoff, stays on record: {refusal}");
                continue;
            }
            return Err(refusal.into());
        }
        if of == owner && is_wanted {
            info!("{owner}: an earlier handoff of {devices} has not come to its end: home first");
        } else if of == owner {
            info!("{owner}: {devices}, of an earlier handoff, is not in its config any more: home first");
        } else {
            let runs = snapshot.vms.iter().any(|vm| Owner::Vm(vm.vmid) == of);
            let gone = if runs {
                "runs without"
            } else {
                "neither runs nor is starting, and has"
            };
            let what = match is_wanted {
                true => "it",
                false => "what stayed beside it",
            };
            info!("{of} {gone} {devices} on record: home first, since {owner} wants {what}");
        }
        match host.bring_home(&first, &records) {
            Ok(()) => {}
            Err(error @ Error::NotRestored { .. }) => {
                host.not_interrupted()?;
                let why = chain(error);
                if of == owner {
                    warn!("{owner}: {devices} did not come home, and stays on record: {why}");
                } else {
                    warn!("{of}: {devices} did not come home: {why}");
                    left.push(of);
                }
            }
            // Somebody else has it by now, and this start does not need it.
            Err(Error::Refused(refusal)) if !is_wanted && (of != owner || !refusal.is_by(owner)) => {
                warn!("{of}: {devices}, of an earlier handoff, stays on record: {refusal}");
            }
            Err(error) => return Err(error),
        }
        records = host.records()?;
        snapshot = host.look(&records)?;
    }
}

/// Puts what is wanted of these owners' records, which did not come home, into the VM's own.
fn taken_over(
    host: &dyn Host,
    mut records: Vec<Record>,
    snapshot: Snapshot,
    owner: Owner,
    wanted: &BTreeSet<PciSlot>,
    left: &[Owner],
) -> Result<Settled, Error> {
    let mut over = Vec::new();
    for from in left {
        let Some(at) = records.iter().position(|r| r.owner == *from) else {
            continue;
        };
        if owners::among(&records[at], wanted).is_empty() {
            continue; // it was concerned by what it has left without a driver
        }
        let from = records.remove(at);
        let own = records
            .iter()
            .position(|r| r.owner == owner)
            .map(|at| records.remove(at));
        let own = own.map_or_else(|| host.new_record(owner), Ok)?;
        let (own, one) = take_over(own, &from, wanted);
        records.extend(one.rest.clone());
        records.push(own);
        over.push(one);
    }
    Ok(Settled {
        records,
        snapshot,
        over,
        moved: false,
    })
}

/// Writes down what is taken over: the new owner's record first, so that a run that is killed in between leaves two that say
/// the same and never none.
///
/// # Errors
/// Any of writing.
pub fn write_over(ledger: &dyn Ledger, own: &Record, over: &[Over]) -> io::Result<()> {
    if !over.is_empty() {
        ledger.save(own)?;
    }
    for Over { from, addrs, rest } in over {
        match rest {
            Some(rest) => ledger.save(rest)?,
            None => ledger.remove(*from)?,
        }
        let (devices, are) = (join(addrs), are(addrs.len()));
        warn!(
            "{}: {devices} {are} taken over from {from}, which is gone and could not bring it home",
            own.owner
        );
    }
    Ok(())
}

/// A run that has the lock.
pub(crate) struct Locked<'a> {
    pub(crate) host: &'a mut Session,
    pub(crate) guard: &'a Guard,
}

impl Host for Locked<'_> {
    fn records(&mut self) -> Result<Vec<Record>, Error> {
        self.host.readable_records(self.guard)
    }

    fn look(&mut self, records: &[Record]) -> Result<Snapshot, Error> {
        self.host.look(records)
    }

    fn signs(&self, record: &Record) -> Signs {
        self.host.signs(record)
    }

    fn needed(&mut self, addrs: &[PciAddr], snapshot: &Snapshot, but: &[Owner]) -> Result<Vec<Reason>, Error> {
        self.host.needed(addrs, snapshot, but)
    }

    fn bring_home(&mut self, first: &First, records: &[Record]) -> Result<(), Error> {
        let First { record, part } = first;
        self.host.part_home(self.guard, record, part, records)
    }

    fn not_interrupted(&mut self) -> Result<(), Error> {
        self.host.not_interrupted()
    }

    fn new_record(&self, owner: Owner) -> Result<Record, Error> {
        Ok(Record::new(owner, this_boot()?, self.host.budgets.clone()))
    }
}

impl Session {
    /// What a snapshot does not show of a record's owner.
    pub(crate) fn signs(&self, record: &Record) -> Signs {
        let Owner::Vm(vmid) = record.owner else {
            return Signs::default();
        };
        let lives = |caller: process::Process| process::process(&self.root, caller.pid) == Some(caller);
        Signs {
            busy: self.vm_is_busy(vmid),
            caller: record.caller.is_some_and(lives),
        }
    }

    /// The same, for who acts by hand: of a caller that this run descends from nobody has to be told, since it asks.
    pub(crate) fn signs_by_hand(&self, record: &Record) -> Signs {
        let signs = self.signs(record);
        let asks = record.caller.is_some_and(|caller| self.descends_from(&[caller.pid]));
        Signs {
            caller: signs.caller && !asks,
            ..signs
        }
    }

    fn descends_from(&self, pids: &[u32]) -> bool {
        let ours = process::ancestors(&self.root, std::process::id());
        ours.iter().any(|pid| pids.contains(pid))
    }

    /// Brings a part of a record home, in the time that its way home may take. The whole record stays on file until it is.
    fn part_home(&mut self, guard: &Guard, record: &Record, part: &Part, records: &[Record]) -> Result<(), Error> {
        let end = self.kernel.now() + record.budgets.way_home;
        let plan = self.plan_home(&part.comes, records, None, end)?;
        self.execute(guard, record.clone(), part.stays.clone(), &plan, end)
    }

    /// Which VMs need these functions that have them not on record: those for which Proxmox has them reserved, and those that
    /// are just starting with them. Not those of `but`, and not the one whose task has called us.
    ///
    /// # Errors
    /// A refusal, where a file of Proxmox cannot be read.
    pub(crate) fn needed(
        &mut self,
        addrs: &[PciAddr],
        snapshot: &Snapshot,
        but: &[Owner],
    ) -> Result<Vec<Reason>, Error> {
        let (cluster, vms) = (self.cluster()?, self.vms()?);
        Ok(self.needed_by(addrs, snapshot, but, &cluster, vms))
    }

    /// The same for a way home, which does not wait for Proxmox's file system to come back: where it gives no answer, what
    /// /run knows has to do, the reservations of VMs that start or run. A VM that is just starting has one by then.
    ///
    /// # Errors
    /// A signal asked us to end.
    pub(crate) fn needed_at_home(
        &mut self,
        addrs: &[PciAddr],
        snapshot: &Snapshot,
        but: &[Owner],
    ) -> Result<Vec<Reason>, Error> {
        let read = self.cluster().and_then(|cluster| Ok((cluster, self.vms()?)));
        self.not_interrupted()?;
        let (cluster, vms) = read.unwrap_or_else(|error| {
            warn!(
                "{}; the way home goes by the reservations alone",
                error.without_promise()
            );
            (files::reservations_alone(&self.root), Vec::new())
        });
        Ok(self.needed_by(addrs, snapshot, but, &cluster, vms))
    }

    /// For which other VMs Proxmox has these functions reserved, by /run alone.
    pub(crate) fn reserved(&mut self, addrs: &[PciAddr], snapshot: &Snapshot, but: Owner) -> Vec<Reason> {
        let cluster = files::reservations_alone(&self.root);
        self.needed_by(addrs, snapshot, &[but], &cluster, Vec::new())
    }

    fn needed_by(
        &mut self,
        addrs: &[PciAddr],
        snapshot: &Snapshot,
        but: &[Owner],
        cluster: &Cluster,
        vms: Vec<VmId>,
    ) -> Vec<Reason> {
        let running = |vm: VmId| snapshot.vms.iter().find(|v| v.vmid == vm).map(|v| v.process.pid);
        let passed_over = |vmid: u64| {
            but.iter()
                .any(|o| matches!(o, Owner::Vm(vm) if u64::from(vm.get()) == vmid))
        };
        let mut claims: Vec<(Claim, Vec<PciAddr>)> = Vec::new();
        let mut add = |claim: Claim, addr: PciAddr| match claims.iter_mut().find(|(c, _)| *c == claim) {
            Some((_, addrs)) => addrs.push(addr),
            None => claims.push((claim, vec![addr])),
        };
        for addr in addrs {
            let reserved = cluster.reservations.holder(*addr, cluster.now, &running);
            // Of one whose QEMU has it more is said by whoever looks who uses it.
            let has_it = |vmid: u64| {
                let vmid = u32::try_from(vmid).ok().and_then(|vmid| VmId::try_from(vmid).ok());
                vmid.is_some_and(|vmid| !owners::held_by(snapshot, vmid, &[*addr]).is_empty())
            };
            if let Some(by) = reserved.filter(|by| !passed_over(by.vmid) && !has_it(by.vmid)) {
                let starts = matches!(by.hold, Hold::Until(_));
                add(Claim::Reserved { vmid: by.vmid, starts }, *addr);
            }
        }
        for vmid in vms {
            if passed_over(u64::from(vmid.get())) || !self.is_strangers_task(vmid) {
                continue;
            }
            // One whose config cannot be read will not start.
            let Ok(read) = self.config_of(vmid, String::new()) else {
                continue;
            };
            let given = selection::of_vm(vmid, &read, snapshot, cluster);
            let slots: BTreeSet<PciSlot> = given.functions.iter().chain(&given.gpus).map(|a| a.slot()).into_set();
            for addr in addrs.iter().filter(|a| slots.contains(&a.slot())) {
                add(Claim::Busy(vmid), *addr);
            }
        }
        let reason = |(claim, addrs)| Reason::Claimed { addrs, claim };
        claims.into_iter().map(reason).collect()
    }

    /// The process, alive and known, that has a VM's lock and has not called us.
    pub(crate) fn stranger_at_work(&self, vmid: VmId) -> Option<u32> {
        let holders = files::vm_lock(&self.root, vmid).ok().flatten()?;
        let is_there = |pid: &u32| process::process(&self.root, *pid).is_some();
        let pid = holders.iter().copied().find(is_there)?;
        (!self.descends_from(&holders)).then_some(pid)
    }

    /// Whether a task of Proxmox holds a VM's lock that has not called us.
    fn is_strangers_task(&self, vmid: VmId) -> bool {
        let holders = files::vm_lock(&self.root, vmid).ok().flatten();
        holders.is_some_and(|holders| !self.descends_from(&holders))
    }

    /// Who has a claim on these functions, for who acts by hand: the owners of records, and VMs that have none.
    ///
    /// # Errors
    /// As [`Session::needed`].
    pub(crate) fn claims(
        &mut self,
        way: Direction,
        addrs: &[PciAddr],
        snapshot: &Snapshot,
        records: &[Record],
    ) -> Result<Vec<Reason>, Error> {
        let (mut reasons, mut owners) = (Vec::new(), Vec::new());
        for record in records {
            let of: Vec<PciAddr> = addrs.iter().copied().filter(|a| record.has(*a)).collect();
            if of.is_empty() {
                continue;
            }
            owners.push(record.owner);
            if let Some(claim) = owners::claim(snapshot, record, &of, self.signs_by_hand(record)) {
                reasons.push(Reason::Claimed { addrs: of, claim });
            }
        }
        reasons.extend(match way {
            Direction::Out => self.needed(addrs, snapshot, &owners)?,
            Direction::Home => self.needed_at_home(addrs, snapshot, &owners)?,
        });
        Ok(reasons)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use nix::sys::stat;

    use crate::base::deadlines::Budgets;
    use crate::base::pci::{PciClass, VENDOR_NVIDIA};
    use crate::base::process::Process;
    use crate::base::root::Root;
    use crate::host::belongs::Belongs;
    use crate::host::functions::Function;
    use crate::host::holders::Holder;
    use crate::host::nodes::Node;
    use crate::host::vms::RunningVm;
    use crate::model::record::Taken;
    use crate::state::store::Store;

    const GPU: &str = "0000:01:00.0";
    const CALLER: u32 = 4_000_007;

    fn gpu() -> PciAddr {
        GPU.parse().unwrap()
    }

    fn vm(vmid: u32) -> VmId {
        vmid.try_into().unwrap()
    }

    fn write(dir: &Path, path: &str, text: &str) {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A process, by its parent, started at 4700.
    fn process(dir: &Path, pid: u32, parent: u32) {
        let stat = format!("{pid} (sh) S {parent} {pid} {pid} 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 4700 1000 10");
        write(dir, &format!("proc/{pid}/stat"), &stat);
    }

    /// A host with one GPU, on vfio-pci, that VMs 111 and 112 name; the caller of VM 111's pre-start may live.
    fn host(reserved: &str) -> (tempfile::TempDir, Session, Snapshot) {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "proc/sys/kernel/hostname", "pve1\n");
        write(dir.path(), "run/qemu-server/pci-id-reservations", reserved);
        for vmid in [111, 112] {
            write(
                dir.path(),
                &format!("etc/pve/qemu-server/{vmid}.conf"),
                "hostpci0: 01:00\n",
            );
            write(dir.path(), &format!("var/lock/qemu-server/lock-{vmid}.conf"), "");
        }
        write(dir.path(), "etc/pve/qemu-server/113.conf", "hostpci0: 02:00\n");
        write(dir.path(), "var/lock/qemu-server/lock-113.conf", "");
        let session = Session {
            root: Root::at(dir.path()),
            store: Store::at(dir.path().join("run/gpu-handoff")),
            ..Session::real()
        };
        let mut function = Function::new(gpu(), VENDOR_NVIDIA, 0x2204, PciClass(0x03_0000));
        function.group = Some(21);
        function.driver = Some("vfio-pci".to_owned());
        let snapshot = Snapshot {
            functions: vec![function],
            ..Snapshot::default()
        };
        (dir, session, snapshot)
    }

    fn record(owner: Owner) -> Record {
        let mut record = Record::new(owner, "boot".to_owned(), Budgets::default());
        record.taken.push(Taken::on_nvidia(gpu()));
        record.caller = Some(Process {
            pid: CALLER,
            started: 4700,
        });
        record
    }

    /// Locks a VM as a task of Proxmox does.
    fn task(dir: &Path, vmid: u32) -> File {
        let lock = File::open(dir.join(format!("var/lock/qemu-server/lock-{vmid}.conf"))).unwrap();
        lock.lock().unwrap();
        lock
    }

    fn claimed(session: &mut Session, snapshot: &Snapshot, records: &[Record]) -> Vec<Claim> {
        let reasons = session.claims(Direction::Out, &[gpu()], snapshot, records).unwrap();
        let claim = |reason| match reason {
            Reason::Claimed { addrs, claim } => {
                assert_eq!(addrs, [gpu()]);
                claim
            }
            reason => panic!("{reason}"),
        };
        reasons.into_iter().map(claim).collect()
    }

    /// Proxmox's file system is gone, and the host's own is there.
    #[test]
    fn a_way_home_goes_by_the_reservations_where_the_mappings_cannot_be_read() {
        let later = format!("{GPU} 112 time:{}\n", u32::MAX);
        for (reserved, claims) in [("", 0), (later.as_str(), 1)] {
            let (dir, mut session, snapshot) = host(reserved);
            fs::create_dir_all(dir.path().join("etc/pve/mapping/pci.cfg")).unwrap();
            let home = session.claims(Direction::Home, &[gpu()], &snapshot, &[]).unwrap();
            assert_eq!(home.len(), claims, "{reserved}");
            let out = session.claims(Direction::Out, &[gpu()], &snapshot, &[]);
            assert!(out.unwrap_err().to_string().contains("pci.cfg cannot be read"));
        }
    }

    #[test]
    fn by_hand_nothing_is_moved_that_is_reserved_for_a_vm() {
        let later = u64::from(u32::MAX);
        for (reserved, runs, claim) in [
            (String::new(), false, None),
            (String::new(), true, None),
            (
                format!("{GPU} 112 time:{later}\n"),
                false,
                Some(Claim::Reserved {
                    vmid: 112,
                    starts: true,
                }),
            ),
            (format!("{GPU} 112 time:1\n"), false, None),
            (
                format!("{GPU} 112 pid:900\n"),
                true,
                Some(Claim::Reserved {
                    vmid: 112,
                    starts: false,
                }),
            ),
            (format!("{GPU} 112 pid:900\n"), false, None),
            (format!("0000:02:00.0 112 time:{later}\n"), false, None),
            // Of the owner of the record that comes home its QEMU is asked.
            (format!("{GPU} 111 time:{later}\n"), false, None),
        ] {
            let (_dir, mut session, mut snapshot) = host(&reserved);
            if runs {
                let process = Process { pid: 900, started: 1 };
                snapshot.vms.push(RunningVm { vmid: vm(112), process });
            }
            let records = [record(Owner::Vm(vm(111)))];
            let expected: Vec<Claim> = claim.into_iter().collect();
            assert_eq!(claimed(&mut session, &snapshot, &records), expected, "{reserved:?}");
            // Once its QEMU has it, the process is named by whoever looks who uses it.
            snapshot.holders = vec![Holder {
                pid: 900,
                comm: "kvm".to_owned(),
                belongs_to: Belongs::Vm(vm(112)),
                nodes: vec![Node::VfioGroup(21)],
            }];
            assert_eq!(claimed(&mut session, &snapshot, &records), [], "{reserved:?}");
        }
    }

    /// The lines of /proc/locks for a lock that the caller has, and somebody else waits for.
    fn locked_by_caller(dir: &Path, lock: &File) {
        let meta = lock.metadata().unwrap();
        let [major, minor] = [stat::major(meta.dev()), stat::minor(meta.dev())];
        let file = format!("{major:02x}:{minor:02x}:{}", meta.ino());
        let locks =
            format!("1: FLOCK  ADVISORY  WRITE {CALLER} {file} 0 EOF\n1: -> FLOCK  ADVISORY  READ  7 {file} 0 EOF\n");
        write(dir, "proc/locks", &locks);
    }

    #[test]
    fn a_task_that_has_the_vms_lock_and_has_not_called_us_is_told_where_it_is_known_and_alive() {
        let (dir, session, _) = host("");
        let lock = task(dir.path(), 111);
        let at_work = || session.stranger_at_work(vm(111));
        assert_eq!(at_work(), None, "nobody knows whose it is");
        locked_by_caller(dir.path(), &lock);
        assert_eq!(at_work(), None, "who asked for it has ended");
        process(dir.path(), CALLER, 1);
        assert_eq!(at_work(), Some(CALLER));
        process(dir.path(), std::process::id(), CALLER);
        assert_eq!(at_work(), None, "it has called us");
        process(dir.path(), std::process::id(), 1);
        drop(lock);
        assert_eq!(at_work(), None, "over");
    }

    #[test]
    fn by_hand_nothing_is_moved_that_a_vm_is_starting_with_and_who_was_called_by_its_task_may() {
        for (vmid, by_us, records, claim) in [
            (112, false, vec![record(Owner::Vm(vm(111)))], Some(Claim::Busy(vm(112)))),
            (
                112,
                false,
                vec![record(Owner::ByHand(gpu()))],
                Some(Claim::Busy(vm(112))),
            ),
            (112, false, vec![], Some(Claim::Busy(vm(112)))),
            (112, true, vec![record(Owner::ByHand(gpu()))], None),
            (113, false, vec![record(Owner::ByHand(gpu()))], None),
            // The record says it, once.
            (111, false, vec![record(Owner::Vm(vm(111)))], Some(Claim::Busy(vm(111)))),
            (111, true, vec![record(Owner::Vm(vm(111)))], Some(Claim::Busy(vm(111)))),
        ] {
            let (dir, mut session, snapshot) = host("");
            let lock = task(dir.path(), vmid);
            if by_us {
                // A line of /proc/locks; the task has called a script that has called us.
                let ours = std::process::id();
                locked_by_caller(dir.path(), &lock);
                process(dir.path(), ours, CALLER + 1);
                process(dir.path(), CALLER + 1, CALLER);
            }
            let expected: Vec<Claim> = claim.into_iter().collect();
            let case = format!("VM {vmid}, by us: {by_us}, {} records", records.len());
            let mut records = records;
            records.iter_mut().for_each(|r| r.caller = None);
            assert_eq!(claimed(&mut session, &snapshot, &records), expected, "{case}");
            drop(lock);
            assert_eq!(claimed(&mut session, &snapshot, &records), [], "{case}, then over");
        }
    }

    #[test]
    fn by_hand_nothing_is_moved_whose_caller_lives_and_the_caller_itself_may() {
        let caller = Claim::Caller {
            vmid: vm(111),
            pid: CALLER,
        };
        let records = [record(Owner::Vm(vm(111)))];
        let (dir, mut session, snapshot) = host("");
        assert_eq!(claimed(&mut session, &snapshot, &records), []);
        process(dir.path(), CALLER, 1);
        assert_eq!(claimed(&mut session, &snapshot, &records), [caller]);
        // To a VM that starts it is a claim all the same.
        process(dir.path(), std::process::id(), CALLER);
        assert_eq!(claimed(&mut session, &snapshot, &records), []);
        assert!(session.signs(&records[0]).caller);
        let mut another = records;
        another[0].caller = Some(Process {
            pid: CALLER,
            started: 4701,
        });
        assert!(!session.signs(&another[0]).caller);
    }

    #[test]
    fn that_a_vm_runs_with_a_gpu_is_that_its_qemu_has_it() {
        let (_dir, mut session, mut snapshot) = host("");
        let mut records = [record(Owner::Vm(vm(111)))];
        records[0].caller = None;
        let process = Process { pid: 900, started: 1 };
        snapshot.vms.push(RunningVm { vmid: vm(111), process });
        assert_eq!(claimed(&mut session, &snapshot, &records), []);
        for (pid, belongs_to, node, runs) in [
            (900, Belongs::Unknown, Node::VfioGroup(21), true),
            (900, Belongs::Unknown, Node::VfioDevice(gpu()), true),
            (901, Belongs::Vm(vm(111)), Node::VfioGroup(21), true),
            (901, Belongs::Vm(vm(112)), Node::VfioGroup(21), false),
            (900, Belongs::Vm(vm(111)), Node::VfioGroup(22), false),
        ] {
            snapshot.holders = vec![Holder {
                pid,
                comm: "kvm".to_owned(),
                belongs_to: belongs_to.clone(),
                nodes: vec![node],
            }];
            let expected = if runs { vec![Claim::Runs(vm(111))] } else { Vec::new() };
            assert_eq!(
                claimed(&mut session, &snapshot, &records),
                expected,
                "{pid} {belongs_to:?} {node}"
            );
        }
    }
}
