//! The status as a table for a terminal of 80 columns, and as the lines of the shell script that came before this program.
//!
//! A card has a row, each of its functions has one below it, and what a word cannot say comes after them as sentences.

use std::fmt::Write as _;
use std::time::Duration;

use crate::base::clock::utc;
use crate::base::text::millis;
use crate::model::plan::Direction;
use crate::output::card_state::CardState;
use crate::output::status::{CardStatus, FunctionStatus, Last, NO_GPU, Status};
use crate::output::style::{Ink, Style, fit};

/// Widths of the columns: a name over driver, override and group; owner and users after them. With a blank between each
/// they fill 80 columns. The driver's is that of nvidia-vgpu-vfi.., the override's that of "does not answer".
const SLOT: usize = 15;
const NAME: usize = 36;
const OWNER: usize = 13;
const USERS: usize = 13;
const ADDR: usize = 13;
const DRIVER: usize = 14;
const OVERRIDE: usize = 15;
const GROUP: usize = 5;
const DEVICE: usize = 27;

/// `status` for people.
pub fn text(status: &Status, style: Style) -> String {
    if status.cards.is_empty() {
        return NO_GPU.to_owned();
    }
    let mut text = String::new();
    for line in [
        card_row("CARD", "NAME", "OWNER", "USERS"),
        function_row(["FUNCTION", "DRIVER", "OVERRIDE", "GROUP", "DEVICE"]),
    ] {
        let _ = writeln!(text, "{}", style.paint(Ink::Head, &line));
    }
    for card in &status.cards {
        text += &card_text(card, style);
    }
    text
}

fn card_text(card: &CardStatus, style: Style) -> String {
    let mut text = String::new();
    let owner = style.paint(ink(card.state), &fit(&owner(card), OWNER));
    let row = format!(
        "{} {} {owner} {}",
        fit(&card.slot, SLOT),
        fit(&card.name, NAME),
        users(card)
    );
    let _ = writeln!(text, "{}", row.trim_end());
    for function in &card.functions {
        let _ = writeln!(text, "{}", function_text(function));
    }
    let mut say = |label: &str, ink: Option<Ink>, sentence: &str| {
        // The label alone is painted, so that no colour runs over a break.
        let line = style.labelled(label, sentence);
        let painted = ink.map(|ink| style.paint(ink, label));
        text += &painted.map_or_else(|| line.clone(), |painted| line.replacen(label, &painted, 1));
    };
    if let Some(uuid) = &card.uuid {
        say("  UUID:    ", None, uuid);
    }
    if let Some(owner) = &card.owner {
        say("  lent to: ", None, owner);
    }
    if let Some(line) = &card.at_work {
        say("  at work: ", Some(Ink::Care), line);
    }
    if let Some(line) = &card.left {
        say("  left:    ", Some(Ink::Care), line);
    }
    for line in &card.stuck {
        say("  wedged:  ", Some(Ink::Bad), line);
    }
    for line in &card.late {
        say("  late:    ", Some(Ink::Care), line);
    }
    for line in &card.in_use {
        say("  in use:  ", None, line);
    }
    if let Some(last) = &card.last {
        say("  last:    ", None, &last_text(last));
    }
    if let Some(hint) = card.hint {
        say("  Hint:    ", None, hint);
    }
    text
}

fn card_row(slot: &str, name: &str, owner: &str, users: &str) -> String {
    let row = [(slot, SLOT), (name, NAME), (owner, OWNER), (users, USERS)];
    let row = row.map(|(text, width)| fit(text, width)).join(" ");
    row.trim_end().to_owned()
}

fn function_row([addr, driver, by, group, device]: [&str; 5]) -> String {
    let row = [
        (addr, ADDR),
        (driver, DRIVER),
        (by, OVERRIDE),
        (group, GROUP),
        (device, DEVICE),
    ];
    let row = row.map(|(text, width)| fit(text, width)).join(" ");
    format!("  {}", row.trim_end())
}

fn function_text(function: &FunctionStatus) -> String {
    let driver = function.driver.as_deref().unwrap_or("no driver");
    let by = match &function.driver_override {
        _ if function.id.is_none() => "not there",
        _ if !function.answers => "does not answer",
        None => "-",
        Some(by) => by,
    };
    let group = function.group.map_or("-".to_owned(), |g| g.to_string());
    let device = match &function.id {
        Some(id) => format!("{id} {}", function.class),
        None => "-".to_owned(),
    };
    let driver = if function.id.is_none() { "-" } else { driver };
    function_row([&function.addr, driver, by, &group, &device])
}

/// Whose it is, in a word.
fn owner(card: &CardStatus) -> String {
    let word = match card.state {
        CardState::Host => "host",
        CardState::Vm => return card.vmid.map_or("a VM".to_owned(), |vmid| format!("VM {vmid}")),
        CardState::ByHand => "by hand",
        CardState::HandingOver => "handing over",
        CardState::Interrupted => "interrupted",
        CardState::Stranded => "stranded",
        CardState::Wedged => "wedged",
        CardState::Late => "late",
        CardState::Stuck => "stuck",
        CardState::Nobody => "nobody",
        CardState::Missing => "missing",
    };
    word.to_owned()
}

fn ink(state: CardState) -> Ink {
    match state {
        CardState::Host => Ink::Good,
        CardState::Vm | CardState::ByHand | CardState::Nobody => Ink::Lent,
        CardState::HandingOver | CardState::Interrupted | CardState::Late => Ink::Care,
        CardState::Stranded | CardState::Wedged | CardState::Stuck | CardState::Missing => Ink::Bad,
    }
}

/// Who uses it, in a word, and how many others do.
fn users(card: &CardStatus) -> String {
    let more = format!(" +{}", card.users.len().saturating_sub(1));
    match card.users.as_slice() {
        _ if card.state == CardState::Missing => "-".to_owned(),
        [] if card.unclear => "unclear".to_owned(),
        [] => "nobody".to_owned(),
        [one] => fit(one, USERS).trim_end().to_owned(),
        [first, ..] => fit(first, USERS - more.len()).trim_end().to_owned() + &more,
    }
}

fn last_text(last: &Last) -> String {
    let to = match last.direction {
        Direction::Out => "to vfio-pci",
        Direction::Home => "home",
    };
    let took = millis(Duration::from_millis(last.took_ms));
    format!("{}, {}, {to} in {took}: {}", utc(last.time), last.owner, last.outcome)
}

/// The lines of the shell script that came before: each function of a card with its driver, and nothing else.
pub fn plain(status: &Status) -> String {
    let functions = status.cards.iter().flat_map(|card| &card.functions);
    functions.fold(String::new(), |text, function| {
        let driver = function.driver.as_deref().unwrap_or("none");
        text + &format!("[gpu-handoff] {} driver={driver}\n", function.addr)
    })
}
