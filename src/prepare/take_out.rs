//! Only what is ours, out of a text that somebody has edited since. Pure: it is done where it cannot be mistaken, and
//! otherwise left.

use crate::prepare::diff::{Hunk, hunks, lines};
use crate::prepare::edit::{MARK, replace_word};

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TakenOut {
    /// The text without what is ours.
    Text(String),
    /// There is nothing of ours in it any more.
    Nothing,
    /// It cannot be told where what is ours stands now, or where what was there belongs.
    Unclear,
}

/// What became of one difference.
enum One {
    Back,
    Gone,
    Unclear,
}

/// Takes the difference between `before` and `after` out of `now`.
pub fn take_out(before: &str, after: &str, now: &str) -> TakenOut {
    let mut text: Vec<String> = lines(now).into_iter().map(str::to_owned).collect();
    let mut has_changed = false;
    for hunk in hunks(before, after).into_iter().flat_map(each) {
        match one(&hunk, &mut text) {
            One::Back => has_changed = true,
            One::Gone => {}
            One::Unclear => return TakenOut::Unclear,
        }
    }
    match has_changed {
        true => TakenOut::Text(text.concat()),
        false => TakenOut::Nothing,
    }
}

/// Lines that were commented out beside each other are told one by one, but for those that belong together by a backslash.
fn each(hunk: Hunk<'_>) -> Vec<Hunk<'_>> {
    let is_marked = |(old, new): (&&str, &&str)| new.strip_prefix(MARK) == Some(*old);
    if hunk.old.len() != hunk.new.len() || !hunk.old.iter().zip(&hunk.new).all(is_marked) {
        return vec![hunk];
    }
    let mut all: Vec<Hunk<'_>> = Vec::new();
    let mut goes_on = false;
    for (at, (old, new)) in hunk.old.into_iter().zip(hunk.new).enumerate() {
        match all.last_mut() {
            Some(last) if goes_on => {
                last.old.push(old);
                last.new.push(new);
            }
            _ => all.push(Hunk {
                from: hunk.from + at,
                old: vec![old],
                to: hunk.to + at,
                new: vec![new],
            }),
        }
        goes_on = bare(old).ends_with('\\');
    }
    all
}

fn bare(line: &str) -> &str {
    line.strip_suffix('\n').unwrap_or(line)
}

fn one(hunk: &Hunk<'_>, text: &mut Vec<String>) -> One {
    let length = hunk.new.len();
    if length == 0 {
        return One::Unclear; // no change of ours takes a line away
    }
    let is_here = |window: &[String]| window.iter().zip(&hunk.new).all(|(a, b)| bare(a) == bare(b));
    let found: Vec<usize> = text
        .windows(length)
        .enumerate()
        .filter(|(_, window)| is_here(window))
        .map(|(at, _)| at)
        .collect();
    match found.as_slice() {
        [at] => {
            let is_last = at + length == text.len();
            let mut old: Vec<String> = hunk.old.iter().map(|l| (*l).to_owned()).collect();
            if let Some(last) = old.last_mut().filter(|l| !is_last && !l.ends_with('\n')) {
                last.push('\n'); // it was the last line, and is not any more
            }
            text.splice(*at..at + length, old);
            One::Back
        }
        [] => in_words(hunk, text),
        _ => One::Unclear,
    }
}

/// A line of ours that is not there as it was: somebody has edited it, or taken it out.
fn in_words(hunk: &Hunk<'_>, text: &mut [String]) -> One {
    let ([old], [new]) = (hunk.old.as_slice(), hunk.new.as_slice()) else {
        let is_left = hunk.new.iter().any(|n| text.iter().any(|t| bare(t) == bare(n)));
        return if is_left { One::Unclear } else { One::Gone };
    };
    if new.starts_with(MARK) {
        return One::Gone; // it is commented out no more, or not there at all
    }
    let (old, new) = (words(old), words(new));
    let added: Vec<&str> = new.iter().filter(|w| !old.contains(w)).copied().collect();
    let taken: Vec<&str> = old.iter().filter(|w| !new.contains(w)).copied().collect();
    let has = |line: &str, word: &str| !line.trim_start().starts_with('#') && words(line).contains(&word);
    let is_any_there = |all: &[&str]| text.iter().any(|line| all.iter().any(|word| has(line, word)));
    if !taken.is_empty() {
        let is_back = taken.iter().all(|word| text.iter().any(|line| has(line, word)));
        return if is_back && !is_any_there(&added) {
            One::Gone
        } else {
            One::Unclear
        };
    }
    if !is_any_there(&added) {
        return One::Gone;
    }
    let mut with: Vec<&mut String> = text
        .iter_mut()
        .filter(|line| added.iter().any(|word| has(line, word)))
        .collect();
    let [line] = with.as_mut_slice() else {
        return One::Unclear;
    };
    let is_once = |word: &&str| words(line).iter().filter(|w| *w == word).count() == 1;
    if !added.iter().all(is_once) {
        return One::Unclear;
    }
    let mut without = line.clone();
    for word in &added {
        match replace_word(&without, word, None) {
            Some(shorter) => without = shorter,
            None => return One::Unclear,
        }
    }
    **line = without;
    One::Back
}

/// The words of a line: what blanks and quotes part.
fn words(line: &str) -> Vec<&str> {
    line.split([' ', '\t', '"', '\'', '\n', '\r'])
        .filter(|w| !w.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ours_goes_and_what_was_edited_stays() {
        let text = |t: &str| TakenOut::Text(t.to_owned());
        let grub = ("A=0\nB=\"quiet\"\n", "A=0\nB=\"quiet intel_iommu=on\"\n");
        let blacklist = ("a\nblacklist nvidia\nb\n", "a\n# gpu-handoff: blacklist nvidia\nb\n");
        let ids = ("root=a vfio-pci.ids=10de:2204 quiet\n", "root=a quiet\n");
        for ((before, after), now, expected) in [
            (grub, "A=5\nB=\"quiet intel_iommu=on\"\n", text("A=5\nB=\"quiet\"\n")),
            (
                grub,
                "A=0\nB=\"quiet intel_iommu=on iommu=pt\"\n",
                text("A=0\nB=\"quiet iommu=pt\"\n"),
            ),
            (grub, "A=0\nB=\"intel_iommu=on\"\n", text("A=0\nB=\"\"\n")),
            (grub, "A=0\nB=\"quiet splash\"\n", TakenOut::Nothing),
            (grub, "A=0\n#B=\"quiet intel_iommu=on x\"\nB=\"\"\n", TakenOut::Nothing),
            (
                grub,
                "B=\"intel_iommu=on x\"\nC=\"intel_iommu=on\"\n",
                TakenOut::Unclear,
            ),
            (grub, "B=\"quiet intel_iommu=on x intel_iommu=on\"\n", TakenOut::Unclear),
            (
                grub,
                "B=\"quiet intel_iommu=on\"\nB=\"quiet intel_iommu=on\"\n",
                TakenOut::Unclear,
            ),
            (
                blacklist,
                "new\na\n# gpu-handoff: blacklist nvidia\nb\n",
                text("new\na\nblacklist nvidia\nb\n"),
            ),
            (blacklist, "a\nb\nc\n", TakenOut::Nothing),
            (blacklist, "a\nblacklist nvidia\nb\nc\n", TakenOut::Nothing),
            (ids, "root=a quiet more\n", TakenOut::Unclear),
            (ids, "root=a vfio-pci.ids=10de:2204 quiet more\n", TakenOut::Nothing),
            (ids, "\nroot=a quiet\n", text("\nroot=a vfio-pci.ids=10de:2204 quiet\n")),
            (("", "vfio\nvfio_pci\n"), "vfio\nvfio_pci\nmine\n", text("mine\n")),
            (("", "vfio\nvfio_pci\n"), "vfio\nmine\nvfio_pci\n", TakenOut::Unclear),
            (("", "vfio\nvfio_pci\n"), "mine\n", TakenOut::Nothing),
            // Each for itself, but for those that go on in the next.
            (
                ("a\nb\n", "# gpu-handoff: a\n# gpu-handoff: b\n"),
                "# gpu-handoff: b\nx\n",
                text("b\nx\n"),
            ),
            (
                ("a \\\nb\n", "# gpu-handoff: a \\\n# gpu-handoff: b\n"),
                "# gpu-handoff: b\nx\n",
                TakenOut::Unclear,
            ),
            // The last line had no end, and is not the last any more.
            (
                ("blacklist nvidia", "# gpu-handoff: blacklist nvidia"),
                "# gpu-handoff: blacklist nvidia\nmore\n",
                text("blacklist nvidia\nmore\n"),
            ),
        ] {
            assert_eq!(take_out(before, after, now), expected, "{now:?}");
        }
    }
}
