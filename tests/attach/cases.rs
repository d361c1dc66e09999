//! What is asked for on which host, and who answers what.

use crate::check_part::Part;
use crate::hosts::Edit::{self, Append, File, Link, Replace, Without};
use crate::hosts::{Ask, CT, LINK, Machine, READY, VM};
use crate::world::Beside::{
    self, Away, DoneAllTheSame, Fails, FailsAt, Fixed, Halfway, InContainer, Inside, Meanwhile, NoAnswer, NoTerminal,
    NotRoot, OfUser, Runs, Service, Signal,
};

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
const COPY: &str = "/var/lib/gpu-handoff/attached/111.toml";
const C105: &str = "/etc/pve/nodes/pve/lxc/105.conf";
const CONFIG: &str = "/etc/gpu-handoff/config.toml";
/// Settings as attach writes them.
const SETTINGS: Edit = File(OWN, "services = \"ollama\"\n");
const COPIED: Edit = File(COPY, "services = \"ollama\"\n");
const OURS: &[Edit] = &[SETTINGS, COPIED];
/// What systemd says of a unit.
const SAID: &str = "/programs/systemctl show --property=Id,ActiveState,RequiredBy,RequisiteOf,BoundBy,ConsistsOf,\
    PropagatesStopTo,TriggeredBy,LoadState,CanStart,CanStop,Transient,UpheldBy,Accept,KillMode ollama.service";
const ALSO: &str = "/programs/systemctl show --property=Id,ActiveState,RequiredBy,RequisiteOf,BoundBy,ConsistsOf,\
    PropagatesStopTo,TriggeredBy,LoadState,CanStart,CanStop,Transient,UpheldBy,Accept,KillMode open-webui.service";
const HOOKED: &str = "machine: q35\nhookscript: local:snippets/gpu-handoff\n";

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
            "a service of a user's systemd is in the way",
            on("111", &[]),
            &[
                ("attach 111 --gpu 0", &["y", "y"]),
                ("attach 111", &[]),
                ("detach 111 --yes", &[]),
            ],
        ),
        &[OfUser(1000, "ollama.service")],
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
    // What changes meanwhile.
    beside(
        case(
            "somebody takes the line while the question stands",
            on("111", &[BARE]),
            &[("attach 111 --gpu 0", &["y"])],
        ),
        &[Meanwhile(VM, "hostpci0: 0000:05:00.0\nmachine: q35\n")],
    ),
    beside(
        case(
            "somebody makes another device of a line that is to go",
            on("105", &[PLAIN]),
            &[("attach 105 --gpu 0 --yes", &[]), ("detach 105 --gpu all", &["y"])],
        ),
        &[Meanwhile(
            C105,
            "dev1: /dev/ttyUSB0\nhookscript: local:snippets/gpu-handoff\n",
        )],
    ),
    beside(
        case(
            "somebody writes the settings while the question stands",
            on("111", &[]),
            &[("attach 111", &["y", "y"])],
        ),
        &[Meanwhile(OWN, "way = \"unbind\"\n"), Service("ollama.service")],
    ),
    beside(
        case(
            "the same, while they are to go",
            on("111", OURS),
            &[("detach 111", &["y"])],
        ),
        &[Meanwhile(OWN, "way = \"unbind\"\n")],
    ),
    // What fails halfway.
    beside(
        case(
            "a signal while qm runs",
            on("111", &[BARE]),
            &[("attach 111 --gpu 0 --accept-policies --yes", &[])],
        ),
        &[Signal, Service("ollama.service")],
    ),
    beside(
        case(
            "the settings cannot be written",
            on("111", &[BARE]),
            &[("attach 111 --gpu 0 --accept-policies --yes", &[])],
        ),
        &[Fixed("conf.d"), Service("ollama.service")],
    ),
    beside(
        case(
            "qm fails: the settings are taken back",
            on("111", &[BARE]),
            &[("attach 111 --gpu 0 --accept-policies --yes", &[])],
        ),
        &[Fails, Service("ollama.service")],
    ),
    beside(
        case(
            "qm says that it has failed, and has done it",
            on("111", &[BARE]),
            &[("attach 111 --gpu 0 --yes", &[])],
        ),
        &[DoneAllTheSame],
    ),
    beside(
        case(
            "qm fails, and the config is another one",
            on("111", &[BARE]),
            &[("attach 111 --gpu 0 --accept-policies --yes", &[])],
        ),
        &[Halfway, Service("ollama.service")],
    ),
    beside(
        case(
            "the settings cannot be removed",
            on("111", OURS),
            &[("detach 111 --yes", &[])],
        ),
        &[Fixed("conf.d")],
    ),
    beside(
        case(
            "all of this node, of which the first fails, and the second",
            Ask {
                vm: None,
                edits: OURS,
                ..READY
            },
            &[("detach --all --yes", &[]), ("detach --all --yes", &[])],
        ),
        &[FailsAt(1), FailsAt(3)],
    ),
    case(
        "all of this node: settings of a guest that has the hook no more, and of one that is gone",
        Ask {
            vm: None,
            edits: &[
                SETTINGS,
                COPIED,
                Replace(VM, "hookscript", "#hookscript"),
                File("/etc/gpu-handoff/conf.d/300.toml", "services = \"ollama\"\n"),
                File("/var/lib/gpu-handoff/attached/300.toml", "services = \"ollama\"\n"),
                File("/etc/gpu-handoff/conf.d/120.toml", "services = \"ollama\"\n"),
                File("/var/lib/gpu-handoff/attached/120.toml", "services = \"ollama\"\n"),
                SECOND_NODE,
            ],
            ..READY
        },
        &[("detach --all --yes", &[])],
    ),
    case(
        "Proxmox's files give no answer",
        Ask {
            vm: None,
            missed: Some(Part::Proxmox),
            ..READY
        },
        &[("detach --all --yes", &[])],
    ),
    case(
        "Proxmox's files are not mounted",
        Ask {
            vm: None,
            edits: &[Without("/etc/pve/qemu-server")],
            ..READY
        },
        &[("detach --all --yes", &[])],
    ),
    // Lines that attach has not set.
    case(
        "lines of somebody's own, of a VM",
        on("111", &[File(VM, "machine: q35\nhostpci0: 0b:00,pcie=1,x-vga=1\n")]),
        &[("attach 111 --yes", &[]), ("detach 111 --gpu all --yes", &[])],
    ),
    case(
        "lines of somebody's own, of a container",
        on(
            "105",
            &[File(
                C105,
                "arch: amd64\ndev0: /dev/nvidia-modeset\ndev1: /dev/nvidia0,gid=44\ndev2: /dev/nvidia5\ndev3: \
                 /dev/ttyUSB0\nlxc.mount.entry: /dev/nvidia-caps dev/x none bind\n",
            )],
        ),
        &[
            ("attach 105 --gpu 0 --yes", &[]),
            ("detach 105 --gpu 0 --dry-run", &[]),
            ("detach 105 --gpu all --yes", &[]),
        ],
    ),
    case(
        "a card that was taken out, a mapping that is gone, a line that Proxmox ignores",
        on(
            "111",
            &[
                File(
                    VM,
                    "machine: q35\nhookscript: local:snippets/gpu-handoff\nhostpci0: 0000:0b:00,pcie=1\nhostpci1: \
                     0000:99:00,pcie=1\nhostpci2: mapping=gone\nhostpci3: 0B:00\n",
                ),
                File(
                    "/var/lib/gpu-handoff/attached/111.json",
                    "{\"version\":1,\"lines\":[{\"key\":\"hostpci0\",\"value\":\"pcie=1,0000:0b:00\",\"gpu\":\"0000:0b:00.0\"}]}",
                ),
            ],
        ),
        &[("detach 111 --gpu all --yes", &[]), ("detach 111 --gpu all --yes", &[])],
    ),
    case(
        "what attach has set is of a later version",
        on(
            "111",
            &[File(
                "/var/lib/gpu-handoff/attached/111.json",
                "{\"version\":2,\"lines\":[]}",
            )],
        ),
        &[("detach 111 --gpu all --yes", &[]), ("detach 111 --dry-run", &[])],
    ),
    case(
        "another line that Proxmox stops at",
        on(
            "111",
            &[File(
                VM,
                "machine: q35\nhookscript: local:snippets/gpu-handoff\nhostpci0: 0000:0b:00,pcie=1\nhostpci1: 0000:99:00\n",
            )],
        ),
        &[("attach 111 --gpu 0 --yes", &[])],
    ),
    // What it has already.
    case(
        "a part of the card",
        on("111", &[File(VM, "machine: q35\nhostpci0: 0b:00.1\n")]),
        &[("attach 111 --gpu 0 --yes", &[])],
    ),
    case(
        "the whole card, function by function",
        on(
            "111",
            &[File(VM, "machine: q35\nhostpci0: 0b:00.0\nhostpci3: 0b:00.1\n")],
        ),
        &[("attach 111 --gpu 0 --dry-run", &[])],
    ),
    case(
        "the card, but not as it is asked for; and as it is",
        on(
            "111",
            &[File(
                VM,
                "machine: q35\nhookscript: local:snippets/gpu-handoff\nhostpci0: 0b:00\n",
            )],
        ),
        &[
            ("attach 111 --gpu 0 --primary-gpu --yes", &[]),
            ("attach 111 --gpu 0 --mapping --yes", &[]),
        ],
    ),
    case(
        "as the primary display, twice",
        on("111", &[File(VM, HOOKED)]),
        &[
            ("attach 111 --gpu 0 --primary-gpu --yes", &[]),
            ("attach 111 --gpu 0 --primary-gpu --yes", &[]),
        ],
    ),
    // Who is in the way, and would be.
    beside(
        case(
            "a unit that takes another one along",
            on(
                "111",
                &[
                    File(
                        SAID,
                        "Id=ollama.service\nActiveState=active\nRequiredBy=open-webui.service\nLoadState=loaded\n",
                    ),
                    File(ALSO, "Id=open-webui.service\nActiveState=active\nLoadState=loaded\n"),
                ],
            ),
            &[("attach 111 --accept-policies --yes", &[])],
        ),
        &[Service("ollama.service")],
    ),
    beside(
        case(
            "a unit that nobody starts again, beside one of a container",
            on(
                "111",
                &[File(
                    SAID,
                    "Id=ollama.service\nActiveState=active\nLoadState=loaded\nTransient=yes\n",
                )],
            ),
            &[("attach 111", &["y", "y"])],
        ),
        &[Service("ollama.service"), Inside("104", "tabby.service")],
    ),
    beside(
        case(
            "a container whose systemd gives no answer",
            on("111", &[File(CONFIG, "containers = \"shutdown\"\n")]),
            &[("attach 111 --accept-policies --yes", &[])],
        ),
        &[NoAnswer, Inside("104", "tabby.service")],
    ),
    beside(
        case(
            "no service may be stopped, as the settings say",
            on("111", &[File(CONFIG, "services = \"refuse\"\n")]),
            &[("attach 111", &["y", "y"])],
        ),
        &[Service("ollama.service")],
    ),
    beside(
        case(
            "settings that are not understood",
            on("111", &[SETTINGS, COPIED, File(CONFIG, "servces = \"jellyfin\"\n")]),
            &[("attach 111 --accept-policies --yes", &[])],
        ),
        &[Inside("104", "tabby.service")],
    ),
    beside(
        case(
            "settings that are a link to nowhere",
            on("111", &[Link(OWN, "/mnt/settings/111.toml")]),
            &[("attach 111 --accept-policies --yes", &[])],
        ),
        &[Service("ollama.service")],
    ),
    // Scripts.
    case(
        "a script of somebody's under our name",
        on(
            "111",
            &[
                Without(LINK),
                File(LINK, "#!/bin/bash\necho my old script\n"),
                SETTINGS,
                COPIED,
            ],
        ),
        &[("attach 111 --gpu 0 --yes", &[]), ("detach 111 --yes", &[])],
    ),
    case(
        "a script that calls us in words of its own",
        on(
            "111",
            &[
                Replace(VM, "gpu-handoff", "my-hooks"),
                File(
                    "/var/lib/vz/snippets/my-hooks",
                    "#!/bin/sh\n\"/usr/sbin/gpu-handoff\" \"$1\" \"$2\" || exit 1\n/usr/local/bin/other \"$@\"\n",
                ),
                SETTINGS,
                COPIED,
            ],
        ),
        &[("attach 111 --yes", &[]), ("detach 111 --yes", &[])],
    ),
    case(
        "HA, and a script of this node's that calls us",
        on(
            "111",
            &[
                Replace(VM, "gpu-handoff", "my-hooks"),
                File(
                    "/var/lib/vz/snippets/my-hooks",
                    "#!/bin/sh\nhook /usr/sbin/gpu-handoff\n",
                ),
                SECOND_NODE,
                IN_HA,
            ],
        ),
        &[("attach 111 --yes", &[])],
    ),
    case(
        "HA, and a storage that the other node has not; and one that is switched off",
        on(
            "111",
            &[
                BARE,
                SECOND_NODE,
                IN_HA,
                SHARE,
                Append("/etc/pve/storage.cfg", "\tnodes pve\n\nnfs: off\n\tdisable\n"),
                ON_SHARE,
                Link("/mnt/pve/off/snippets/gpu-handoff", "/usr/sbin/gpu-handoff"),
                Without(LINK),
            ],
        ),
        &[("attach 111 --dry-run", &[])],
    ),
    case(
        "a name that is no word of a command",
        on(
            "111",
            &[
                BARE,
                Without(LINK),
                SHARE,
                Link("/mnt/pve/share/snippets/a\u{1b}[2J b", "/usr/sbin/gpu-handoff"),
            ],
        ),
        &[("attach 111 --dry-run", &[])],
    ),
    // What waits for the next start.
    beside(
        case(
            "a machine type that waits; and twice",
            on("111", &[File(VM, "memory: 512\n\n[PENDING]\nmachine: q35\n")]),
            &[
                ("attach 111 --gpu 0 --yes", &[]),
                ("attach 111 --gpu 0 --yes", &[]),
                ("detach 111 --gpu 0 --yes", &[]),
            ],
        ),
        &[Runs],
    ),
    beside(
        case(
            "a VM that runs loses its card",
            on(
                "111",
                &[
                    File(
                        VM,
                        "machine: q35\nhookscript: local:snippets/gpu-handoff\nhostpci0: 0000:0b:00,pcie=1\n",
                    ),
                    File(
                        "/var/lib/gpu-handoff/attached/111.json",
                        "{\"version\":1,\"lines\":[{\"key\":\"hostpci0\",\"value\":\"0000:0b:00,pcie=1\",\"gpu\":\"0000:0b:00.0\"}]}",
                    ),
                ],
            ),
            &[("detach 111 --gpu 0 --yes", &[]), ("detach 111 --gpu 0 --yes", &[])],
        ),
        &[Runs],
    ),
    beside(
        case(
            "a container that runs, twice, and its way back",
            on("105", &[PLAIN]),
            &[
                ("attach 105 --gpu 0 --yes", &[]),
                ("attach 105 --gpu 0 --yes", &[]),
                ("detach 105 --gpu all --yes", &[]),
            ],
        ),
        &[Runs],
    ),
    case(
        "nodes of MIG instances are not given",
        on(
            "105",
            &[
                PLAIN,
                File("/dev/nvidia-caps/nvidia-cap1", ""),
                File("/dev/nvidia-caps/nvidia-cap2", ""),
            ],
        ),
        &[("attach 105 --gpu 0 --dry-run", &[])],
    ),
    case(
        "two GPUs, of which the first is there",
        Ask {
            machine: Machine::Other("two-same-model"),
            vm: Some("111"),
            edits: &[
                File(
                    "/etc/pve/qemu-server/111.conf",
                    "machine: q35\nhookscript: local:snippets/gpu-handoff\nhostpci0: 41:00,pcie=1\n",
                ),
                Link(LINK, "/usr/sbin/gpu-handoff"),
            ],
            ..READY
        },
        &[
            ("attach 111 --gpu 0 --gpu 1 --primary-gpu --dry-run", &[]),
            ("attach 111 --gpu 1 --gpu 0 --primary-gpu --dry-run", &[]),
        ],
    ),
    case(
        "a disk in use below the card's USB controller",
        Ask {
            machine: Machine::Other("usb-disk-in-use"),
            vm: Some("111"),
            edits: &[
                File(
                    "/etc/pve/qemu-server/111.conf",
                    "machine: q35\nhookscript: local:snippets/gpu-handoff\n",
                ),
                Link(LINK, "/usr/sbin/gpu-handoff"),
            ],
            ..READY
        },
        &[("attach 111 --gpu 0 --dry-run", &[])],
    ),
];
