//! Containers whose lines name another GPU than before: the driver gives the lowest N that is free to the GPU that comes to it
//! next (open-gpu-kernel-modules, kernel-open/nvidia/nv.c, nv_linux_minor_num_table; of earlier ones nv-frontend.c, add_device). Pure.
//!
//! Not here: nodes whose majors have changed (`src/execute/renew_nodes.rs`).

use crate::host::nvidia::{Numbers, NvidiaDriver};
use crate::proxmox::container_config::GpuContainer;

/// What is said of each, whether it runs or not. `before`: as the driver had numbered its GPUs before it was loaded anew, or a GPU
/// left it.
pub fn renumbered(before: &Numbers, now: &NvidiaDriver, containers: &[GpuContainer]) -> Vec<String> {
    let mut said = Vec::new();
    for GpuContainer { ctid, nodes, .. } in containers {
        for node in nodes {
            let number = node.strip_prefix("/dev/nvidia").and_then(|n| n.parse::<u32>().ok());
            let was = before.minors.iter().find(|(_, minor)| Some(**minor) == number);
            let Some((was, minor)) = was else { continue };
            let is = now
                .gpus
                .iter()
                .find(|gpu| gpu.minor == Some(*minor))
                .map(|gpu| gpu.addr);
            let how = match (is, now.minor(*was)) {
                (Some(is), _) if is != *was => format!("is {is} now"),
                (None, Some(other)) => format!("is no GPU's now: that one is /dev/nvidia{other}"),
                _ => continue,
            };
            said.push(format!(
                "container {ctid} is given {node}, which was {was} and {how}. Hint: give it the node of the GPU that it is to \
                 have, or load the driver anew when all GPUs are home"
            ));
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::pci::PciAddr;
    use crate::host::nvidia::NvidiaGpu;

    const FIRST: &str = "0000:01:00.0";
    const SECOND: &str = "0000:02:00.0";

    fn driver(gpus: &[(&str, u32)]) -> NvidiaDriver {
        let gpu = |(addr, minor): &(&str, u32)| NvidiaGpu {
            addr: addr.parse().unwrap(),
            minor: Some(*minor),
            model: String::new(),
            uuid: String::new(),
            mig: false,
        };
        NvidiaDriver {
            version: String::new(),
            open: true,
            modeset: false,
            gpus: gpus.iter().map(gpu).collect(),
            majors: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn a_container_whose_line_names_another_gpu_than_before_is_named() {
        let container = |ctid: &str, nodes: &[&str]| GpuContainer {
            ctid: ctid.parse().unwrap(),
            lines: Vec::new(),
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
        };
        let containers = [
            container("104", &["/dev/nvidia1", "/dev/nvidiactl"]),
            container("105", &["/dev/nvidia0"]),
        ];
        let before = Numbers::of(&driver(&[(FIRST, 0), (SECOND, 1)]));
        let hint =
            "Hint: give it the node of the GPU that it is to have, or load the driver anew when all GPUs are home";
        let nobody = format!(
            "container 104 is given /dev/nvidia1, which was {SECOND} and is no GPU's now: that one is /dev/nvidia0. {hint}"
        );
        let first = |is| format!("container 105 is given /dev/nvidia0, which was {FIRST} and is {is} now. {hint}");
        let second = |is| format!("container 104 is given /dev/nvidia1, which was {SECOND} and is {is} now. {hint}");
        for (now, expected) in [
            (vec![(FIRST, 0), (SECOND, 1)], vec![]),
            // One that is away has no number.
            (vec![(SECOND, 1)], vec![]),
            (vec![(SECOND, 0)], vec![nobody, first(SECOND)]),
            (vec![(SECOND, 0), (FIRST, 1)], vec![second(FIRST), first(SECOND)]),
        ] {
            assert_eq!(renumbered(&before, &driver(&now), &containers), expected, "{now:?}");
        }
        assert_eq!(
            renumbered(&Numbers::default(), &driver(&[(SECOND, 0)]), &containers),
            [""; 0]
        );
        let addrs: Vec<PciAddr> = before.minors.into_keys().collect();
        assert_eq!(addrs, [FIRST, SECOND].map(|addr| addr.parse().unwrap()));
    }
}
