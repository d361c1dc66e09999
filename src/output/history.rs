//! Past handoffs as text.

use crate::base::text::millis;
use crate::model::plan::Direction;
use crate::state::history::Handoff;

/// The entries for people: one line each, with its acts where `acts` asks for them.
pub fn text(entries: &[Handoff], acts: bool) -> String {
    if entries.is_empty() {
        return "No handoff so far.\n".to_owned();
    }
    let mut text = String::new();
    for entry in entries {
        let to = match entry.direction {
            Direction::Out => "to vfio-pci",
            Direction::Home => "home",
        };
        text += &format!(
            "{}  {}: {} {to}, {}: {}\n",
            utc(entry.time),
            entry.owner,
            entry.cards.join(", "),
            millis(std::time::Duration::from_millis(entry.took_ms)),
            entry.outcome
        );
        for act in entry.acts.iter().filter(|_| acts) {
            let took = millis(std::time::Duration::from_millis(act.took_ms));
            let failed = act.error.as_ref().map_or(String::new(), |e| format!(": failed: {e}"));
            text += &format!("    {:<60} {took:>8}{failed}\n", act.text);
        }
    }
    text
}

/// Seconds since 1970 as a date and a time of day, by the rules of the Gregorian calendar.
fn utc(time: u64) -> String {
    let (days, seconds) = (time / 86_400, time % 86_400);
    // Years that begin in March have the leap day as their last one; an era is 400 of them.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (h, m, s) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year}-{month:02}-{day:02} {h:02}:{m:02}:{s:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::history::Past;

    #[test]
    fn times_are_dates() {
        for (time, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (1_795_249_367, "2026-11-21 08:22:47 UTC"),
        ] {
            assert_eq!(utc(time), expected);
        }
    }

    #[test]
    fn the_text_has_a_line_for_each_and_its_acts_on_demand() {
        let entry = Handoff {
            time: 0,
            boot_id: "boot".to_owned(),
            owner: "VM 111".to_owned(),
            direction: Direction::Out,
            cards: vec!["0000:01:00".to_owned()],
            outcome: "done".to_owned(),
            took_ms: 1234,
            acts: vec![Past {
                text: "0000:01:00.0 unbind from nvidia".to_owned(),
                took_ms: 12,
                error: None,
            }],
        };
        assert_eq!(
            text(&[entry], true),
            "1970-01-01 00:00:00 UTC  VM 111: 0000:01:00 to vfio-pci, 1234 ms: done\n    \
             0000:01:00.0 unbind from nvidia                                 12 ms\n"
        );
        assert_eq!(text(&[], false), "No handoff so far.\n");
    }
}
