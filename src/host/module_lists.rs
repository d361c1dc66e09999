//! The modules that are to be loaded at boot: lists of names in modules-load.d, in /etc/modules, and those that go into an
//! initramfs.

use serde::{Deserialize, Serialize};

use crate::base::root::Root;
use crate::host::place::{Place, Unknown, by_name, text};

/// Where systemd looks, the first first (modules-load.d(5)).
pub const DIRS: [&str; 5] = [
    "/etc/modules-load.d",
    "/run/modules-load.d",
    "/usr/local/lib/modules-load.d",
    "/usr/lib/modules-load.d",
    "/lib/modules-load.d",
];

/// Debian's older list, to which /etc/modules-load.d/modules.conf leads.
pub const ETC_MODULES: &str = "/etc/modules";

/// The modules that an initramfs loads before the root file system is there (initramfs-tools(7)).
pub const INITRAMFS: &str = "/etc/initramfs-tools/modules";

/// A module of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name with underscores.
    pub module: String,
    /// What stands behind it: options, which an initramfs gives to modprobe, and which make a name that nobody knows to
    /// systemd.
    pub options: Vec<String>,
    /// Where it stands. What is read through a link stands in the file that the link leads to, where that is /etc/modules.
    pub place: Place,
}

/// The lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleLists {
    /// What systemd-modules-load loads at boot.
    pub at_boot: Vec<Listed>,
    /// What /etc/modules has where nothing leads to it: nobody loads these.
    pub unused: Vec<Listed>,
    /// What the initramfs loads.
    pub initramfs: Vec<Listed>,
    /// What could not be read.
    pub unknown: Vec<Unknown>,
}

impl ModuleLists {
    /// Reads them.
    pub fn read(root: &Root) -> Self {
        let mut lists = ModuleLists::default();
        let mut is_used = false;
        for file in by_name(root, &DIRS, ".conf", &mut lists.unknown) {
            let is_link = is_the_same(root, &file, ETC_MODULES);
            is_used |= is_link;
            let file = if is_link { ETC_MODULES } else { &file };
            let text = text(root, file, &mut lists.unknown).unwrap_or_default();
            lists.at_boot.extend(parse(file, &text, &['#', ';']));
        }
        if !is_used {
            let text = text(root, ETC_MODULES, &mut lists.unknown).unwrap_or_default();
            lists.unused = parse(ETC_MODULES, &text, &['#', ';']);
        }
        let text = text(root, INITRAMFS, &mut lists.unknown).unwrap_or_default();
        lists.initramfs = parse(INITRAMFS, &text, &['#']);
        lists
    }
}

/// Whether two paths lead to one file.
fn is_the_same(root: &Root, one: &str, other: &str) -> bool {
    let real = |path: &str| std::fs::canonicalize(root.path(path)).ok();
    real(one).is_some_and(|one| Some(one) == real(other))
}

/// Parses a list: a module a line, and what begins with one of these is a comment (systemd,
/// src/modules-load/modules-load.c, apply_file).
pub fn parse(file: &str, text: &str, comments: &[char]) -> Vec<Listed> {
    let mut listed = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.trim();
        if text.starts_with(comments) {
            continue;
        }
        let mut words = text.split_ascii_whitespace();
        if let Some(word) = words.next() {
            listed.push(Listed {
                module: word.replace('-', "_"),
                options: words.map(str::to_owned).collect(),
                place: Place::line(file, line),
            });
        }
    }
    listed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)], links: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        for (file, text) in files {
            std::fs::write(at(file), text).unwrap();
        }
        for (link, target) in links {
            std::os::unix::fs::symlink(target, at(link)).unwrap();
        }
        let root = Root::at(dir.path());
        (dir, root)
    }

    fn shown(listed: &[Listed]) -> Vec<String> {
        let one = |l: &Listed| {
            [&[format!("{} {}", l.place, l.module)], l.options.as_slice()]
                .concat()
                .join(" ")
        };
        listed.iter().map(one).collect()
    }

    #[test]
    fn what_is_read_through_debians_link_stands_in_etc_modules() {
        let files = [
            (
                "etc/modules",
                "# comment\nvfio-pci\n; another\n\n  nvidia  \nloop max_loop=8\n",
            ),
            ("etc/modules-load.d/vfio.conf", "vfio"),
            ("usr/lib/modules-load.d/fwupd.conf", "msr\n"),
            ("etc/initramfs-tools/modules", "#x\nvfio_pci ids=10de:2204\n"),
        ];
        let (_dir, root) = host(
            &files,
            &[
                ("etc/modules-load.d/modules.conf", "../modules"),
                ("etc/modules-load.d/fwupd.conf", "/dev/null"),
            ],
        );
        let lists = ModuleLists::read(&root);
        assert_eq!(
            shown(&lists.at_boot),
            [
                "/etc/modules:2 vfio_pci",
                "/etc/modules:5 nvidia",
                "/etc/modules:6 loop max_loop=8",
                "/etc/modules-load.d/vfio.conf:1 vfio"
            ]
        );
        assert_eq!(
            shown(&lists.initramfs),
            ["/etc/initramfs-tools/modules:2 vfio_pci ids=10de:2204"]
        );
        assert_eq!((lists.unused, lists.unknown), (vec![], vec![]));
    }

    #[test]
    fn etc_modules_to_which_nothing_leads_is_used_by_nobody() {
        let (_dir, root) = host(&[("etc/modules", "vfio\n")], &[]);
        let lists = ModuleLists::read(&root);
        assert_eq!(
            (lists.at_boot, shown(&lists.unused)),
            (vec![], vec!["/etc/modules:1 vfio".to_owned()])
        );
    }
}
