//! What a process belongs to, as its cgroup tells: a unit, a container, a VM, a session.

/// What a process belongs to, from /proc/PID/cgroup.
///
/// Names as made by pve-container (`lxc/CTID`), qemu-server (`qemu.slice/VMID.scope`), systemd, Docker
/// (`docker-ID.scope`) and Podman (`libpod-ID.scope`).
pub fn belongs_to(cgroup: &str) -> String {
    let path = cgroup
        .lines()
        .find_map(|l| l.strip_prefix("0::"))
        .or_else(|| cgroup.lines().find_map(|l| l.splitn(3, ':').nth(2)))
        .unwrap_or_default();
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let scope = |part: &'_ str| part.strip_suffix(".scope").map(str::to_owned);
    let mut found = String::new();
    for pair in parts.windows(2) {
        if pair[0] == "lxc" && pair[1].bytes().all(|b| b.is_ascii_digit()) {
            return format!("container {}", pair[1]);
        }
        if pair[0] == "qemu.slice"
            && let Some(vmid) = scope(pair[1])
        {
            return format!("VM {vmid}");
        }
    }
    for part in parts {
        if let Some(name) = scope(part) {
            let id = |id: &str| id.chars().take(12).collect::<String>();
            if let Some(docker) = name.strip_prefix("docker-") {
                return format!("Docker container {}", id(docker));
            }
            if let Some(podman) = name.strip_prefix("libpod-") {
                return format!("Podman container {}", id(podman));
            }
            if let Some(session) = name.strip_prefix("session-") {
                return format!("login session {session}");
            }
        }
        if part.ends_with(".service") {
            let of_user = found.starts_with("user");
            found = if of_user {
                format!("user service {part}")
            } else {
                part.to_owned()
            };
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_name_what_a_process_belongs_to() {
        for (cgroup, name) in [
            ("0::/lxc/104/ns/system.slice/ollama.service\n", "container 104"),
            ("0::/qemu.slice/111.scope\n", "VM 111"),
            (
                "0::/system.slice/nvidia-persistenced.service\n",
                "nvidia-persistenced.service",
            ),
            (
                "0::/system.slice/docker-0123456789abcdef0123.scope\n",
                "Docker container 0123456789ab",
            ),
            ("0::/machine.slice/libpod-abc.scope/container\n", "Podman container abc"),
            ("0::/user.slice/user-0.slice/session-3.scope\n", "login session 3"),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/pipewire.service\n",
                "user service pipewire.service",
            ),
            ("0::/\n", ""),
            ("", ""),
            ("12:pids:/lxc/7\n", "container 7"),
        ] {
            assert_eq!(belongs_to(cgroup), name, "{cgroup:?}");
        }
    }
}
