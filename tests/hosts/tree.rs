//! From the text of a host to a tree of files. The form is described in tests/hosts/README.md.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use gpu_handoff::base::pci::PciAddr;

/// What a name in the tree is.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Dir,
    File(Vec<u8>),
    Link(String),
}

/// The entries by their absolute path, each with the line it stands in.
type Entries = BTreeMap<String, (usize, Entry)>;

/// Makes the tree below `root`, a directory.
///
/// # Errors
/// A sentence with the line of the text.
pub fn build(text: &str, root: &Path) -> Result<(), String> {
    let mut entries = parse(text)?;
    add_what_the_kernel_adds(&mut entries)?;
    for (path, (line, entry)) in &entries {
        make(root, path, entry).map_err(|e| format!("line {line}: {path}: {e}"))?;
    }
    for (path, (line, entry)) in &entries {
        if let Entry::Link(target) = entry
            && !below(root, path).exists()
        {
            return Err(format!("line {line}: {path} leads nowhere: {target}"));
        }
    }
    Ok(())
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn make(root: &Path, path: &str, entry: &Entry) -> std::io::Result<()> {
    let full = below(root, path);
    if let Some(parent) = full.parent() {
        fs::create_dir_all(parent)?;
    }
    match entry {
        Entry::Dir => fs::create_dir_all(full),
        Entry::File(text) => fs::write(full, text),
        Entry::Link(target) => symlink(relative(path, target), full),
    }
}

/// An absolute target, from the place of the link: sysfs has relative links only, and the tree lies anywhere.
fn relative(path: &str, target: &str) -> String {
    match target.strip_prefix('/') {
        Some(target) => "../".repeat(path.matches('/').count() - 1) + target,
        None => target.to_owned(),
    }
}

fn parse(text: &str) -> Result<Entries, String> {
    let mut entries = Entries::new();
    let mut folder: Option<&str> = None;
    let mut lines = text.lines().zip(1..).peekable();
    while let Some((line, n)) = lines.next() {
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            if !name.starts_with('/') {
                return Err(format!("line {n}: the folder {name} has no absolute path"));
            }
            // A folder may have several sections.
            entries.entry(name.to_owned()).or_insert((n, Entry::Dir));
            folder = Some(name);
            continue;
        }
        let Some(folder) = folder else {
            return Err(format!("line {n}: no [folder] before it"));
        };
        let (name, entry) = if let Some(name) = line.strip_prefix("dir ") {
            (name, Entry::Dir)
        } else if let Some(name) = line.strip_suffix(':') {
            let mut block = String::new();
            let mut blank = 0;
            while let Some((inner, _)) = lines.next_if(|(l, _)| l.trim().is_empty() || l.starts_with(' ')) {
                if inner.trim().is_empty() {
                    blank += 1;
                } else {
                    // Empty lines belong to the file if another line of it follows.
                    block.push_str(&"\n".repeat(std::mem::take(&mut blank)));
                    block.push_str(inner.strip_prefix("    ").unwrap_or(inner.trim_start()));
                    block.push('\n');
                }
            }
            (name, Entry::File(block.into_bytes()))
        } else {
            one_line(line).ok_or_else(|| format!("line {n}: neither 'name = text', 'name -> target' nor 'name:'"))?
        };
        let path = path_of(folder, name);
        if entries.insert(path.clone(), (n, entry)).is_some() {
            return Err(format!("line {n}: {path} is there already"));
        }
    }
    Ok(entries)
}

/// `name = text` or `name -> target`, whichever sign comes first.
fn one_line(line: &str) -> Option<(&str, Entry)> {
    let (link, file) = (line.find(" -> "), line.find(" ="));
    let at = link.into_iter().chain(file).min()?;
    let name = &line[..at];
    if Some(at) == link {
        return Some((name, Entry::Link(line[at + 4..].trim().to_owned())));
    }
    Some((name, Entry::File(bytes(line[at + 2..].trim()))))
}

/// A line, ended as the kernel ends it. What is no text is written as `\xHH` throughout, and is not ended.
fn bytes(text: &str) -> Vec<u8> {
    let mut pieces = text.split("\\x");
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    let is_text = !text.starts_with("\\x");
    for piece in pieces {
        let (number, rest) = piece.split_at_checked(2).unwrap_or((piece, ""));
        match u8::from_str_radix(number, 16) {
            Ok(byte) => bytes.push(byte),
            Err(_) => bytes.extend(format!("\\x{number}").as_bytes()),
        }
        bytes.extend(rest.as_bytes());
    }
    if is_text {
        bytes.push(b'\n');
    }
    bytes
}

/// A program's words are a file name, so that no `/` may be in it.
fn path_of(folder: &str, name: &str) -> String {
    if folder.starts_with("/programs") {
        format!("{folder}/{}", name.replace('/', "!"))
    } else {
        format!("{folder}/{name}")
    }
}

/// What follows from the rest on every kernel, and would only be one more thing to mistype: the link of a PCI function
/// on its bus, of a driver and of an IOMMU group to their devices, the folder of a loaded module.
fn add_what_the_kernel_adds(entries: &mut Entries) -> Result<(), String> {
    let mut more: Vec<(String, usize, Entry)> = Vec::new();
    for (path, (line, entry)) in &*entries {
        let (folder, name) = path.rsplit_once('/').unwrap_or_default();
        match entry {
            Entry::Dir if path.starts_with("/sys/devices/") && name.parse::<PciAddr>().is_ok() => {
                let link = format!("/sys/bus/pci/devices/{name}");
                more.push((link, *line, Entry::Link(path.clone())));
            }
            Entry::Link(target) if name == "driver" || name == "iommu_group" => {
                let device = folder.rsplit('/').next().unwrap_or_default();
                let back = match name {
                    "driver" => format!("{target}/{device}"),
                    _ => format!("{target}/devices/{device}"),
                };
                more.push((back, *line, Entry::Link(folder.to_owned())));
            }
            Entry::File(text) if path == "/proc/modules" => {
                let text = String::from_utf8_lossy(text);
                let names = text.lines().filter_map(|l| l.split(' ').next());
                more.extend(names.map(|name| (format!("/sys/module/{name}"), *line, Entry::Dir)));
            }
            _ => {}
        }
    }
    for (path, line, entry) in more {
        let is_dir = entry == Entry::Dir;
        if entries.insert(path.clone(), (line, entry)).is_some() && !is_dir {
            return Err(format!("line {line}: {path} is there already"));
        }
    }
    Ok(())
}
