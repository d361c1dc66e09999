//! `holders`: who uses GPUs, and what the settings have done to each at a handoff. Nothing is touched.

use crate::base::pci::PciAddr;
use crate::commands::cli::{Cli, Target};
use crate::commands::target::{given, is_named, some_gpus};
use crate::model::error::Error;
use crate::output::holders;
use crate::output::print::print;
use crate::output::status::NO_GPU;
use crate::plan::clients;
use crate::run::session::Session;

/// Shows the users of a target's GPUs, of all there are where none is named.
pub(crate) fn run(host: &mut Session, cli: &Cli, target: &Target) -> Result<(), Error> {
    host.read_settings(target.vm)?;
    let records = host.records(None)?;
    let mut snapshot = host.look(&records)?;
    let gpus: Vec<PciAddr> = if is_named(target) {
        let given = given(host, target, &snapshot)?;
        some_gpus(target, &given)?;
        given.gpus
    } else {
        snapshot.gpus().map(|f| f.addr).collect()
    };
    host.ask_for_units(&mut snapshot, &gpus, &[]);
    let (clients, unseen) = clients::of(&snapshot, &gpus, &host.settings);
    let together = if is_named(target) { &[][..] } else { &gpus };
    let users = holders::users(&clients, &unseen, together);
    print(cli.json, &users, || match gpus.as_slice() {
        [] => NO_GPU.to_owned(),
        _ => holders::text(&users),
    })
}
