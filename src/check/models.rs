//! Which of NVIDIA's GPUs are of which time, by device id: what decides which driver drives them.

/// The times that count for drivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Era {
    /// Before Maxwell: 470 is the last branch (Kepler), or an older one.
    Kepler,
    /// Maxwell, Pascal, Volta: 580 is the last branch, and its proprietary modules only.
    Maxwell,
    /// Turing, Ampere, Hopper: either kind of modules.
    Turing,
    /// Ada: either kind, but for reports of the proprietary one.
    Ada,
    /// Blackwell and later: the open modules only.
    Blackwell,
}

/// By the ranges of pci.ids and NVIDIA's list of supported GPUs (driver README, appendix A): GM107 begins at 1340, TU102 at
/// 1e02, AD102 at 2681, GB100 at 2901; Pascal's GP100 (15f0 to 17ff) lies in between.
pub(super) fn era(device: u16) -> Era {
    match device {
        0..=0x133f => Era::Kepler,
        0x1340..=0x1dff => Era::Maxwell,
        0x2680..=0x28ff => Era::Ada,
        0x2900.. => Era::Blackwell,
        _ => Era::Turing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_id_tells_the_time() {
        for (device, expected) in [
            (0x1180, Era::Kepler),    // GTX 680
            (0x13c2, Era::Maxwell),   // GTX 970
            (0x1b06, Era::Maxwell),   // GTX 1080 Ti
            (0x1db4, Era::Maxwell),   // V100
            (0x1e04, Era::Turing),    // RTX 2080 Ti
            (0x2204, Era::Turing),    // RTX 3090
            (0x2330, Era::Turing),    // H100
            (0x2684, Era::Ada),       // RTX 4090
            (0x28b0, Era::Ada),       // RTX 2000 Ada
            (0x2b85, Era::Blackwell), // RTX 5090
            (0x2f04, Era::Blackwell), // RTX 5070
        ] {
            assert_eq!(era(device), expected, "{device:04x}");
        }
    }
}
