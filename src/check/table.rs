//! The table of checks: one row for each. `check --list`, `--skip` and the report all come from here.
//!
//! How to add one is in ARCHITECTURE.md, "A check".

use crate::check::facts::Facts;
use crate::check::finding::{Level, Looked};
use crate::check::lines::{self, fights};
use crate::check::{cluster, containers, driver, gpu, hiding, hook, host, iommu, known_bad, link, package, vm};

/// What a check is about: the headings of the report, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// The host itself.
    Host,
    /// The IOMMU.
    Iommu,
    /// Each GPU.
    Gpus,
    /// NVIDIA's driver.
    Driver,
    /// Files that decide what happens at boot.
    Configuration,
    /// The hookscript.
    Hook,
    /// VMs that have a GPU.
    Vms,
    /// Containers that are given one.
    Containers,
    /// This package's own files.
    Package,
}

impl Room {
    /// The heading.
    pub fn title(self) -> &'static str {
        match self {
            Room::Host => "host",
            Room::Iommu => "iommu",
            Room::Gpus => "GPUs",
            Room::Driver => "driver",
            Room::Configuration => "configuration",
            Room::Hook => "hook",
            Room::Vms => "VMs",
            Room::Containers => "containers",
            Room::Package => "gpu-handoff",
        }
    }
}

/// A check.
#[derive(Debug)]
pub struct Row {
    /// Its name, for `--skip`.
    pub id: &'static str,
    /// What it is about.
    pub room: Room,
    /// The worst that it can say.
    pub severity: Level,
    /// What it looks at, for `--list`.
    pub what: &'static str,
    /// The look.
    pub look: fn(&Facts) -> Looked,
}

const fn row(id: &'static str, room: Room, severity: Level, what: &'static str, look: fn(&Facts) -> Looked) -> Row {
    Row {
        id,
        room,
        severity,
        what,
        look,
    }
}

/// The checks, in the order of the report.
#[rustfmt::skip] // a check is one line
pub static ROWS: &[Row] = &[
    row("root", Room::Host, Level::Fail, "run as root, without which much cannot be seen", host::root),
    row("proxmox", Room::Host, Level::Warn, "a Proxmox VE that this was written for", host::proxmox),
    row("qemu-server", Room::Host, Level::Warn, "qemu-server, which calls the hook, and how it does", host::qemu_server),
    row("virtualisation", Room::Host, Level::Warn, "the processor's virtualisation, and KVM", host::virtualisation),
    row("secure-boot", Room::Host, Level::Info, "whether Secure Boot is on", host::secure_boot),
    row("lockdown", Room::Host, Level::Notice, "whether the kernel is locked down", host::lockdown),
    row("module-signatures", Room::Host, Level::Fail, "signatures of the modules that a handoff loads, where the kernel asks for them", host::signatures),
    row("kernel", Room::Host, Level::Notice, "whether the newest kernel is the one that runs", host::kernel),
    row("gate", Room::Host, Level::Warn, "whether others are kept from opening a GPU while it moves", host::gate),
    row("vfio", Room::Host, Level::Fail, "whether vfio-pci can be loaded", host::vfio),
    row("console", Room::Host, Level::Notice, "a way in while the only display is lent", host::console),
    row("iommu", Room::Iommu, Level::Fail, "whether the IOMMU is on, and what turns it on", iommu::on),
    row("iommu-firmware", Room::Iommu, Level::Fail, "whether the firmware describes one (DMAR, IVRS)", iommu::firmware),
    row("iommu-groups", Room::Iommu, Level::Fail, "whether each GPU is in a group", iommu::groups),
    row("interrupt-remapping", Room::Iommu, Level::Fail, "whether interrupts are remapped", iommu::remapping),
    row("iommu-off", Room::Iommu, Level::Fail, "kernel arguments that turn the IOMMU off", iommu::off),
    row("iommu-argument", Room::Iommu, Level::Notice, "kernel arguments for the IOMMU that mean nothing", iommu::argument),
    row("acs-override", Room::Iommu, Level::Warn, "groups that a kernel argument has split", iommu::acs),
    row("noiommu", Room::Iommu, Level::Fail, "VFIO's mode without an IOMMU", iommu::noiommu),
    row("gpu", Room::Gpus, Level::Fail, "the NVIDIA GPUs that are there", gpu::there),
    row("gpu-answers", Room::Gpus, Level::Fail, "whether each answers", gpu::answers),
    row("gpu-calls", Room::Gpus, Level::Fail, "calls of anybody's that are stuck at one", gpu::calls),
    row("gpu-group", Room::Gpus, Level::Fail, "what else is in its IOMMU group", gpu::group),
    row("gpu-functions", Room::Gpus, Level::Notice, "the other functions of its card", gpu::functions),
    row("gpu-reset", Room::Gpus, Level::Warn, "whether it can be reset, and how", gpu::reset),
    row("gpu-known", Room::Gpus, Level::Notice, "what is known of its model", gpu::known),
    row("gpu-sriov", Room::Gpus, Level::Fail, "virtual functions and vGPUs", gpu::sriov),
    row("gpu-mig", Room::Gpus, Level::Fail, "MIG instances", gpu::mig),
    row("gpu-nvlink", Room::Gpus, Level::Notice, "NVSwitches", gpu::nvlink),
    row("gpu-regions", Room::Gpus, Level::Warn, "whether the firmware has given its memory addresses", link::assigned),
    row("gpu-rebar", Room::Gpus, Level::Notice, "Resizable BAR", link::rebar),
    row("gpu-width", Room::Gpus, Level::Warn, "lanes of its link", link::width),
    row("gpu-speed", Room::Gpus, Level::Info, "speed of its link", link::speed),
    row("gpu-power", Room::Gpus, Level::Notice, "whether it sleeps", link::power),
    row("gpu-framebuffer", Room::Gpus, Level::Notice, "the firmware's framebuffer in its memory", gpu::framebuffer),
    row("gpu-override", Room::Gpus, Level::Warn, "a driver_override that no handoff has set", gpu::overridden),
    row("gpu-stranded", Room::Gpus, Level::Warn, "on vfio-pci for nobody", gpu::stranded),
    row("gpu-new-id", Room::Gpus, Level::Warn, "a leftover new_id of vfio-pci", gpu::new_id),
    row("gpu-usb", Room::Gpus, Level::Warn, "what is in use below its USB controller", gpu::usb),
    row("gpu-usb-c", Room::Gpus, Level::Info, "its USB-C controller", gpu::ucsi),
    row("gpu-users", Room::Gpus, Level::Warn, "who uses it, and what the settings have done to each", gpu::users),
    row("driver-installed", Room::Driver, Level::Fail, "whether the running kernel has NVIDIA's modules", driver::installed),
    row("driver-loaded", Room::Driver, Level::Warn, "whether they are loaded, and which", driver::loaded),
    row("driver-on-disk", Room::Driver, Level::Warn, "whether what is loaded is what is installed", driver::on_disk),
    row("driver-library", Room::Driver, Level::Fail, "whether module and libraries are of one version", driver::library),
    row("driver-branch", Room::Driver, Level::Fail, "whether this branch drives these GPUs", driver::era),
    row("driver-open", Room::Driver, Level::Fail, "whether these GPUs need the open modules", driver::flavour),
    row("driver-newest-kernel", Room::Driver, Level::Warn, "whether the newest kernel has a module", driver::newest),
    row("driver-headers", Room::Driver, Level::Warn, "the headers that DKMS builds with", driver::headers),
    row("driver-drm", Room::Driver, Level::Warn, "whether nvidia_drm lets a single GPU go", driver::drm),
    row("driver-one-shot", Room::Driver, Level::Notice, "whether an unbind that meets a user ends", driver::one_shot),
    row("driver-smi", Room::Driver, Level::Notice, "nvidia-smi, which tells whether a GPU works", driver::smi),
    row("nouveau", Room::Driver, Level::Warn, "nouveau in the way", driver::nouveau),
    row("known-bad", Room::Driver, Level::Warn, "kernel, driver and device that are known to go wrong together", known_bad::look),
    row("dkms", Room::Driver, Level::Warn, "what DKMS says of each kernel (--full)", driver::dkms),
    row("vfio-ids", Room::Configuration, Level::Fail, "lines that give the GPUs to vfio-pci at boot", |f| fights(f, "vfio-ids", "no line gives a GPU to vfio-pci at boot")),
    row("blacklist", Room::Configuration, Level::Fail, "lines that blacklist what a handoff loads", |f| fights(f, "blacklist", "nothing that a handoff loads is blacklisted")),
    row("install-false", Room::Configuration, Level::Fail, "install lines that keep a module from being loaded", |f| fights(f, "install-false", "no install line keeps a module from being loaded")),
    row("softdep", Room::Configuration, Level::Warn, "softdep lines that have vfio-pci loaded first", |f| fights(f, "softdep", "no softdep line has vfio-pci loaded before the driver")),
    row("modules-load", Room::Configuration, Level::Notice, "names of modules that are none any more", |f| fights(f, "modules-load", "every module that is loaded at boot is one")),
    row("firmware-framebuffer", Room::Configuration, Level::Notice, "switches against the firmware's framebuffer", |f| fights(f, "firmware-framebuffer", "no switch against the firmware's framebuffer is set")),
    row("cmdline", Room::Configuration, Level::Notice, "kernel arguments that are set and not in force", lines::pending),
    row("configured", Room::Configuration, Level::Warn, "files that decide what happens at boot and are not understood", lines::understood),
    row("initramfs-age", Room::Configuration, Level::Notice, "whether the initramfs has the last change", driver::initramfs_age),
    row("initramfs", Room::Configuration, Level::Warn, "lines in the initramfs that the host has no more (--full)", driver::initramfs),
    row("proxmenux", Room::Configuration, Level::Warn, "what ProxMenux has left", package::proxmenux),
    row("driverctl", Room::Configuration, Level::Fail, "GPUs that driverctl binds at boot", package::driverctl),
    row("udev-rules", Room::Configuration, Level::Warn, "udev rules that bind devices", package::udev),
    row("scripts", Room::Configuration, Level::Notice, "scripts and units of other handoff tools", package::scripts),
    row("snippets", Room::Configuration, Level::Warn, "other scripts among the snippets", hook::snippets),
    row("hook-link", Room::Hook, Level::Fail, "the hook where Proxmox looks for it", hook::link),
    row("hook-executable", Room::Hook, Level::Fail, "whether it can be run", hook::executable),
    row("hook-storage", Room::Hook, Level::Notice, "whether the web page shows it", hook::content),
    row("hook-vms", Room::Hook, Level::Warn, "VMs with a GPU and without the hook", hook::attached),
    row("hook-containers", Room::Hook, Level::Info, "containers with a GPU and without the hook", hook::containers),
    row("hook-nodes", Room::Hook, Level::Notice, "other nodes that a VM with the hook may start on", hook::nodes),
    row("vm", Room::Vms, Level::Fail, "which VMs have a GPU; with --vm, whether this one has", vm::known),
    row("vm-hostpci", Room::Vms, Level::Fail, "hostpci entries that Proxmox refuses or ignores", vm::hostpci),
    row("vm-machine", Room::Vms, Level::Fail, "the machine type q35", vm::machine),
    row("vm-bios", Room::Vms, Level::Notice, "OVMF", vm::bios),
    row("vm-cpu", Room::Vms, Level::Notice, "the CPU type", vm::cpu),
    row("vm-hiding", Room::Vms, Level::Notice, "whether the guest must not see the hypervisor, by vendor and driver", hiding::look),
    row("vm-x-vga", Room::Vms, Level::Warn, "more than one primary display", vm::x_vga),
    row("vm-balloon", Room::Vms, Level::Notice, "ballooning, of which pinned memory knows nothing", vm::balloon),
    row("vm-memory", Room::Vms, Level::Fail, "memory that is pinned, against what the host has", vm::fits),
    row("vm-same-gpu", Room::Vms, Level::Fail, "one GPU in the configs of two VMs", vm::same_gpu),
    row("vm-args", Room::Vms, Level::Warn, "devices that are given by 'args'", vm::arguments),
    row("vm-order", Room::Vms, Level::Notice, "what starts at boot beside it", vm::order),
    row("vm-backup", Room::Vms, Level::Info, "backup jobs that start it", vm::backup),
    row("vm-ha", Room::Vms, Level::Warn, "addresses in a VM that HA moves", cluster::ha),
    row("vm-mapping", Room::Vms, Level::Notice, "nodes that its mapping lacks", cluster::mappings),
    row("vm-reserved", Room::Vms, Level::Notice, "reservations of VMs that do not run", package::reservations),
    row("ct", Room::Containers, Level::Info, "which containers are given a GPU, and by what", containers::given),
    row("ct-driver", Room::Containers, Level::Fail, "the driver's version inside against the host's", containers::versions),
    row("ct-nodes", Room::Containers, Level::Warn, "nodes that are given and not there", containers::nodes),
    row("ct-numbers", Room::Containers, Level::Warn, "rules for numbers that no driver has now", containers::numbers),
    row("ct-cgroup1", Room::Containers, Level::Warn, "keys that count for nothing under cgroup version 2", containers::old_keys),
    row("docker", Room::Containers, Level::Info, "Docker's containers on the host", containers::docker),
    row("settings", Room::Package, Level::Fail, "whether the settings are understood", package::settings),
    row("records", Room::Package, Level::Fail, "whether the records are whole, and nothing is stuck", package::records),
    row("history", Room::Package, Level::Notice, "where the history is kept", package::history),
    row("room", Room::Package, Level::Fail, "room for records, and that they can be written", package::room),
    row("units", Room::Package, Level::Fail, "the units that bring a GPU home", package::units),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_a_name_of_its_own_and_rooms_are_together() {
        let mut ids: Vec<&str> = ROWS.iter().map(|r| r.id).collect();
        ids.sort_unstable();
        let count = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), count);
        assert!(count >= 60, "{count}");
        let mut rooms: Vec<&str> = ROWS.iter().map(|r| r.room.title()).collect();
        rooms.dedup();
        assert_eq!(rooms.len(), 9, "{rooms:?}");
        for row in ROWS {
            assert!(row.what.len() <= 80 && !row.what.ends_with('.'), "{}", row.id);
            assert!(
                row.id
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{}",
                row.id
            );
        }
    }
}
