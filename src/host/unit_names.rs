//! Names of units of systemd's: which may be stopped at all.

/// What no host should be without: stopped, it takes the host's management, its sessions or its network along.
fn is_needed(unit: &str) -> bool {
    let starts = [
        "pve",
        "systemd-",
        "dbus",
        "ssh",
        "user@",
        "gpu-handoff",
        "lxc",
        "corosync",
        "ceph",
    ];
    starts.iter().any(|start| unit.starts_with(start))
}

/// The name of a service as systemd has it (systemd.unit(5)), from one without its suffix or with it; no longer than what is
/// shown of one, and none that the host needs, or a container.
pub fn service(word: &str) -> Option<String> {
    let name = word.strip_suffix(".service").unwrap_or(word);
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let other = [".socket", ".timer", ".target", ".scope", ".slice", ".mount"];
    let is_good = !name.is_empty()
        && name.len() <= 56
        && name.chars().all(is_allowed)
        && !name.starts_with(['-', '.'])
        && !other.iter().any(|suffix| name.ends_with(suffix));
    (is_good && !is_needed(name)).then(|| format!("{name}.service"))
}

/// Whether a unit is a service that may be stopped at all.
pub fn can_be_stopped(unit: &str) -> bool {
    unit.ends_with(".service") && service(unit).as_deref() == Some(unit)
}

/// Whether a unit starts others when they are used or due, and may be stopped.
pub fn is_starter(unit: &str) -> bool {
    let stem = [".socket", ".path", ".timer"]
        .iter()
        .find_map(|suffix| unit.strip_suffix(suffix));
    stem.is_some_and(|stem| service(stem).is_some_and(|service| service.strip_suffix(".service") == Some(stem)))
}
