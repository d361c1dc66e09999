//! A process of which it cannot be told which GPU it uses: what is said of it, and what can be done.
//!
//! Nearly every user of any GPU has `nvidiactl` open, and by it any GPU can be used, whatever other node a process has open as well
//! (open-gpu-kernel-modules, kernel-open/nvidia/nv.c, `nvidia_ioctl`, `NV_ESC_ATTACH_GPUS_TO_FD`).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::base::pci::PciAddr;
use crate::base::sets::IntoSet as _;
use crate::base::text::join;
use crate::host::holders::Holder;
use crate::host::nodes::Node;
use crate::model::remedy::Remedy;

/// What comes of it if it does use the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Risk {
    /// The unbind waits until it has let go: a setting may take that risk.
    Waits,
    /// The unbind never ends.
    NeverEnds,
}

/// What is said of it, and what can be done. `who`: it, in words; `nodes`: what it may use the GPU through.
pub(crate) fn said(who: &str, holder: &Holder, nodes: &[Node], risk: Risk) -> (String, Remedy) {
    let (through, others) = (join(nodes), others(holder));
    let fact = if others.is_empty() {
        format!("{through} is open in {who}, and nothing shows that it uses another GPU")
    } else {
        let others: Vec<_> = others.iter().collect();
        format!(
            "{through} is open in {who}: it uses {}, and may use this GPU as well",
            join(&others)
        )
    };
    (fact, remedy(holder, risk))
}

/// What can be done about one that may use the GPU.
pub fn remedy(holder: &Holder, risk: Risk) -> Remedy {
    let ends = Remedy::of_suspect(holder);
    match risk {
        Risk::NeverEnds => ends,
        // Who has another GPU is not to be stopped for this one; of a desktop no setting would do that.
        Risk::Waits => Remedy::AcceptDoubt(others(holder).is_empty().then(|| Box::new(ends))),
    }
}

/// The functions whose own nodes it has open: none of these leaves.
fn others(holder: &Holder) -> BTreeSet<PciAddr> {
    let own = holder.nodes.iter().filter_map(|node| match node {
        Node::Gpu(addr) | Node::Drm(addr) => Some(*addr),
        _ => None,
    });
    own.into_set()
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::host::belongs::Belongs;

    #[test]
    fn the_setting_is_named_where_it_may_be_and_nobody_is_stopped_who_has_another_gpu() {
        let other: PciAddr = "0000:02:00.0".parse().unwrap();
        for (own, risk, service, doubt) in [
            (None, Risk::Waits, true, true),
            (Some(Node::Gpu(other)), Risk::Waits, false, true),
            (Some(Node::Drm(other)), Risk::Waits, false, true),
            (Some(Node::Gpu(other)), Risk::NeverEnds, true, false),
            (None, Risk::NeverEnds, true, false),
        ] {
            let holder = Holder {
                pid: 7,
                comm: "x".to_owned(),
                belongs_to: Belongs::Unit("gdm.service".to_owned()),
                nodes: own.into_iter().chain([Node::Control]).collect(),
            };
            let (fact, remedy) = said("process 7", &holder, &[Node::Control], risk);
            let text = remedy.to_string();
            assert_eq!(text.contains("services ="), service, "{text}");
            assert_eq!(text.contains("doubt = \"go-on\""), doubt, "{text}");
            let expected = match own {
                Some(_) => "/dev/nvidiactl is open in process 7: it uses 0000:02:00.0, and may use this GPU as well",
                None => "/dev/nvidiactl is open in process 7, and nothing shows that it uses another GPU",
            };
            assert_eq!(fact, expected);
        }
    }
}
