//! What is looked at for who asks, and changes nothing: a worker's answers, and those of a tree of files.

use crate::base::root::Root;
use crate::check::read;
use crate::execute::kernel::ActError;
use crate::execute::stale_nodes;
use crate::execute::worker::{Answer, Question};
use crate::host::functions::read_details;
use crate::host::{modules, pci_ids, snapshot, unit_states};
use crate::proxmox::files;
use crate::report::keep;
use crate::state::{history, stopped};

/// The answer. To who asks for an act it is that there is none: an act is not a look.
pub(crate) fn answer(root: &Root, question: Question) -> Answer {
    match question {
        Question::Look { stuck } => match snapshot::read(root, &stuck) {
            Ok(snapshot) => Answer::Snapshot(Box::new(snapshot)),
            Err(e) => failed(format!("cannot read the host: {e}")),
        },
        Question::Details { addrs } => Answer::Details(read_details(root, &addrs)),
        Question::StaleNodes(wanted) => Answer::StaleNodes(stale_nodes::read(root, &wanted)),
        Question::Units(units) => Answer::Units(unit_states::read(root, &units)),
        Question::Loadable { names } => Answer::Loadable(modules::read(root, &names)),
        Question::Find(wanted) => Answer::Found(files::find(root, &wanted)),
        Question::Check(part) => Answer::Texts(Box::new(read::read(root, part))),
        Question::Past => Answer::Past(history::read(root).map_err(|e| format!("reading {}: {e}", history::DIR))),
        Question::Stopped => Answer::Stopped(stopped::read(root)),
        Question::Names(ids) => Answer::Names(pci_ids::read(root, &ids)),
        Question::Recorded => Answer::Recorded(keep::kept(root.recorded())),
        Question::MakeNodes { .. }
        | Question::Act(_)
        | Question::GiveToHa(_)
        | Question::Remember(_)
        | Question::KeepStopped(..)
        | Question::ForgetStopped(_) => failed("nothing is done to a tree of files".to_owned()),
    }
}

fn failed(why: String) -> Answer {
    Answer::Acted {
        result: Err(ActError::Failed(why)),
        notes: Vec::new(),
        moment: None,
        ended: Vec::new(),
    }
}
