//! The program itself on a host that is a tree of files: in a mount namespace of its own, in which the tree lies over the
//! machine's folders. Nothing of it reaches the machine. Processes are the machine's own.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Folders of the tree that take the place of the machine's.
const FOLDERS: &str = "sys run var/lib usr/share/misc proc/driver etc";

/// Files that do, where the machine has them: of procfs, and a program that the tree has another one of.
const FILES: &str = "proc/modules proc/cmdline usr/bin/systemctl";

/// What the shell ends with where there can be no such namespace.
pub const CANNOT: i32 = 77;

/// A run of the program with these arguments on the host below `tree`. Its exit status is [`CANNOT`] where the machine lets
/// us have no namespace: nothing is shown there.
pub fn command(binary: &str, tree: &Path, args: &[&str]) -> Command {
    for folder in FOLDERS.split(' ') {
        fs::create_dir_all(tree.join(folder)).expect("the tree is ours");
    }
    let script = format!(
        "tree=$1 binary=$2; shift 2
        for d in {FOLDERS}; do mount --bind \"$tree/$d\" \"/$d\" || exit {CANNOT}; done
        for f in {FILES}; do [ ! -e \"$tree/$f\" ] || [ ! -e \"/$f\" ] || mount --bind \"$tree/$f\" \"/$f\" || exit {CANNOT}; done
        exec \"$binary\" \"$@\""
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script, "sh"]);
    command.arg(tree).arg(binary).args(args);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Whether such a run could not be made.
pub fn could_not(output: &std::process::Output) -> bool {
    let text = String::from_utf8_lossy(&output.stderr);
    output.status.code() == Some(CANNOT) || text.contains("unshare failed")
}
