//! A host in each state that `status` has a word for: what is seen of it, what is on record, what was done before.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use gpu_handoff::base::deadlines::Budgets;
use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::base::process::{Group, Process};
use gpu_handoff::base::root::Root;
use gpu_handoff::base::vmid::VmId;
use gpu_handoff::host::belongs::Belongs;
use gpu_handoff::host::functions::read_details;
use gpu_handoff::host::holders::{Hidden, Holder, Unseen};
use gpu_handoff::host::nodes::Node;
use gpu_handoff::host::pci_ids::{self, Named};
use gpu_handoff::host::snapshot::{self, Snapshot};
use gpu_handoff::host::stuck_calls::{StuckCall, What};
use gpu_handoff::host::vms::RunningVm;
use gpu_handoff::model::act::Act;
use gpu_handoff::model::plan::Direction;
use gpu_handoff::model::record::{Owner, Record, Run, State, Taken, Wedge};
use gpu_handoff::output::status::{Sight, Status, status};
use gpu_handoff::settings::values::Settings;
use gpu_handoff::state::history::{Did, Handoff, Past};

use crate::many;
use crate::tree;

/// One host.
pub struct Case {
    pub name: &'static str,
    pub snapshot: Snapshot,
    pub records: Vec<Record>,
    pub names: Vec<Named>,
    pub past: Vec<Handoff>,
}

impl Case {
    pub fn status(&self) -> Status {
        let settings = Settings::default();
        let sight = Sight {
            snapshot: &self.snapshot,
            records: &self.records,
            settings: Some(&settings),
            names: &self.names,
            past: &self.past,
        };
        status(&sight, None)
    }
}

/// A host of so many GPUs, at rest.
pub fn host(name: &'static str, gpus: usize) -> Case {
    let mut read = READ.lock().unwrap();
    let (snapshot, names) = read.entry(gpus).or_insert_with(|| look(gpus)).clone();
    Case {
        name,
        snapshot,
        records: Vec::new(),
        names,
        past: Vec::new(),
    }
}

/// What has been read of such hosts so far: most cases are of the same one.
static READ: Mutex<BTreeMap<usize, (Snapshot, Vec<Named>)>> = Mutex::new(BTreeMap::new());

fn look(gpus: usize) -> (Snapshot, Vec<Named>) {
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    tree::build(&many::host(gpus), dir.path()).unwrap();
    let root = Root::at(dir.path());
    let mut snapshot = snapshot::read(&root, &[]).unwrap();
    let all: Vec<PciAddr> = snapshot.functions.iter().map(|f| f.addr).collect();
    snapshot.complete(&all, read_details(&root, &all));
    let ids: Vec<_> = snapshot.functions.iter().map(|f| (f.vendor, f.device)).collect();
    let names = pci_ids::read(&root, &ids);
    (snapshot, names)
}

pub fn addr(text: &str) -> PciAddr {
    text.parse().unwrap()
}

fn vm(vmid: &str) -> VmId {
    vmid.parse().unwrap()
}

fn gpu(n: u8) -> PciAddr {
    addr(&format!("0000:{:02x}:00.0", 2 * n + 1))
}

fn record(owner: Owner, n: u8, state: State) -> Record {
    let mut record = Record::new(owner, "boot".to_owned(), Budgets::default());
    let taken = |addr, driver: &str| Taken {
        addr,
        driver: Some(driver.to_owned()),
        module: Some(driver.to_owned()),
        driver_override: None,
        width: Some(16),
        attributes: Vec::new(),
        parent: None,
    };
    record.taken = vec![taken(gpu(n), "nvidia"), taken(gpu(n).sound(), "snd_hda_intel")];
    record.state = state;
    record
}

/// What a process uses a GPU with.
fn held(case: &mut Case, pid: i32, comm: &str, belongs_to: Belongs, nodes: &[Node]) {
    case.snapshot.holders.push(Holder {
        pid,
        comm: comm.to_owned(),
        belongs_to,
        nodes: nodes.to_vec(),
    });
}

/// All of a card on a driver.
fn on(case: &mut Case, n: u8, driver: Option<&str>) {
    let group = case.snapshot.function(gpu(n)).and_then(|f| f.group);
    for f in case.snapshot.functions.iter_mut().filter(|f| f.group == group) {
        f.driver = driver.map(str::to_owned);
    }
    if let Some(nvidia) = &mut case.snapshot.nvidia {
        nvidia.gpus.retain(|g| g.addr != gpu(n));
    }
}

/// A VM runs with a card.
fn runs(case: &mut Case, vmid: &str, n: u8) {
    let pid = 4700 + u32::from(n);
    let group = case.snapshot.function(gpu(n)).and_then(|f| f.group).unwrap();
    let process = Process { pid, started: 1 };
    case.snapshot.vms.push(RunningVm {
        vmid: vm(vmid),
        process,
    });
    held(
        case,
        pid.try_into().unwrap(),
        "kvm",
        Belongs::Vm(vm(vmid)),
        &[Node::VfioGroup(group)],
    );
}

fn away(case: &mut Case, owner: Owner, n: u8) {
    on(case, n, Some("vfio-pci"));
    case.records.push(record(owner, n, State::Away));
}

fn past(time: u64, owner: &str, direction: Direction, n: u8, outcome: &str) -> Handoff {
    let act = |text: &str, took_ms, did| Past {
        remedy: None,
        text: text.into(),
        took_ms,
        error: None,
        did,
    };
    Handoff {
        forgotten: None,
        time,
        boot_id: "boot".to_owned(),
        owner: owner.to_owned(),
        direction,
        cards: vec![gpu(n).slot().to_string()],
        outcome: outcome.to_owned(),
        took_ms: 1234,
        acts: vec![
            act("ollama: stop the service", 410, Some(Did::Stopped)),
            act("0000:01:00.0: unbind from nvidia", 815, None),
        ],
    }
}

/// Saturday morning.
const TIME: u64 = 1_795_249_367;

fn wedge(n: u8) -> Wedge {
    Wedge {
        group: Group {
            number: 8123,
            started: Some(4711),
        },
        addrs: vec![gpu(n)],
        act: format!("{}: unbind from nvidia", gpu(n)),
        stack: "[<0>] nv_pci_remove+0x1b2/0x4f0 [nvidia]\n".to_owned(),
        holders: Vec::new(),
    }
}

fn leaving(n: u8) -> Record {
    let mut record = record(Owner::Vm(vm("111")), n, State::Leaving);
    record.under_way = vec![Act::UnloadModule {
        name: "nvidia_uvm".to_owned(),
    }];
    record.workers = vec![wedge(n).group];
    record.run = Some(Run {
        process: Process { pid: 4242, started: 1 },
        since_ms: 60_000,
    });
    record
}

fn stuck_call(n: u8) -> StuckCall {
    StuckCall {
        pid: 812,
        thread: 812,
        started: Some(1),
        group: Some(812),
        comm: "vfio-start.sh".to_owned(),
        belongs_to: Belongs::Session { id: "3".to_owned() },
        what: What::Unbind,
        driver: Some("nvidia".to_owned()),
        at: vec![gpu(n)],
        frame: Some("nv_pci_remove".to_owned()),
        lasts: true,
    }
}

/// Every state, and the hosts without a GPU and with sixteen.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![host("no-gpu", 0)];
    let mut add = |name, make: &dyn Fn(&mut Case)| {
        let mut case = host(name, 1);
        make(&mut case);
        cases.push(case);
    };
    let by_vm = || Owner::Vm(vm("111"));
    add("host", &|case| {
        case.past = vec![past(TIME, "VM 111", Direction::Home, 0, "done")];
    });
    add("host-in-use", &|case| {
        let unit = Belongs::Unit("ollama.service".to_owned());
        held(
            case,
            310,
            "ollama",
            unit,
            &[Node::Gpu(gpu(0)), Node::Control, Node::Uvm],
        );
        let container = Belongs::Container {
            ctid: "104".to_owned(),
            unit: Some("jellyfin.service".to_owned()),
        };
        held(case, 2001, "ffmpeg", container, &[Node::Gpu(gpu(0))]);
        held(
            case,
            900,
            "python3",
            Belongs::Session { id: "3".to_owned() },
            &[Node::Control],
        );
    });
    add("host-unclear", &|case| {
        case.snapshot.unseen = vec![Unseen {
            pid: 777,
            comm: "hung".to_owned(),
            what: Hidden::Memory,
        }];
        if let Some(module) = case.snapshot.modules.iter_mut().find(|m| m.name == "nvidia") {
            module.refs = Some(2);
        }
    });
    add("vm", &|case| {
        away(case, by_vm(), 0);
        runs(case, "111", 0);
        case.past = vec![past(TIME, "VM 111", Direction::Out, 0, "done")];
    });
    add("vm-without-a-handoff", &|case| {
        on(case, 0, Some("vfio-pci"));
        runs(case, "112", 0);
    });
    add("by-hand", &|case| away(case, Owner::ByHand(gpu(0)), 0));
    add("handing-over", &|case| {
        let mut record = leaving(0);
        record.look_on(
            Some("VM 111 pre-start (pid 4242)".to_owned()),
            Duration::from_secs(63),
            |_| true,
        );
        case.records = vec![record];
    });
    add("left-by-a-killed-run", &|case| {
        let mut record = leaving(0);
        record.look_on(None, Duration::from_secs(63), |_| true);
        case.records = vec![record];
    });
    add("interrupted", &|case| {
        let mut record = leaving(0);
        record.look_on(None, Duration::from_secs(63), |_| false);
        record.workers.clear();
        case.records = vec![record];
    });
    add("stranded", &|case| {
        on(case, 0, None);
        case.records = vec![record(by_vm(), 0, State::Stranded)];
        let why = "0000:01:00.0 could not be bound to nvidia: the driver said no. Hint: see 'journalctl -k'";
        case.past = vec![past(TIME, "VM 111", Direction::Home, 0, why)];
    });
    add("wedged", &|case| {
        let mut record = record(by_vm(), 0, State::Stranded);
        record.wedges = vec![wedge(0)];
        case.records = vec![record];
    });
    add("late", &|case| {
        on(case, 0, None);
        let mut record = record(by_vm(), 0, State::Stranded);
        record.wedges = vec![wedge(0)];
        record.look_on(None, Duration::ZERO, |_| false);
        case.records = vec![record];
    });
    add("stuck-by-another", &|case| {
        on(case, 0, None);
        case.snapshot.calls = vec![stuck_call(0)];
    });
    add("on-vfio-pci-for-nobody", &|case| on(case, 0, Some("vfio-pci")));
    add("missing", &|case| {
        case.records = vec![record(by_vm(), 0, State::Stranded)];
        case.snapshot.functions.retain(|f| f.bridge);
    });
    add("does-not-answer", &|case| {
        for f in &mut case.snapshot.functions {
            f.asked = f.bridge;
        }
    });
    add("override", &|case| {
        for f in case.snapshot.functions.iter_mut().filter(|f| !f.bridge) {
            f.driver_override = Some("vfio-pci".to_owned());
        }
    });
    let mut sixteen = host("sixteen", 16);
    away(&mut sixteen, by_vm(), 2);
    runs(&mut sixteen, "111", 2);
    away(&mut sixteen, Owner::ByHand(gpu(3)), 3);
    let mut at_work = leaving(5);
    at_work.look_on(
        Some("VM 111 pre-start (pid 4242)".to_owned()),
        Duration::from_secs(63),
        |_| true,
    );
    at_work.owner = Owner::Vm(vm("999999999"));
    sixteen.records.push(at_work);
    sixteen.records.push(record(Owner::Vm(vm("112")), 9, State::Stranded));
    for (pid, n) in [(310, 0), (311, 1), (312, 1)] {
        let unit = Belongs::Unit(format!("ollama@{n}-{pid}.service"));
        held(&mut sixteen, pid, "ollama", unit, &[Node::Gpu(gpu(n))]);
    }
    sixteen.past = vec![past(TIME, "VM 111", Direction::Out, 2, "done")];
    cases.push(sixteen);
    cases
}
