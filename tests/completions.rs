//! What shells complete after "gpu-handoff": written by clap_complete from the command line itself, into completions/, with
//! three lists that only a host has: its VMs, its containers, its GPUs. `UPDATE_GENERATED=1 cargo test --test completions`
//! writes them anew. bash's is run here, fish's and zsh's where these shells are.
//!
//! Not in the binary, which would grow by a tenth for something that never changes between two versions.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there
#![allow(clippy::print_stdout)] // what was left out is said

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use clap::builder::PossibleValuesParser;
use clap::{Arg, Command, CommandFactory, ValueHint};
use clap_complete::aot::{Shell, generate};
use gpu_handoff::check::table::ROWS;
use gpu_handoff::commands::cli::Cli;

/// Values that a host has, by the option's name: the word that is put in for the list, and the function that gives it.
const LISTS: [(&str, &str); 4] = [
    ("vm", "LIST-vms"),
    ("ct", "LIST-containers"),
    ("gpu", "LIST-gpus"),
    ("clear_wedged", "LIST-gpus"),
];

const NOTE: &str = "# Written by tests/completions.rs from the program's own command line.";

const BASH: &str = r#"
# The VMs or containers of this node, by the names of their configs in a folder.
__gpu_handoff_guests() {
    local config
    for config in "$1"/*.conf; do
        config=${config##*/}
        [[ $config == \** ]] || printf '%s\n' "${config%.conf}"
    done
}
__gpu_handoff_vms() { __gpu_handoff_guests /etc/pve/qemu-server; }
__gpu_handoff_containers() { __gpu_handoff_guests /etc/pve/lxc; }
# NVIDIA's display functions, by address.
__gpu_handoff_gpus() {
    local device vendor class
    for device in /sys/bus/pci/devices/*; do
        { read -r vendor <"$device/vendor" && read -r class <"$device/class"; } 2>/dev/null || continue
        [[ $vendor == 0x10de && $class == 0x03* ]] && printf '%s\n' "${device##*/}"
    done
}
# bash ends a word at a colon, and an address has two: its parts are one word again, and what is typed of it is not repeated.
__gpu_handoff_whole() {
    local words=() word
    for word in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
        if ((${#words[@]} > 1)) && [[ $word == : || ${words[-1]} == *: ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
    done
    local COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1))
    _gpu__handoff "$1" "${words[-1]}" "${words[-2]}"
    local typed=${words[-1]}
    [[ $typed != *:* ]] || COMPREPLY=("${COMPREPLY[@]#"${typed%"${typed##*:}"}"}")
}

"#;

const ZSH: &str = r#"
# The VMs or containers of this node, by the names of their configs; NVIDIA's display functions, by address.
_gpu_handoff_vms() { local -a all=(/etc/pve/qemu-server/*.conf(N:t:r)); compadd -a all }
_gpu_handoff_containers() { local -a all=(/etc/pve/lxc/*.conf(N:t:r)); compadd -a all }
_gpu_handoff_gpus() {
    local -a all
    local device
    for device in /sys/bus/pci/devices/*(N); do
        [[ "$(<$device/vendor)" == 0x10de && "$(<$device/class)" == 0x03* ]] && all+=(${device:t})
    done
    compadd -a all
}
"#;

const FISH: &str = r#"
# The VMs or containers of this node, by the names of their configs; NVIDIA's display functions, by address.
function __gpu_handoff_vms
    path basename /etc/pve/qemu-server/*.conf 2>/dev/null | string replace -r '\.conf$' ''
end
function __gpu_handoff_containers
    path basename /etc/pve/lxc/*.conf 2>/dev/null | string replace -r '\.conf$' ''
end
function __gpu_handoff_gpus
    for device in /sys/bus/pci/devices/*
        string match -q 0x10de <$device/vendor 2>/dev/null; and string match -q '0x03*' <$device/class
        and path basename $device
    end
end
# No command takes a file.
complete -c gpu-handoff -f
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand handoff" -a 'vfio nvidia'

"#;

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The command line as shells are to know it: without what is hidden, each value with what it may be.
fn command() -> Command {
    let value = |arg: Arg| {
        let list = LISTS.iter().find(|(id, _)| arg.get_id() == *id);
        match list {
            Some((_, list)) => arg.value_parser(PossibleValuesParser::new([*list])),
            None if arg.get_id() == "skip" => arg.value_parser(PossibleValuesParser::new(ROWS.iter().map(|r| r.id))),
            None if arg.get_id() == "since" => arg.value_hint(ValueHint::Other),
            None => arg,
        }
    };
    let cli = Cli::command();
    let shown = cli.get_subcommands().filter(|c| !c.is_hide_set()).cloned();
    Command::new("gpu-handoff")
        .version("0")
        .disable_help_subcommand(true)
        .args(cli.get_arguments().cloned())
        .subcommands(shown.map(|command| command.mut_args(value)))
}

/// What a shell is given, with its name as it is installed.
fn completions(shell: Shell) -> (&'static str, String) {
    let mut out = Vec::new();
    generate(shell, &mut command(), "gpu-handoff", &mut out);
    let mut text = String::from_utf8(out).unwrap();
    let name = match shell {
        Shell::Bash => {
            for list in ["vms", "containers", "gpus"] {
                text = text.replace(&format!("LIST-{list}"), &format!("$(__gpu_handoff_{list})"));
            }
            // clap_complete 4.6 writes a dash in a program's name in two ways, which do not meet: no subcommand is known.
            text = text.replace("gpu__subcmd__handoff", "gpu__handoff");
            text = text.replace("complete -F _gpu__handoff ", "complete -F __gpu_handoff_whole ");
            text = format!("{NOTE}\n{BASH}{text}");
            "gpu-handoff"
        }
        Shell::Zsh => {
            for list in ["vms", "containers", "gpus"] {
                text = text.replace(&format!("(LIST-{list})"), &format!("_gpu_handoff_{list}"));
            }
            text = text.replacen(
                "#compdef gpu-handoff\n",
                &format!("#compdef gpu-handoff\n{NOTE}\n{ZSH}"),
                1,
            );
            "_gpu-handoff"
        }
        _ => {
            for list in ["vms", "containers", "gpus"] {
                text = text.replace(&format!("LIST-{list}\\t''"), &format!("(__gpu_handoff_{list})"));
            }
            text = format!("{NOTE}\n{FISH}{text}");
            "gpu-handoff.fish"
        }
    };
    assert!(!text.contains("LIST-"), "{name}: a list has not found its place");
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    (name, lines.join("\n") + "\n")
}

#[test]
fn the_files_are_what_the_command_line_says() {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let (name, text) = completions(shell);
        let path = top().join("completions").join(name);
        if std::env::var_os("UPDATE_GENERATED").is_some() {
            fs::write(&path, &text).unwrap();
        }
        assert!(
            fs::read_to_string(&path).unwrap_or_default() == text,
            "{} is stale: run UPDATE_GENERATED=1 cargo test --test completions",
            path.display()
        );
    }
}

/// A node with two VMs, a container, a GPU of two functions, another vendor's, and a network card.
fn host() -> tempfile::TempDir {
    let host = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = host.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("etc/pve/qemu-server/111.conf", "");
    write("etc/pve/qemu-server/1200.conf", "");
    write("etc/pve/lxc/104.conf", "");
    for (addr, vendor, class) in [
        ("0000:01:00.0", "0x10de", "0x030000"),
        ("0000:01:00.1", "0x10de", "0x040300"),
        ("0000:02:00.0", "0x8086", "0x030000"),
        ("0000:03:00.0", "0x10de", "0x020000"),
        ("0000:41:00.0", "0x10de", "0x030200"),
    ] {
        write(&format!("sys/bus/pci/devices/{addr}/vendor"), &format!("{vendor}\n"));
        write(&format!("sys/bus/pci/devices/{addr}/class"), &format!("{class}\n"));
    }
    host
}

/// A shell's file for that node instead of this machine.
fn on_host(host: &Path, shell: Shell) -> PathBuf {
    let (name, text) = completions(shell);
    let at = |dir: &str| host.join(dir.trim_start_matches('/')).display().to_string();
    let text = text
        .replace("/etc/pve", &at("/etc/pve"))
        .replace("/sys/bus/pci/devices", &at("/sys/bus/pci/devices"));
    let path = host.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn run(process: &mut Process) -> Option<String> {
    let output = process.env_clear().env("PATH", "/usr/bin:/bin").output().ok()?;
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && err.is_empty(), "{process:?}: {err}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// What is typed, as bash has it in words, and what it offers then.
const TYPED: [(&[&str], &[&str]); 12] = [
    (&["st"], &["status"]),
    (&["re"], &["recover", "report"]),
    (&["plan", "--vm", ""], &["111", "1200"]),
    (&["plan", "--vm", "12"], &["1200"]),
    (&["check", "--ct", ""], &["104"]),
    (&["to_vfio", "--gpu", ""], &["0000:01:00.0", "0000:41:00.0"]),
    (&["recover", "--clear-wedged", ""], &["0000:01:00.0", "0000:41:00.0"]),
    (&["handoff", "n"], &["nvidia"]),
    (
        &["check", "--skip", "iommu-"],
        &["iommu-firmware", "iommu-groups", "iommu-off", "iommu-argument"],
    ),
    (&["prepare", "--re"], &["--revert"]),
    // A word of bash's ends at a colon, and what it replaces is the last one.
    (&["status", "--gpu", "0000", ":", "41", ":"], &["00.0"]),
    (&["status", "--gpu", "0000", ":", "0"], &["01:00.0"]),
];

#[test]
fn bash_completes_commands_switches_vms_containers_and_gpus() {
    let host = host();
    let file = on_host(host.path(), Shell::Bash);
    for (typed, expected) in TYPED {
        let words: Vec<String> = typed.iter().map(|word| format!("'{word}'")).collect();
        let script = format!(
            "source '{}'\n\
             COMP_WORDS=(gpu-handoff {}) COMP_CWORD={}\n\
             complete -p gpu-handoff | grep -q __gpu_handoff_whole || exit 1\n\
             compopt() {{ :; }}\n\
             __gpu_handoff_whole gpu-handoff \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"\n\
             [ ${{#COMPREPLY[@]}} -eq 0 ] || printf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
            file.display(),
            words.join(" "),
            typed.len()
        );
        let said = run(Process::new("bash").args(["--norc", "-c", &script])).expect("bash is on every Debian");
        assert_eq!(said.lines().collect::<Vec<_>>(), expected, "{typed:?}");
    }
}

#[test]
fn fish_completes_the_same() {
    let host = host();
    let file = on_host(host.path(), Shell::Fish);
    for (typed, expected) in TYPED.iter().filter(|(typed, _)| !typed.contains(&":")) {
        let script = format!(
            "source '{}'; complete -C 'gpu-handoff {}'",
            file.display(),
            typed.join(" ")
        );
        let home = host.path().display().to_string();
        let mut fish = Process::new("fish");
        let Ok(output) = fish.args(["--no-config", "-c", &script]).env("HOME", home).output() else {
            println!("fish is not installed: its completions were not run");
            return;
        };
        let said = String::from_utf8(output.stdout).unwrap();
        let mut said: Vec<&str> = said.lines().map(|line| line.split('\t').next().unwrap()).collect();
        let mut expected = expected.to_vec();
        said.sort_unstable();
        expected.sort_unstable();
        assert_eq!(said, expected, "{typed:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Its own machinery asks for a terminal, so that only the lists are run.
#[test]
fn zsh_takes_its_file_and_lists_the_same() {
    let host = host();
    let file = on_host(host.path(), Shell::Zsh);
    if run(Process::new("zsh").args(["-f", "-n"]).arg(&file)).is_none() {
        println!("zsh is not installed: its completions were not run");
        return;
    }
    for (list, expected) in [
        ("vms", ["111", "1200"].as_slice()),
        ("containers", &["104"]),
        ("gpus", &["0000:01:00.0", "0000:41:00.0"]),
    ] {
        let script = format!(
            "compdef() {{ }}; compadd() {{ print -rl -- ${{(P)2}} }}; source '{}'; _gpu_handoff_{list}",
            file.display()
        );
        let said = run(Process::new("zsh").args(["-f", "-c", &script])).unwrap();
        assert_eq!(said.lines().collect::<Vec<_>>(), expected, "{list}");
        let text = fs::read_to_string(&file).unwrap();
        assert!(
            text.matches(&format!(":_gpu_handoff_{list}")).count() >= 1,
            "{list} is offered nowhere"
        );
    }
}
