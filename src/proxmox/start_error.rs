//! Why Proxmox will not start a VM with the devices of its config: its own errors, in its own order.

use crate::base::pci::PciAddr;
use crate::proxmox::grammar::value::Value;

/// A rule of `legacy-igd=1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IgdRule {
    /// Only one entry may have it.
    #[error("only one entry may use legacy-igd")]
    OnlyOne,
    /// `vga:` must be exactly `none`.
    #[error("legacy-igd needs 'vga: none'")]
    NeedsVgaNone,
    /// `rombar=0` is not allowed.
    #[error("legacy-igd needs rombar")]
    NeedsRombar,
    /// `x-vga=1` is not allowed.
    #[error("legacy-igd does not go with x-vga")]
    NotWithXVga,
    /// `mdev=` is not allowed.
    #[error("legacy-igd does not go with mdev")]
    NotWithMdev,
    /// The machine must not be a q35.
    #[error("legacy-igd does not go with a q35 machine")]
    NotWithQ35,
    /// It must be a single function.
    #[error("legacy-igd does not go with several functions")]
    NotWithMultifunction,
    /// The mapping must have one alternative.
    #[error("legacy-igd does not go with several alternatives")]
    NotWithAlternatives,
    /// The address must end in 02.0.
    #[error("legacy-igd is for the device 00:02.0")]
    Not00020,
}

/// Why Proxmox will not start the VM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// An entry means no device.
    #[error("hostpci{index}: {error}")]
    Resolve {
        /// The N of hostpciN.
        index: u8,
        /// Why.
        error: ResolveError,
    },
    /// `pcie=1` on a machine that is no q35.
    #[error("hostpci{index}: 'pcie' needs a q35 machine")]
    PcieWithoutQ35 {
        /// The N of hostpciN.
        index: u8,
    },
    /// A rule of `legacy-igd=1`.
    #[error("hostpci{index}: {rule}")]
    LegacyIgd {
        /// The N of hostpciN.
        index: u8,
        /// Which one.
        rule: IgdRule,
    },
    /// A function is in two entries, or twice in one.
    #[error("{device} is assigned twice")]
    AssignedTwice {
        /// The function.
        device: PciAddr,
    },
    /// All of several alternatives are taken.
    #[error("hostpci{index}: none of its devices is free")]
    NoFreeDevice {
        /// The N of hostpciN.
        index: u8,
    },
    /// The only alternative cannot become a vGPU of that type.
    #[error("{device} cannot become a vGPU of type {model}")]
    VgpuTypeUnavailable {
        /// The function.
        device: PciAddr,
        /// The type's number.
        model: String,
    },
    /// Another VM that starts has it.
    #[error("{device} is reserved by VM {vmid}, which is starting")]
    ReservedByOther {
        /// The function.
        device: PciAddr,
        /// The other VM.
        vmid: u64,
    },
    /// Another VM that runs has it.
    #[error("{device} is in use by VM {vmid}")]
    InUseByOther {
        /// The function.
        device: PciAddr,
        /// The other VM.
        vmid: u64,
    },
}

impl StartError {
    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            StartError::Resolve { error, .. } => error.code(),
            StartError::PcieWithoutQ35 { .. } => "pcie-without-q35",
            StartError::LegacyIgd { rule, .. } => match rule {
                IgdRule::OnlyOne => "legacy-igd-only-one",
                IgdRule::NeedsVgaNone => "legacy-igd-needs-vga-none",
                IgdRule::NeedsRombar => "legacy-igd-needs-rombar",
                IgdRule::NotWithXVga => "legacy-igd-not-with-x-vga",
                IgdRule::NotWithMdev => "legacy-igd-not-with-mdev",
                IgdRule::NotWithQ35 => "legacy-igd-not-with-q35",
                IgdRule::NotWithMultifunction => "legacy-igd-not-with-multifunction",
                IgdRule::NotWithAlternatives => "legacy-igd-not-with-alternatives",
                IgdRule::Not00020 => "legacy-igd-not-00-02-0",
            },
            StartError::AssignedTwice { .. } => "assigned-twice",
            StartError::NoFreeDevice { .. } => "no-free-device",
            StartError::VgpuTypeUnavailable { .. } => "vgpu-type-unavailable",
            StartError::ReservedByOther { .. } => "reserved-by-other",
            StartError::InUseByOther { .. } => "in-use-by-other",
        }
    }
}

/// Why an entry means no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// `host=` and `mapping=`.
    #[error("it has both 'host' and 'mapping'")]
    BothHostAndMapping,
    /// Neither.
    #[error("it has neither 'host' nor 'mapping'")]
    NeitherHostNorMapping,
    /// No function matches an element of `host=`.
    #[error("the host has no PCI device '{device}'")]
    DeviceNotFound {
        /// The element, as spelled.
        device: Value,
    },
    /// No such mapping, or nothing in it for this node.
    #[error("the resource mapping '{mapping}' has no device on this node")]
    MappingNotFound {
        /// Its name.
        mapping: String,
    },
    /// A path of the mapping is absent.
    #[error("the resource mapping is stale: the host has no PCI device '{device}'")]
    MappingDeviceMissing {
        /// The path, with `.0` where the function is left out.
        device: Value,
    },
    /// The device has a property that the map line lacks.
    #[error("the resource mapping is stale: it has no '{property}' for {device}")]
    MappingPropertyMissing {
        /// id, iommugroup or subsystem-id.
        property: &'static str,
        /// The device.
        device: PciAddr,
    },
    /// The map line has a property that the device lacks.
    #[error("the resource mapping is stale: it has '{property}' for {device}, the device has none")]
    MappingPropertyUnexpected {
        /// id, iommugroup or subsystem-id.
        property: &'static str,
        /// The device.
        device: PciAddr,
    },
    /// Both have it, and differ.
    #[error("the resource mapping is stale: its '{property}' is {mapping_has}, the device's {host_has}")]
    MappingPropertyMismatch {
        /// id, iommugroup, mdev or subsystem-id.
        property: &'static str,
        /// The device's.
        host_has: String,
        /// The map line's.
        mapping_has: String,
    },
    /// `mdev=` on an alternative of several functions.
    #[error("'mdev' needs a single function, but the entry has several")]
    MdevWithMultifunction,
}

impl ResolveError {
    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            ResolveError::BothHostAndMapping => "both-host-and-mapping",
            ResolveError::NeitherHostNorMapping => "neither-host-nor-mapping",
            ResolveError::DeviceNotFound { .. } => "device-not-found",
            ResolveError::MappingNotFound { .. } => "mapping-not-found",
            ResolveError::MappingDeviceMissing { .. } => "mapping-device-missing",
            ResolveError::MappingPropertyMissing { .. } => "mapping-property-missing",
            ResolveError::MappingPropertyUnexpected { .. } => "mapping-property-unexpected",
            ResolveError::MappingPropertyMismatch { .. } => "mapping-property-mismatch",
            ResolveError::MdevWithMultifunction => "mdev-with-multifunction",
        }
    }
}
