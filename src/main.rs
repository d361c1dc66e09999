//! Parse, run, map to an exit code.

use std::ffi::OsString;
use std::fmt;
use std::process::ExitCode;

use gpu_handoff::base::message_ids::{MESSAGE_FAILED, MESSAGE_REFUSED};
use gpu_handoff::base::vmid::VmId;
use gpu_handoff::commands::cli::{self, ParseError, Request};
use gpu_handoff::commands::{self, hook};
use gpu_handoff::execute::{inside, perform, worker};
use gpu_handoff::model::error::{self, Error, Exit};
use gpu_handoff::output::journal::{self, Fields};
use tracing::error;
use tracing::level_filters::LevelFilter;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|a| a == worker::WORKER_ARG) {
        if args.get(1).is_some_and(|a| a == inside::INSIDE_ARG) {
            let served = inside::serve(args.get(2).map(OsString::as_os_str));
            return if served.is_ok() { Exit::Done } else { Exit::Failed }.into();
        }
        let records = args.get(1).is_some_and(|a| a == worker::RECORDING_ARG);
        let served = perform::serve(records);
        return if served.is_ok() { Exit::Done } else { Exit::Failed }.into();
    }
    let request = match cli::parse(&args) {
        Ok(request) => request,
        Err(ParseError::Clap(e)) => {
            // Help and version are results, everything else is a message; clap knows which is which.
            let _ = e.print();
            return if e.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
        Err(ParseError::Sentence(text)) => {
            journal::init(LevelFilter::INFO, of_handoff(None));
            return finish(Err(Error::Usage(text)));
        }
    };
    finish(match request {
        Request::Hook { vmid, phase } => {
            journal::init(LevelFilter::INFO, of_handoff(Some((vmid, &phase))));
            hook::run(vmid, &phase)
        }
        Request::Command(cli) => {
            let level = match (cli.quiet, cli.verbose) {
                (true, _) => LevelFilter::WARN,
                (_, true) => LevelFilter::DEBUG,
                _ => LevelFilter::INFO,
            };
            let of = cli.for_vm();
            journal::init(
                level,
                of_handoff(of.as_ref().map(|(vmid, phase)| (*vmid, phase as &dyn fmt::Display))),
            );
            commands::run(&cli)
        }
    })
}

/// What all lines of a run are of.
fn of_handoff(of: Option<(VmId, &dyn fmt::Display)>) -> Fields {
    let fields =
        |(vmid, phase): (VmId, &dyn fmt::Display)| vec![("VMID", vmid.to_string()), ("PHASE", phase.to_string())];
    of.map_or_else(Fields::new, fields)
}

/// Says how it ended: the last line on stderr is what Proxmox's user reads first.
fn finish(result: Result<(), Error>) -> ExitCode {
    journal::say_left_out(u64::from(result.is_err()));
    let Err(e) = result else {
        return Exit::Done.into();
    };
    let exit = e.exit();
    let is_of_a_check = matches!(e, Error::Unfit { .. });
    let chain = error::chain(e);
    match exit {
        _ if is_of_a_check => error!("{chain}"),
        Exit::Refused => error!(message_id = MESSAGE_REFUSED, "refused, nothing was changed: {chain}"),
        _ => error!(message_id = MESSAGE_FAILED, "{chain}"),
    }
    exit.into()
}
