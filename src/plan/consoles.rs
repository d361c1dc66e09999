//! Consoles and framebuffers of a card that leaves: which go along, and what a person is told of it.

use crate::base::text::join;
use crate::host::displays::{Framebuffer, Platform};
use crate::host::holders::Holder;
use crate::host::snapshot::Snapshot;
use crate::plan::moving::Ground;
use crate::plan::unseen;

/// What is drawn on framebuffers that go away: the consoles, which keep a display driver loaded, and the firmware's
/// framebuffer, which nothing but its memory ties to the card.
pub(crate) struct Displays {
    /// Console drivers to take off.
    pub(crate) consoles: Vec<String>,
    /// Firmware framebuffers to detach.
    pub(crate) platforms: Vec<Platform>,
    /// Another framebuffer remains for the consoles to come back on.
    pub(crate) others: bool,
}

impl Displays {
    /// What goes with the functions of the ground, and with these modules. `lets_go`: who does, before.
    pub(crate) fn of(ground: &Ground<'_>, modules: &[String], lets_go: impl Fn(&Holder) -> bool) -> Self {
        let snapshot = ground.snapshot;
        let goes = |fb: &&Framebuffer| {
            let ours = fb
                .of
                .is_some_and(|of| ground.leaving.iter().any(|f| f.addr.slot() == of.slot()));
            // With the module the framebuffers of GPUs that stay go too, for a moment.
            ours || fb.name.starts_with("nvidia") && modules.iter().any(|m| m == "nvidia_drm")
        };
        let going: Vec<&Framebuffer> = snapshot.framebuffers.iter().filter(goes).collect();
        let others = going.len() < snapshot.framebuffers.len() || going.iter().any(|fb| ground.stays(fb.of));
        // A console that is on another card's framebuffer pins nothing, and is left where it is.
        let pinned = !unseen::unaccounted(snapshot, modules, lets_go).is_empty();
        let bound = snapshot.consoles.iter().filter(|c| c.is_framebuffer() && c.bound);
        let consoles = if going.is_empty() || (others && !pinned) {
            Vec::new()
        } else {
            bound.map(|c| c.name.clone()).collect()
        };
        Displays {
            consoles,
            platforms: going.iter().filter_map(|fb| fb.firmware.clone()).collect(),
            others,
        }
    }

    /// Which way in remains, before the last local console goes.
    pub(crate) fn note(&self, snapshot: &Snapshot) -> Option<String> {
        if self.consoles.is_empty() || self.others {
            return None;
        }
        let until = if self.platforms.is_empty() {
            "the local console is dark until the GPU is home"
        } else {
            // vfio-pci has the kernel give up the firmware's framebuffer on the boot display (linux 6.0 and later,
            // drivers/vfio/pci/vfio_pci_core.c, aperture_remove_conflicting_pci_devices).
            "the local console is on the firmware's framebuffer, which a guest destroys: it may be dark until the host \
             boots again"
        };
        let serial = match snapshot.serial.as_slice() {
            [] => "there is no serial console, so SSH is the only way in".to_owned(),
            names => format!("the serial console {} and SSH are the ways in", join(names)),
        };
        Some(format!("{until}; {serial}"))
    }
}
