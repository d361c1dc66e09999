//! The storages, /etc/pve/storage.cfg, as far as hookscripts lie on them. Pure.
//!
//! Source: pve-storage 9.1.7, PVE/Storage/Plugin.pm, `get_subdir`, `check_config`; PVE/Storage.pm, `path`: for the path of a
//! snippet neither the list of contents counts, nor whether the storage is active.

/// Where the storages are.
pub const STORAGES: &str = "/etc/pve/storage.cfg";

/// Where the storage `local` always is, whatever the file says.
const LOCAL: &str = "/var/lib/vz";

/// Kinds that every node has the same of.
const SHARED: [&str; 4] = ["nfs", "cifs", "cephfs", "glusterfs"];

/// A storage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Storage {
    /// Its name.
    pub name: String,
    /// All nodes have the same.
    pub shared: bool,
    /// Its folder of snippets; None: a kind that has no folders.
    pub snippets: Option<String>,
    /// It is switched off.
    pub disabled: bool,
    /// The nodes that have it; None: all.
    pub nodes: Option<Vec<String>>,
}

impl Storage {
    /// Whether a node has it (PVE/Storage.pm, storage_check_enabled).
    pub fn is_on(&self, node: &str) -> bool {
        let mut named = self.nodes.iter().flatten();
        !self.disabled && (self.nodes.is_none() || named.any(|name| name == node))
    }
}

/// All that the file names; `local` is first, and always there.
pub fn parse(text: &str) -> Vec<Storage> {
    let mut found: Vec<Storage> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((kind, name)) = line.split_once(':').filter(|_| !line.starts_with(char::is_whitespace)) else {
            continue;
        };
        let mut storage = Storage {
            name: name.trim().to_owned(),
            shared: SHARED.contains(&kind),
            ..Storage::default()
        };
        let is_mounted = storage.shared.then(|| format!("/mnt/pve/{}", storage.name));
        let (mut path, mut below) = (is_mounted, "snippets".to_owned());
        while let Some(line) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
            let line = line.trim();
            match line.split_once(char::is_whitespace) {
                None if line == "disable" => storage.disabled = true,
                Some(("disable", value)) => storage.disabled = value.trim() != "0",
                Some(("nodes", value)) => {
                    let names = value.split([',', ' ']).map(str::trim).filter(|name| !name.is_empty());
                    storage.nodes = Some(names.map(str::to_owned).collect());
                }
                Some(("path", value)) => path = Some(value.trim().to_owned()),
                Some(("shared", value)) => storage.shared |= value.trim() == "1",
                Some(("content-dirs", value)) => {
                    let of = value.split(',').find_map(|part| part.trim().strip_prefix("snippets="));
                    below = of.map_or(below, |of| of.trim_matches('/').to_owned());
                }
                _ => {}
            }
        }
        if storage.name == "local" {
            path = Some(LOCAL.to_owned());
        }
        storage.snippets = path.map(|path| format!("{}/{below}", path.trim_end_matches('/')));
        found.push(storage);
    }
    let at = found.iter().position(|s| s.name == "local");
    let local = at.map_or_else(
        || Storage {
            name: "local".to_owned(),
            snippets: Some(format!("{LOCAL}/snippets")),
            ..Storage::default()
        },
        |at| found.remove(at),
    );
    found.insert(0, local);
    found
}

/// The path of a hookscript's volume, `STORAGE:snippets/NAME`.
pub fn path_of(storages: &[Storage], volume: &str) -> Option<String> {
    let (storage, name) = volume.split_once(":snippets/")?;
    let storage = storages.iter().find(|s| s.name == storage)?;
    Some(format!("{}/{name}", storage.snippets.as_ref()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_storage_with_folders_has_one_for_snippets_and_local_is_always_there() {
        let text = "nfs: share\n\tserver 10.0.0.1\n\texport /x\n\ncifs: other\n\tpath /srv/other/\n\tcontent-dirs \
                    iso=a,snippets=/hooks\n\nlvmthin: fast\n\tthinpool data\n\ndir: both\n\tpath /both\n\tshared 1\n\ndir: \
                    local\n\tpath /elsewhere\n";
        let seen = parse(text);
        let seen: Vec<_> = seen
            .iter()
            .map(|s| (s.name.as_str(), s.shared, s.snippets.as_deref()))
            .collect();
        assert_eq!(
            seen,
            [
                ("local", false, Some("/var/lib/vz/snippets")),
                ("share", true, Some("/mnt/pve/share/snippets")),
                ("other", true, Some("/srv/other/hooks")),
                ("fast", false, None),
                ("both", true, Some("/both/snippets")),
            ]
        );
        assert_eq!(parse("")[0].name, "local");
        let path = |volume| path_of(&parse(text), volume);
        assert_eq!(path("other:snippets/x").as_deref(), Some("/srv/other/hooks/x"));
        assert_eq!(path("fast:snippets/x"), None);
        assert_eq!(path("nowhere:snippets/x"), None);
        assert_eq!(path("local:iso/x"), None);
    }

    #[test]
    fn a_storage_is_where_its_nodes_are_unless_it_is_switched_off() {
        let text = "nfs: a\n\tnodes pve,pve2\n\nnfs: b\n\tdisable\n\nnfs: c\n\tdisable 0\n";
        let seen = parse(text);
        let on = |node| {
            seen.iter()
                .filter(|s| s.is_on(node))
                .map(|s| s.name.as_str())
                .collect::<Vec<_>>()
        };
        assert_eq!(on("pve"), ["local", "a", "c"]);
        assert_eq!(on("pve3"), ["local", "c"]);
    }
}
