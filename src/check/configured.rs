//! The host's configuration as lines that the checks look at: from what its readers have understood. Pure.

use crate::check::line::{Kind, Line};
use crate::host::boot_loader::BootConfig;
use crate::host::kernel_args::Argument;
use crate::host::modprobe_config::{Directive, ModprobeConfig};
use crate::host::module_lists::{Listed, ModuleLists};
use crate::host::place::Place;

/// All lines, in the order of the files.
pub(super) fn lines(modprobe: &ModprobeConfig, lists: &ModuleLists, boot: &BootConfig) -> Vec<Line> {
    let mut lines: Vec<Line> = modprobe
        .lines
        .iter()
        .map(|l| line(Kind::Modprobe, &l.place, words(&l.directive)))
        .collect();
    lines.extend(
        lists
            .at_boot
            .iter()
            .map(|l| line(Kind::Module, &l.place, vec![l.module.clone()])),
    );
    // What stands behind a module of the initramfs are its options.
    let with_options = lists.initramfs.iter().filter(|l| !l.options.is_empty());
    lines.extend(with_options.map(|l| line(Kind::Modprobe, &l.place, options(l))));
    let next: &[Argument] = boot.next.as_deref().unwrap_or_default();
    lines.extend(
        next.iter()
            .map(|a| line(Kind::Argument, &a.place, vec![a.text.clone()])),
    );
    // What only the running kernel was given, by hand at the boot loader's prompt say.
    let only_now = boot.now.iter().filter(|now| next.iter().all(|n| n.text != now.text));
    lines.extend(only_now.map(|a| Line {
        line: None,
        ..line(Kind::Argument, &a.place, vec![a.text.clone()])
    }));
    lines
}

fn line(kind: Kind, place: &Place, words: Vec<String>) -> Line {
    Line {
        file: place.file.clone(),
        line: Some(place.line),
        kind,
        words,
    }
}

fn options(listed: &Listed) -> Vec<String> {
    let head = ["options".to_owned(), listed.module.clone()];
    head.into_iter().chain(listed.options.iter().cloned()).collect()
}

/// A directive as its words, as modprobe.d(5) has them.
fn words(directive: &Directive) -> Vec<String> {
    let (head, rest): ([&str; 2], Vec<&str>) = match directive {
        Directive::Alias { name, module } => (["alias", name], vec![module]),
        Directive::Blacklist { module } => (["blacklist", module], Vec::new()),
        Directive::Options { module, options } => (["options", module], options.iter().map(String::as_str).collect()),
        Directive::Install { module, command } => (["install", module], command.split_ascii_whitespace().collect()),
        Directive::Remove { module, command } => (["remove", module], command.split_ascii_whitespace().collect()),
        Directive::Softdep { module, pre, post } => {
            let mut rest = Vec::new();
            for (word, modules) in [("pre:", pre), ("post:", post)] {
                if !modules.is_empty() {
                    rest.push(word);
                    rest.extend(modules.iter().map(String::as_str));
                }
            }
            (["softdep", module], rest)
        }
        Directive::Ignored { word } => ([word, ""], Vec::new()),
    };
    head.into_iter()
        .chain(rest)
        .filter(|w| !w.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::host::modprobe_config::parse;

    #[test]
    fn a_directive_is_the_words_that_it_was_read_from() {
        let text = "options vfio_pci ids=10de:2204 disable_vga=1\nblacklist nvidia\ninstall nvidia /bin/false\n\
                    softdep nvidia pre: vfio_pci post: nvidia_uvm\nalias pci:v000010DE* vfio_pci\nremove nvidia true\n";
        let lines = parse("/etc/modprobe.d/x.conf", text);
        let read: Vec<String> = lines.iter().map(|l| words(&l.directive).join(" ")).collect();
        assert_eq!(read, text.lines().collect::<Vec<_>>());
    }
}
