//! From a VM's hostpci lines, mappings and reservations to what is handed over, with the exact words of each refusal.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

mod common;

use common::{Device, Model, addr, host};
use gpu_handoff::base::process::Process;
use gpu_handoff::host::vms::RunningVm;
use gpu_handoff::plan::selection::{self, Given};
use gpu_handoff::proxmox::files::{Cluster, Config};
use gpu_handoff::proxmox::grammar::generation::Generation;
use gpu_handoff::proxmox::mappings::Mappings;
use gpu_handoff::proxmox::reservations::Reservations;
use gpu_handoff::proxmox::vm_config;
use gpu_handoff::settings::values::UnknownKeys;

/// Two same-model cards as one mapping. The model's cards have no subsystem ids.
const MAPPING: &str = "gpu\n\
    \tmap node=pve1,id=10de:2204,iommugroup=21,path=0000:01:00\n\
    \tmap node=pve1,id=10de:2204,iommugroup=22,path=0000:02:00\n\
    \tmap node=pve2,id=10de:2204,path=0000:41:00\n";

fn given(model: &Model, conf: &str, mappings: &str, reservations: &str) -> Given {
    let read = Config {
        path: "/etc/pve/qemu-server/111.conf".to_owned(),
        config: vm_config::parse(conf.as_bytes(), Generation::Pve9),
        generation: Generation::Pve9,
    };
    let cluster = Cluster {
        node: "pve1".to_owned(),
        mappings: Mappings::parse(mappings.as_bytes()),
        reservations: Reservations::parse(reservations.as_bytes()),
        now: 1000,
    };
    selection::of_vm("111".parse().unwrap(), &read, &model.snapshot(&[]), &cluster)
}

fn refused(given: &Given) -> String {
    given.refused.as_ref().map(ToString::to_string).unwrap_or_default()
}

#[test]
fn the_first_alternative_that_is_free_is_handed_over() {
    for (reservations, gpu) in [
        ("", addr(1, 0)),
        ("0000:01:00.0 112 time:1001\n", addr(2, 0)),
        ("0000:01:00.1 112 pid:4711\n", addr(2, 0)),
        // Expired, of a VM that does not run, our own, and half a line: no obstacle.
        ("0000:01:00.0 112 time:999\n", addr(1, 0)),
        ("0000:01:00.0 113 pid:4711\n", addr(1, 0)),
        ("0000:01:00.0 111 time:1001\n", addr(1, 0)),
        ("0000:01:00.0 112 time:10", addr(1, 0)),
        ("0000:01:00.0 112 ti", addr(1, 0)),
    ] {
        let mut model = host(2);
        model.vms.push(RunningVm {
            vmid: "112".parse().unwrap(),
            process: Process { pid: 4711, started: 1 },
        });
        let given = given(
            &model,
            "hostpci0: mapping=gpu,pcie=1\nmachine: q35\n",
            MAPPING,
            reservations,
        );
        assert_eq!(given.gpus, [gpu], "{reservations:?}: {}", refused(&given));
        assert_eq!(given.entries[0].alternatives.len(), 2);
    }
}

#[test]
fn what_proxmox_will_refuse_is_refused_in_its_reason() {
    let two_reserved = "0000:01:00.0 112 time:1001\n0000:02:00.0 112 time:1001\n";
    for (conf, reservations, why) in [
        (
            "hostpci0: 01:00\n",
            "0000:01:00.0 112 time:1001\n",
            "0000:01:00.0 is reserved by VM 112, which is starting",
        ),
        (
            "hostpci0: mapping=gpu\n",
            two_reserved,
            "hostpci0: none of its devices is free",
        ),
        (
            "hostpci0: 01:00\nhostpci1: 01:00.0\n",
            "",
            "0000:01:00.0 is assigned twice",
        ),
        ("hostpci0: 01:00,pcie=1\n", "", "hostpci0: 'pcie' needs a q35 machine"),
        (
            "hostpci0: 01:00\nhostpci1: 09:00\n",
            "",
            "hostpci1: the host has no PCI device '09:00'",
        ),
    ] {
        let given = given(&host(2), conf, MAPPING, reservations);
        assert_eq!(
            refused(&given),
            format!(
                "Proxmox will not start this VM: {why}. Hint: see its hostpci lines with 'qm config', and 'gpu-handoff \
                 status' for who has what"
            )
        );
    }
}

#[test]
fn what_is_no_gpu_of_ours_is_left_with_one_line() {
    for (conf, line) in [
        (
            "hostpci0: mapping=other\n",
            "hostpci0 cannot be resolved: the resource mapping 'other' has no device on this node",
        ),
        (
            "hostpci0: mapping=stale\n",
            "hostpci0 cannot be resolved: the resource mapping is stale: its 'id' is 10de:1111, the device's 10de:2204",
        ),
        (
            "hostpci0: mapping=moved\n",
            "hostpci0 cannot be resolved: the resource mapping is stale: the host has no PCI device '0000:07:00.0'",
        ),
        (
            "hostpci0: 09:00\n",
            "hostpci0 cannot be resolved: the host has no PCI device '09:00'",
        ),
        (
            "hostpci0: 01:00,driver=keep\n",
            "hostpci0 says driver=keep: its driver is left as it is",
        ),
        (
            "hostpci0: 01:00.0,mdev=nvidia-63\n",
            "hostpci0 is a mediated device or vGPU: the GPU stays on its host driver",
        ),
        (
            "hostpci0: 01:00\ntemplate: 1\n",
            "it is a template, which Proxmox starts without its PCI devices",
        ),
    ] {
        let mappings = "stale\n\tmap node=pve1,id=10de:1111,iommugroup=21,path=0000:01:00\n\n\
                        moved\n\tmap node=pve1,id=10de:2204,iommugroup=21,path=0000:07:00\n";
        let given = given(&host(1), conf, mappings, "");
        assert_eq!(given.left(), [line]);
        assert_eq!(given.gpus, []);
        assert_eq!(refused(&given), "");
    }
}

/// A key of tomorrow's Proxmox: what ignores it here is not what ignores it there.
#[test]
fn what_is_not_understood_and_may_mean_a_gpu_is_refused_unless_the_settings_ignore_it() {
    let mappings = "gpu\n\tmap node=pve1,id=10de:2204,iommugroup=21,path=0000:01:00\n\n\
                    later\n\tmap node=pve1,id=10de:2204,iommugroup=21,path=0000:01:00,iommufd=1\n\n\
                    both\n\tmap node=pve1,id=10de:2204,iommugroup=22,path=0000:02:00\n\
                    \tmap node=pve1,id=10de:2204,iommugroup=21,path=0000:01:00,iommufd=1\n\n\
                    elsewhere\n\tmap node=pve1,id=10de:2204,iommugroup=22,path=0000:02:00\n\
                    \tmap node=pve2,id=10de:2204,iommugroup=21,path=0000:01:00,iommufd=1\n\n\
                    nic-there\n\tmap node=pve1,id=8086:10d3,path=0000:03:00\n\
                    \tmap node=pve2,id=8086:10d3,path=0000:01:00\n\n\
                    stale\n\tmap node=pve1,id=10de:1111,iommugroup=22,path=0000:02:00\n\
                    \tmap node=pve1,id=10de:2204,iommugroup=21,path=0000:01:00,iommufd=1\n\n\
                    nic\n\tmap node=pve1,id=8086:10d3,path=0000:03:00,iommufd=1\n";
    for (conf, at) in [
        ("hostpci0: mapping=later\n", "mapping 'later'"),
        ("hostpci0: mapping=stale\n", "mapping 'stale'"),
        (
            "hostpci0: 01:00,iommufd=1\n",
            "/etc/pve/qemu-server/111.conf:1: hostpci0",
        ),
        (
            "name: x\nhostpci0: 0000:01:00.1,driver=iommufd\n",
            "/etc/pve/qemu-server/111.conf:2: hostpci0",
        ),
        (
            "hostpci0: host=01:00;02:00,iommufd=1\n",
            "/etc/pve/qemu-server/111.conf:1: hostpci0",
        ),
        (
            "hostpci0: mapping=gpu,iommufd=1\n",
            "/etc/pve/qemu-server/111.conf:1: hostpci0",
        ),
        (
            "hostpci0: iommufd=1,mapping=later\n",
            "/etc/pve/qemu-server/111.conf:1: hostpci0",
        ),
        ("hostpci16: 01:00\n", "/etc/pve/qemu-server/111.conf:1: hostpci16"),
        (
            "hostpci0: mapping=both\n",
            "mapping 'both': map node=pve1,id=10de:2204,iommugroup=21,path=0000:01:00,iommufd",
        ),
        // Another node's lines, what is handed over anyway, and what stays with its driver.
        ("hostpci0: mapping=elsewhere\n", ""),
        ("hostpci0: mapping=nic-there,iommufd=1\n", ""),
        ("hostpci0: 01:00\nhostpci1: 01:00.1,foo=1\n", ""),
        ("hostpci0: mapping=both,driver=keep\n", ""),
        // Another device, a mapping that is nowhere, and what no version could take for an address.
        ("hostpci0: 03:00,iommufd=1\n", ""),
        ("hostpci0: mapping=nic,iommufd=1\n", ""),
        ("hostpci0: mapping=none,iommufd=1\n", ""),
        ("hostpci0: x\n", ""),
        // The last line of a key that is taken counts.
        ("hostpci0: 01:00,iommufd=1\nhostpci0: 03:00\n", ""),
        ("hostpci0: 01:00,iommufd=1\ntemplate: 1\n", ""),
    ] {
        let mut model = host(2);
        model.add(Device {
            group: Some(31),
            ..Device::new(addr(3, 0), 0x8086, 0x10d3, 0x02_0000)
        });
        let given = given(&model, conf, mappings, "");
        let ignored = given.clone().judged(UnknownKeys::Ignore);
        assert_eq!(ignored.refused, None, "{conf:?}");
        let text = refused(&given.judged(UnknownKeys::Refuse));
        assert!(
            text.starts_with(at) && text.is_empty() == at.is_empty(),
            "{conf:?}: {text}"
        );
        assert!(at.is_empty() || text.contains("'unknown-keys' to \"ignore\""), "{text}");
    }
}

/// Proxmox binds the whole group of every device it passes through, without looking who uses what.
#[test]
fn a_gpu_in_the_group_of_another_device_is_not_left_to_proxmox() {
    let mut model = host(1);
    model.add(Device {
        group: Some(21),
        ..Device::new(addr(3, 0), 0x8086, 0x10d3, 0x02_0000)
    });
    let given = given(&model, "hostpci0: 03:00.0\n", "", "");
    assert_eq!(
        refused(&given),
        "IOMMU group 21 of 0000:03:00.0, which the VM is given, also has the GPU 0000:01:00.0: Proxmox would take it \
         off its driver without looking who uses it. Hint: give the GPU to the VM as well, or put one of them into \
         another slot"
    );
}
