//! What is asked for on which host, and who answers what.

use crate::hosts::Edit::{self, Append, File, Link, Replace, Without};
use crate::hosts::{Ask, CT, LINK, READY, VM};
use crate::world::Beside::{self, Away, Fails, InContainer, Inside, NoTerminal, NotRoot, Runs, Service};

/// What is typed, and what is answered.
pub type Line = (&'static str, &'static [&'static str]);

#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub ask: Ask,
    pub beside: &'static [Beside],
    pub lines: &'static [Line],
}

/// A VM without hook and GPU.
const BARE: Edit = File(
    VM,
    "bios: ovmf\ncpu: host\nmachine: q35\nmemory: 16384\nname: games\n\n[before]\nmemory: 1024\n",
);
const PLAIN: Edit = File(
    "/etc/pve/nodes/pve/lxc/105.conf",
    "arch: amd64\ndev0: /dev/ttyUSB0\nhostname: plain\n",
);
const SECOND_NODE: Edit = File("/etc/pve/nodes/pve2/qemu-server/120.conf", "memory: 512\n");
const IN_HA: Edit = File("/etc/pve/ha/resources.cfg", "vm: 111\n\tstate started\n");
const SHARE: Edit = Append(
    "/etc/pve/storage.cfg",
    "\nnfs: share\n\tserver nas\n\texport /x\n\tcontent snippets\n",
);
const ON_SHARE: Edit = Link("/mnt/pve/share/snippets/gpu-handoff", "/usr/sbin/gpu-handoff");
const MAPPING: Edit = File(
    "/etc/pve/mapping/pci.cfg",
    "audio\n\tmap node=pve,id=10de:1aef,path=0000:0b:00.1\n\nrtx\n\tmap node=pve,id=10de:2204,subsystem-id=10de:147d,\
     iommugroup=24,path=0000:0b:00\n",
);
const FULL: Edit = File(
    VM,
    "hostpci0: 00:03.1,x-vga=1\nhostpci1: 00:04.0\nhostpci2: 00:05.0\nhostpci3: 00:06.0\n\
     hostpci4: 00:07.0\nhostpci5: 00:08.0\nhostpci6: 00:09.0\nhostpci7: 00:0a.0\nhostpci8: 00:0b.0\n\
     hostpci9: 00:0c.0\nhostpci10: 00:0d.0\nhostpci11: 00:0e.0\nhostpci12: 00:0f.0\n\
     hostpci13: 00:10.0\nhostpci14: 00:11.0\nhostpci15: 00:12.0\n",
);
const OWN: &str = "/etc/gpu-handoff/conf.d/111.toml";

const fn on(vm: &'static str, edits: &'static [Edit]) -> Ask {
    Ask {
        vm: Some(vm),
        edits,
        ..READY
    }
}

const fn case(name: &'static str, ask: Ask, lines: &'static [Line]) -> Case {
    Case {
        name,
        ask,
        beside: &[],
        lines,
    }
}

const fn beside(case: Case, beside: &'static [Beside]) -> Case {
    Case { beside, ..case }
}

const ATTACH: &[Line] = &[("attach 111 --yes", &[])];
const WITH_GPU: &[Line] = &[("attach 111 --gpu 0 --yes", &[])];

pub const CASES: &[Case] = &[
    case(
        "a person is asked, and says no, then yes; twice is as once; and the way back",
        on("111", &[BARE]),
        &[
            ("attach 111 --gpu 0b:00", &["n"]),
            ("attach 111 --gpu 0b:00", &["y"]),
            ("attach 111 --gpu 0b:00", &[]),
            ("attach 111", &[]),
            ("detach 111 --gpu 0", &["n"]),
            ("detach 111 --gpu 0", &["y"]),
            ("detach 111 --gpu 0", &[]),
        ],
    ),
    case(
        "only shown",
        on("111", &[BARE]),
        &[("attach 111 --gpu 0 --dry-run", &[])],
    ),
    case("the hook alone", on("111", &[BARE]), ATTACH),
    case(
        "i440fx, the first line taken, as the primary display",
        on("111", &[File(VM, "hostpci0: 00:03.1\nmemory: 512\n")]),
        &[("attach 111 --gpu 0 --primary-gpu --yes", &[])],
    ),
    case(
        "a cluster with a mapping of exactly that card",
        on("111", &[BARE, SECOND_NODE, MAPPING]),
        WITH_GPU,
    ),
    case(
        "a node that is alone, and has one",
        on("111", &[BARE, MAPPING]),
        WITH_GPU,
    ),
    case(
        "the same, asked for, and taken back",
        on("111", &[BARE, MAPPING]),
        &[
            ("attach 111 --gpu 0 --mapping --yes", &[]),
            ("detach 111 --gpu all --yes", &[]),
        ],
    ),
    case(
        "HA, and a storage of this node's",
        on("111", &[BARE, SECOND_NODE, IN_HA]),
        ATTACH,
    ),
    case(
        "HA, and a storage that is shared",
        on("111", &[BARE, SECOND_NODE, IN_HA, SHARE, ON_SHARE]),
        ATTACH,
    ),
    case(
        "a storage elsewhere that has the link",
        on("111", &[BARE, SHARE, ON_SHARE, Without(LINK)]),
        ATTACH,
    ),
    beside(case("it runs", on("111", &[BARE]), WITH_GPU), &[Runs]),
    case(
        "a script that calls this program and others",
        on(
            "111",
            &[
                Replace(VM, "gpu-handoff", "my-hooks"),
                File(
                    "/var/lib/vz/snippets/my-hooks",
                    "#!/bin/sh\n# hook /x\nhook /usr/sbin/gpu-handoff\n",
                ),
            ],
        ),
        &[("attach 111 --yes", &[]), ("detach 111 --yes", &[])],
    ),
    case(
        "a container, its way back, and what all GPUs need",
        on("105", &[PLAIN]),
        &[
            ("attach 105 --gpu 0 --yes", &[]),
            ("attach 105 --gpu 0 --yes", &[]),
            ("detach 105 --gpu 0 --yes", &[]),
        ],
    ),
    case(
        "a container that has some of it",
        on(
            "104",
            &[
                Replace(CT, "dev2", "dev7"),
                Append(CT, "lxc.mount.entry: /dev/nvidia-uvm-tools dev/x none bind\n"),
            ],
        ),
        &[("attach 104 --gpu 0 --yes", &[])],
    ),
    beside(
        case(
            "who is in the way: one is allowed, the other is not",
            on(
                "111",
                &[BARE, File("/etc/gpu-handoff/config.toml", "services = \"jellyfin\"\n")],
            ),
            &[
                ("attach 111 --gpu 0", &["y", "n", "y"]),
                ("attach 111", &["y", "y"]),
                ("detach 111 --yes", &[]),
            ],
        ),
        &[
            Service("ollama.service"),
            Inside("104", "tabby.service"),
            InContainer("105"),
            Service("ssh.service"),
        ],
    ),
    beside(
        case(
            "all that can be started again is allowed",
            on("111", &[]),
            &[
                ("attach 111 --yes", &[]),
                ("attach 111 --accept-policies --dry-run", &[]),
                ("attach 111 --accept-policies --yes", &[]),
                ("attach 111 --accept-policies --yes", &[]),
            ],
        ),
        &[Service("ollama.service"), Inside("104", "tabby.service")],
    ),
    beside(
        case(
            "a file of somebody's own",
            on("111", &[File(OWN, "way = \"unbind\"\n")]),
            &[
                ("attach 111 --accept-policies --yes", &[]),
                ("attach 111", &[]),
                ("detach 111 --yes", &[]),
            ],
        ),
        &[Service("ollama.service")],
    ),
    beside(
        case("it has the GPU", on("111", &[]), &[("detach 111 --yes", &[])]),
        &[Away],
    ),
    case(
        "lines that are not as attach sets them",
        on("111", &[Replace(VM, "pcie=1", "pcie=1,rombar=0")]),
        &[("detach 111 --gpu all --yes", &[])],
    ),
    case(
        "all of this node",
        Ask {
            vm: None,
            edits: &[
                PLAIN,
                File(
                    "/etc/pve/nodes/pve/qemu-server/112.conf",
                    "hookscript: local:snippets/x\n",
                ),
            ],
            ..READY
        },
        &[("detach --all --yes", &[]), ("detach --all --yes", &[])],
    ),
    case(
        "all of this node, of which one is locked",
        Ask {
            vm: None,
            edits: &[Append(VM, "lock: backup\n")],
            ..READY
        },
        &[("detach --all --yes", &[])],
    ),
    // What is refused.
    case(
        "no such guest",
        on("999", &[]),
        &[("attach 999", &[]), ("detach 999", &[])],
    ),
    case(
        "a guest of another node",
        on("120", &[SECOND_NODE]),
        &[("attach 120", &[])],
    ),
    case(
        "a template that is locked and has changes that wait",
        on(
            "111",
            &[File(
                VM,
                "template: 1\nlock: backup\n[PENDING]\nhostpci1: 02:00\ndelete: hookscript\n",
            )],
        ),
        &[("attach 111 --gpu 0", &[]), ("detach 111", &[])],
    ),
    case(
        "a container that is locked and has changes that wait",
        on(
            "105",
            &[
                PLAIN,
                Append(
                    "/etc/pve/nodes/pve/lxc/105.conf",
                    "lock: migrate\n[pve:pending]\ndelete: dev0\n",
                ),
            ],
        ),
        &[("attach 105 --gpu 0", &[])],
    ),
    case(
        "another hookscript",
        on("111", &[Replace(VM, "gpu-handoff", "mine")]),
        &[("attach 111", &[]), ("detach 111", &[])],
    ),
    case(
        "lines that Proxmox ignores",
        on("111", &[Append(VM, "hostpci1: 0B:00\nhostpci16: 01:00\n")]),
        &[("attach 111", &[])],
    ),
    case(
        "GPUs that are none",
        on("111", &[BARE]),
        &[("attach 111 --gpu 7 --gpu 00:03.1 --gpu 0000:0b:00.0", &[])],
    ),
    case(
        "no mapping",
        on("111", &[BARE]),
        &[("attach 111 --gpu 0 --mapping", &[])],
    ),
    case(
        "the card in a line of another kind",
        on("111", &[Replace(VM, "pcie=1", "mdev=nvidia-63")]),
        &[("attach 111 --gpu 0", &[])],
    ),
    case(
        "a primary display, and no line free",
        on("111", &[FULL]),
        &[("attach 111 --gpu 0 --primary-gpu", &[])],
    ),
    case(
        "no storage has the link",
        on("111", &[BARE, Without(LINK)]),
        &[("attach 111", &[])],
    ),
    case(
        "a container, and a GPU that is away; and what is of VMs",
        on("105", &[PLAIN, Without("/proc/driver/nvidia/gpus/0000:0b:00.0")]),
        &[("attach 105 --gpu 0", &[]), ("attach 105 --gpu 0 --mapping", &[])],
    ),
    beside(case("not root", on("111", &[BARE]), ATTACH), &[NotRoot]),
    beside(
        case(
            "no terminal",
            on("111", &[BARE]),
            &[("attach 111", &[]), ("attach 111 --gpu 0 --json", &[])],
        ),
        &[NoTerminal],
    ),
    beside(
        case("qm fails", on("111", &[BARE]), &[("attach 111 --yes", &[])]),
        &[Fails],
    ),
];
