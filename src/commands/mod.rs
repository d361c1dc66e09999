//! What Proxmox and people can ask for: the phases in one file, each command in its own.
//!
//! A command reads what it needs through [`crate::run`], has it decided and done, and says what came of it.

pub mod attach; // a guest is given the hook
mod by_hand; // to_vfio, to_nvidia
mod check; // whether the host is ready
pub mod cli; // arguments -> a request
mod container; // what the hook does for a container
pub mod detach; // a guest loses the hook
mod free; // what others have wedged
pub mod guests; // what these two have in common
mod history; // what was done so far
mod holders; // who uses a GPU, and what becomes of each
pub mod hook; // what each phase of a VM does
pub mod plan; // what would be done, or why not
mod prepare; // the host made ready for handoffs
pub mod replay; // plan and check on the host of a report
pub mod report; // one archive for a bug report
pub mod recover; // every stranded GPU home
mod status; // what is
mod status_watch; // the same, whenever it changes
mod stopped; // what a boot has not started again
mod target; // which GPU is meant
mod tell; // what people have to hear of
mod watch; // nobody to call back
pub mod watch_next; // what is waited for then

use crate::commands::by_hand::{to_nvidia, to_vfio};
use crate::commands::cli::{Cli, Command, Side};
use crate::commands::plan::show_plan;
use crate::model::error::Error;
use crate::run::afterwards::have_it_told;
use crate::run::session::Session;

/// Runs a command.
///
/// # Errors
/// As each command has it.
pub fn run(cli: &Cli) -> Result<(), Error> {
    // The host is made by each that needs it, since that catches signals: they are to end the watcher, which waits for
    // what may take months.
    match &cli.command {
        Command::ToVfio(target) | Command::Handoff { to: Side::Vfio, target } => {
            on_host(|host| to_vfio(host, cli, target))
        }
        Command::ToNvidia(target)
        | Command::Handoff {
            to: Side::Nvidia,
            target,
        } => on_host(|host| to_nvidia(host, cli, target)),
        Command::Plan(target) => show_plan(&mut Session::real(), cli, target, target.vm),
        Command::Status(how) if how.watch => status_watch::run(cli, how),
        Command::Status(how) => status::run(cli, how),
        Command::Holders(target) => holders::run(&mut Session::real(), cli, target),
        Command::Check(how) => check::run(&mut Session::real(), cli, how),
        Command::Recover(how) => on_host(|host| recover::run(host, cli, how)),
        Command::History(which) => history::run(cli, which),
        Command::Report(how) => match &how.replay {
            Some(archive) => replay::run(cli, how, archive),
            None => report::run(cli, how),
        },
        Command::Prepare(how) => prepare::run(&mut Session::real(), cli, how),
        Command::Attach(how) => attach::attach(&mut guests::Real::new(), cli, how),
        Command::Detach(how) => detach::detach(&mut guests::Real::new(), cli, how),
        Command::Watch { vmid } => watch::run(*vmid),
        Command::Tell { asked_by } => tell::run(asked_by),
    }
}

/// A run that may move something.
fn on_host(run: impl FnOnce(&mut Session) -> Result<(), Error>) -> Result<(), Error> {
    let mut host = Session::real();
    let result = run(&mut host);
    have_it_told(&host, &result);
    host.says_what_stays(result)
}
