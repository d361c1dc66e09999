//! What is refused, with the exact words where they matter to the reader.

use std::time::Duration;

use gpu_handoff::host::nodes::Node;
use gpu_handoff::model::plan::Way;
use gpu_handoff::model::refusal::{Reason, Refusal};
use gpu_handoff::settings::values::{Doubt, WayOut};

use crate::common::hosts::add_card;
use crate::common::session::vm;
use crate::common::{End, Event, Generation, Model, Process, Session, When, addr, host};
use crate::{assert_as_before, plan_out};

/// From 595 on an unbind that meets a user never ends, and of a driver whose version cannot be read that is not known: only
/// the unload is safe, which the kernel itself refuses. What stays has its driver again at the end, out and home.
#[test]
fn a_driver_whose_unbind_may_never_end_is_unloaded_and_loaded_again_for_what_stays() {
    for (version, of_the_other) in [("595.45.04", None), ("620.70", Some("vfio-pci")), ("", Some("nvidia"))] {
        let mut model = host(3);
        model.version = version.to_owned();
        if let Some(device) = model.devices.iter_mut().find(|d| d.addr == addr(3, 0)) {
            device.driver_override = of_the_other.map(str::to_owned);
        }
        let before = model.state();
        let session = Session::new(&[addr(2, 0)]);
        let plan = session.plan_out(&mut model).unwrap();
        assert_eq!(plan.way, Way::Unload, "{version}");
        let stays: Vec<_> = plan.beside.iter().map(|b| (b.addr, b.driver.as_str())).collect();
        assert_eq!(stays, [(addr(1, 0), "nvidia"), (addr(3, 0), "nvidia")], "{version}");
        assert!(
            plan.notes[0].contains("0000:01:00.0, 0000:03:00.0, which stay on it, are without it"),
            "{:?}",
            plan.notes
        );
        assert!(matches!(session.out(&mut model), End::Done), "{version}");
        for (of, driver) in [(1, "nvidia"), (2, "vfio-pci"), (3, "nvidia")] {
            assert_eq!(model.driver_of(addr(of, 0)), Some(driver), "{version}");
        }
        let record = &session.records(&mut model)[0];
        assert!(
            record.beside.is_empty() && record.taken.iter().all(|t| t.addr.slot() == addr(2, 0).slot()),
            "{version}"
        );
        assert!(matches!(session.home(&mut model), End::Done), "{version}");
        assert_as_before(&model, &before, version);
    }
}

/// A monitoring tool that opens and closes the GPU again and again: between the look through all processes and the reading of
/// the driver's counts it may have opened it.
#[test]
fn who_is_only_counted_has_a_moment_to_let_go_like_anybody_else() {
    let moment = Duration::from_secs(1);
    for (letting_go, version) in [
        (Some(moment), "580.105.08"),
        (None, "580.105.08"),
        (Some(moment), "595.45.04"),
    ] {
        let mut model = host(2);
        model.version = version.to_owned();
        let mut process = Process::new(9, &[Node::Gpu(addr(2, 0))]);
        process.hidden = true;
        model.open(process).unwrap();
        model
            .events
            .extend(letting_go.map(|time| (When::At(time), Event::Goes(9))));
        let session = Session::new(&[addr(2, 0)]);
        let end = session.out(&mut model);
        match letting_go {
            Some(_) => assert!(matches!(end, End::Done), "{end:?}"),
            None => {
                let End::Refused(refusal) = end else { panic!("{end:?}") };
                assert!(matches!(refusal.0[0], Reason::Uncounted { .. }), "{refusal}");
                assert!(model.time >= session.settings.budgets.holder_wait, "{:?}", model.time);
            }
        }
    }
}

/// Who uses what stays is in the way, too, and it is said why; the settings do not make it an unbind.
#[test]
fn who_uses_what_stays_on_a_driver_that_is_unloaded_is_in_the_way() {
    for node in [Node::Gpu(addr(1, 0)), Node::Drm(addr(1, 0)), Node::Uvm, Node::Control] {
        let mut model = host(2);
        model.version = "595.45.04".to_owned();
        model.processes.push(Process::new(9, &[node]));
        let refusal = plan_out(&mut model, &[addr(2, 0)]).unwrap_err();
        assert_eq!(refusal.only_holders(), Some(vec![9]), "{node}");
        let said = "(2) an unbind by driver 595.45.04 never ends if anybody turns out to use the GPU, so that the driver is \
                    unloaded and loaded again; for that moment nobody may use 0000:01:00.0 either. Hint: ";
        let refusal = refusal.to_string();
        assert!(
            refusal.contains("process 9 (python3") && refusal.contains(said),
            "{node}: {refusal}"
        );
    }
    let mut model = host(2);
    model.version = "595.45.04".to_owned();
    let mut session = Session::new(&[addr(2, 0)]);
    session.settings.way = WayOut::Unbind;
    let refusal = session.plan_out(&mut model).unwrap_err().to_string();
    assert!(
        refusal.starts_with("'way' is \"unbind\", and an unbind by driver 595.45.04 never ends"),
        "{refusal}"
    );
    // What stays is looked at: its virtual functions or instances would not come back with the driver.
    if let Some(device) = model.devices.iter_mut().find(|d| d.addr == addr(1, 0)) {
        device.vfs = 4;
    }
    let refusal = plan_out(&mut model, &[addr(2, 0)]).unwrap_err().to_string();
    assert!(refusal.contains("0000:01:00.0 has virtual functions (4)"), "{refusal}");
}

#[test]
fn whoever_uses_the_gpu_is_named_with_the_remedy() {
    for (nodes, cards, refused) in [
        (vec![Node::Gpu(addr(1, 0))], 1, true),
        (vec![Node::Control], 1, true),
        (vec![Node::Uvm], 2, true),
        (vec![Node::Sound(addr(1, 1))], 1, true),
        (vec![Node::VfioGroup(21)], 1, true),
        (vec![Node::Drm(addr(1, 0))], 2, true),
        (vec![Node::UnknownGpu(9)], 2, true),
        // Another GPU's own nodes are no reason.
        (vec![Node::Gpu(addr(2, 0))], 2, false),
        (vec![Node::Sound(addr(2, 1))], 2, false),
        (vec![Node::VfioGroup(22)], 2, false),
        // But its displays are, where nvidia_drm would have to be unloaded.
        (vec![Node::Drm(addr(2, 0))], 2, true),
    ] {
        let mut model = host(cards);
        model.processes.push(Process::new(777, &nodes));
        let plan = plan_out(&mut model, &[addr(1, 0)]);
        assert_eq!(plan.is_err(), refused, "{nodes:?}");
        if let Err(refusal) = plan {
            let text = refusal.to_string();
            assert!(text.contains("process 777 (python3, container 104)"), "{text}");
            assert!(text.contains("Hint: pct shutdown 104"), "{text}");
        }
    }
}

#[test]
fn every_reason_is_listed_at_once() {
    let mut model = host(1);
    model.iommu = false;
    model.processes.push(Process::new(777, &[Node::Gpu(addr(1, 0))]));
    model.processes.push(Process {
        unreadable: true,
        ..Process::new(9, &[Node::Sound(addr(1, 1))])
    });
    let Refusal(reasons) = plan_out(&mut model, &[addr(1, 0)]).unwrap_err();
    assert!(
        matches!(
            reasons.as_slice(),
            [Reason::IommuOff, Reason::Held { .. }, Reason::Unseen(_)]
        ),
        "{reasons:?}"
    );
    assert!(
        Refusal(reasons)
            .to_string()
            .starts_with("3 reasons: (1) the IOMMU is off")
    );
}

/// An I2C bus is one reference of the driver that made it, and of no other: it hides nobody.
#[test]
fn an_open_i2c_bus_accounts_for_itself_alone() {
    for bus in [addr(2, 0), addr(2, 1)] {
        for unseen in 0..=2 {
            let mut model = host(2);
            model.pins.extend(std::iter::repeat_n("nvidia", unseen));
            model.processes.push(Process::new(9, &[Node::I2c(bus)]));
            let case = format!("{bus}, {unseen} more");
            match (plan_out(&mut model, &[addr(1, 0)]), unseen) {
                (Ok(_), 0) => {}
                (Err(refusal), 1..) => {
                    let said = format!("in use beyond what can be seen ({unseen} more");
                    assert!(refusal.to_string().contains(&said), "{case}: {refusal}");
                }
                (plan, _) => panic!("{case}: {plan:?}"),
            }
        }
    }
}

/// Where the kernel's counts leave nothing open, who was not seen vetoes nothing; what they have beyond that is doubt.
#[test]
fn who_was_not_seen_is_in_the_way_only_where_the_counts_say_so() {
    for (unseen, ending, nodes, pinned, refused) in [
        (true, false, vec![], None, None),
        (false, true, vec![], None, None),
        (
            true,
            false,
            vec![Node::Gpu(addr(2, 0))],
            None,
            Some("process 9 (python3) could not be read"),
        ),
        (
            false,
            true,
            vec![Node::Sound(addr(2, 1))],
            None,
            Some("process 9 (python3, container 104) is ending"),
        ),
        (
            false,
            false,
            vec![],
            Some("nvidia"),
            Some("module nvidia is in use beyond what can be seen (1 more"),
        ),
        (
            false,
            false,
            vec![],
            Some("snd_hda_intel"),
            Some("module snd_hda_intel is in use beyond"),
        ),
        // Memory of a GPU that GPUDirect has pinned for somebody.
        (
            false,
            false,
            vec![],
            Some("nvidia_peermem"),
            Some("module nvidia_peermem is in use beyond what can be seen (1 more"),
        ),
    ] {
        let mut model = host(2);
        model.loaded_since_boot("nvidia_peermem");
        model.pins.extend(pinned);
        model.processes.push(Process {
            unreadable: unseen,
            ending,
            ..Process::new(9, &nodes)
        });
        let case = format!("{unseen} {ending} {nodes:?} {pinned:?}");
        match (plan_out(&mut model, &[addr(2, 0)]), refused) {
            (Ok(_), None) => {}
            (Err(refusal), Some(said)) => assert!(refusal.to_string().contains(said), "{case}: {refusal}"),
            (plan, _) => panic!("{case}: {plan:?}"),
        }
        if pinned.is_some() {
            let mut session = Session::new(&[addr(2, 0)]);
            session.settings.doubt = Doubt::GoOn;
            assert!(session.plan_out(&mut model).is_ok(), "{case}");
        }
    }
}

/// The kernel itself refuses to unload what is open, whoever has it: who was not seen vetoes nothing, and who does have it
/// open and goes is waited for.
#[test]
fn who_was_not_seen_is_in_nobodys_way_where_the_driver_is_unloaded() {
    let soon = Duration::from_secs(1);
    for (unreadable, ending) in [(true, false), (false, true)] {
        for (nodes, goes) in [
            (vec![], None),
            (vec![Node::Gpu(addr(1, 0))], Some(soon)),
            (vec![Node::Gpu(addr(1, 0))], None),
        ] {
            let case = format!("unreadable: {unreadable}, ending: {ending}, {nodes:?}, goes: {goes:?}");
            let mut model = host(1);
            let is_free = nodes.is_empty() || goes.is_some();
            model.processes.push(Process {
                unreadable,
                ending,
                ..Process::new(9, &nodes)
            });
            let before = model.state();
            model.events.extend(goes.map(|time| (When::At(time), Event::Goes(9))));
            let session = Session::new(&[addr(1, 0)]);
            let plan = session.plan_out(&mut model).unwrap_or_else(|e| panic!("{case}: {e}"));
            assert_eq!(plan.way, Way::Unload, "{case}");
            match session.out(&mut model) {
                End::Done if is_free => {}
                End::Restored(why) if !is_free => {
                    assert!(why.contains("the kernel says that nvidia is in use"), "{case}: {why}");
                    assert_as_before(&model, &before, &case);
                }
                end => panic!("{case}: {end:?}"),
            }
            assert_eq!(model.laws.broken, [""; 0], "{case}");
        }
    }
}

/// Of a group of VFIO's the kernel says whether anybody has it: the way home asks that, and nobody who was not seen.
#[test]
fn who_was_not_seen_is_in_nobodys_way_home() {
    for cards in [1, 2] {
        let mut model = host(cards);
        let before = model.state();
        let session = Session::new(&[addr(1, 0)]);
        assert!(matches!(session.out(&mut model), End::Done));
        model.processes.push(Process {
            unreadable: true,
            ..Process::new(9, &[])
        });
        // The QEMU of another VM, with a device of its own.
        model.processes.push(Process {
            ending: true,
            ..Process::guest(950, 200, 99)
        });
        let began = model.time;
        let end = session.home(&mut model);
        assert!(matches!(end, End::Done), "{cards} cards: {end:?}");
        assert!(
            model.time - began < Duration::from_secs(2),
            "{cards} cards: waited for somebody"
        );
        assert_as_before(&model, &before, &format!("{cards} cards"));
    }
}

/// A card with a USB-C port has two more functions: a controller, which waits for nobody, and a bus, whose driver's module
/// counts who has it open.
#[test]
fn who_was_not_seen_is_in_the_way_of_a_usb_c_port_only_where_the_counts_say_so() {
    for (pinned, open, refused) in [
        (0, false, None),
        (0, true, None),
        (1, false, Some("process 9 (python3, container 104) is ending")),
        (1, true, Some("process 9 (python3, container 104) is ending")),
    ] {
        let mut model = Model::new(Generation::K6_12);
        add_card(&mut model, 1, 0x2204, 4);
        for (function, driver) in (0..).zip(["nvidia", "snd_hda_intel", "xhci_hcd", "nvidia-gpu"]) {
            model.settle_on(addr(1, function), driver);
        }
        // Another card's bus is counted by the same module, and is no function that leaves.
        add_card(&mut model, 2, 0x2204, 4);
        model.settle_on(addr(2, 0), "nvidia");
        model.settle_on(addr(2, 3), "nvidia-gpu");
        model.pins.extend(std::iter::repeat_n("i2c_nvidia_gpu", pinned));
        if open {
            model.processes.push(Process::new(8, &[Node::I2c(addr(2, 3))]));
        }
        model.processes.push(Process {
            ending: true,
            ..Process::new(9, &[])
        });
        let case = format!("{pinned} {open}");
        match (plan_out(&mut model, &[addr(1, 0)]), refused) {
            (Ok(_), None) => {}
            (Err(refusal), Some(said)) => assert!(refusal.to_string().contains(said), "{case}: {refusal}"),
            (plan, _) => panic!("{case}: {plan:?}"),
        }
    }
}

#[test]
fn a_stranger_in_the_group_refuses_unless_the_vm_was_given_it() {
    let mut model = host(2);
    for device in model.devices.iter_mut().filter(|d| !d.bridge) {
        device.group = Some(21);
    }
    let refusal = plan_out(&mut model, &[addr(1, 0)]).unwrap_err().to_string();
    assert!(
        refusal.contains("IOMMU group 21 of 0000:01:00.0 also has 0000:02:00.0 (nvidia)"),
        "{refusal}"
    );
    let with_it = Session {
        given: vec![addr(2, 0), addr(2, 1)],
        ..Session::new(&[addr(1, 0)])
    };
    with_it.plan_out(&mut model).unwrap();
    plan_out(&mut model, &[addr(1, 0), addr(2, 0)]).unwrap();
}

#[test]
fn a_card_that_is_split_or_without_an_iommu_is_refused_with_the_remedy() {
    type Change = fn(&mut Model);
    let cases: [(Change, &str); 5] = [
        (
            |m| m.device_mut(addr(1, 0)).unwrap().vfs = 4,
            "0000:01:00.0 has virtual functions (4)",
        ),
        (
            |m| m.device_mut(addr(1, 0)).unwrap().physfn = Some(addr(9, 0)),
            "0000:01:00.0 is a virtual function of 0000:09:00.0",
        ),
        (
            |m| m.device_mut(addr(1, 0)).unwrap().mig = true,
            "0000:01:00.0 is split into MIG instances",
        ),
        (
            |m| m.device_mut(addr(1, 1)).unwrap().noiommu = true,
            "0000:01:00.1 is in a group of VFIO's unsafe no-IOMMU mode",
        ),
        (
            |m| m.die(addr(1, 0)),
            "2 reasons: (1) 0000:01:00.0 does not answer any more",
        ),
    ];
    for (change, text) in cases {
        let mut model = host(1);
        change(&mut model);
        let refusal = plan_out(&mut model, &[addr(1, 0)]).unwrap_err().to_string();
        assert!(refusal.starts_with(text), "{refusal}");
        assert!(refusal.contains("Hint: "), "{refusal}");
    }
}

#[test]
fn what_another_handoff_has_is_not_taken() {
    let mut model = host(1);
    let other = Session {
        owner: vm(112),
        ..Session::new(&[addr(1, 0)])
    };
    assert!(matches!(other.out(&mut model), End::Done));
    let refusal = plan_out(&mut model, &[addr(1, 0)]).unwrap_err();
    assert!(
        refusal.to_string().contains("0000:01:00.0 is taken already (VM 112)"),
        "{refusal}"
    );
}

#[test]
fn a_module_that_nobody_accounts_for_refuses() {
    let mut model = host(1);
    model.pins.push("nvidia_drm");
    let refusal = plan_out(&mut model, &[addr(1, 0)]).unwrap_err().to_string();
    assert!(refusal.contains("module nvidia_drm is in use (1 more"), "{refusal}");
    assert!(refusal.contains("vtconsole"), "{refusal}");
}

#[test]
fn a_module_that_cannot_be_loaded_again_refuses() {
    let mut model = host(1);
    model.broken.push(("nvidia_uvm", "its file is not there"));
    let refusal = plan_out(&mut model, &[addr(1, 0)]).unwrap_err().to_string();
    assert!(
        refusal.starts_with("module nvidia_uvm cannot be loaded: its file is not there; without it the GPU would not"),
        "{refusal}"
    );
}
