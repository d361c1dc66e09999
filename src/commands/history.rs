//! `history`: what was done so far, over reboots.

use std::io;

use crate::base::clock::now;
use crate::commands::cli::{Cli, History};
use crate::model::error::Error;
use crate::model::record::Owner;
use crate::output::history;
use crate::output::print::print;
use crate::output::style::Style;
use crate::run::session::Session;

/// Shows past handoffs.
pub(crate) fn run(cli: &Cli, which: &History) -> Result<(), Error> {
    let past = Session::real().kernel.past();
    let past = past.map_err(|why| Error::io("the history cannot be read", io::Error::other(why)))?;
    let owner = which.vm.map(|vmid| Owner::Vm(vmid).to_string());
    let since = which.since.map(|since| since.time(now()));
    let shown = history::History::of(&past, since, owner.as_deref());
    print(cli.json, &shown, || {
        history::text(&shown, cli.verbose, Style::of_stdout())
    })
}
