//! The host's own nodes of NVIDIA's devices, made for who is about to be given them.
//!
//! NVIDIA's driver makes none itself: udev's rules do where a distribution has them, or nvidia-modprobe does for the first program
//! that needs one (nvidia-modprobe(1)). A container is not that program.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use crate::base::root::Root;
use crate::base::text::join;
use crate::execute::health::make_node;
use crate::host::nvidia::character_majors;
use crate::host::nvidia::{self, CAPS, NvidiaDriver, UVM};

/// Makes them as far as the driver has what they are of; which of them cannot be had. `load`: it may be loaded for that, nvidia_uvm
/// included.
pub(crate) fn make(root: &Root, paths: &[String], load: bool) -> Vec<String> {
    let mut driver = nvidia::read(root).ok().flatten();
    if driver.is_none() && load {
        let _ = root.program(&["modprobe", "--", "nvidia"]);
        driver = nvidia::read(root).ok().flatten();
    }
    let is_there = |path: &&String| {
        driver
            .as_ref()
            .is_some_and(|driver| can_be_had(root, driver, path, load))
    };
    paths.iter().filter(|path| !is_there(path)).cloned().collect()
}

/// Makes the host's nodes of nvidia-uvm anew that have the number of an earlier load, which nobody takes away with the module: who
/// is started now, a container that is given them above all, would be given another device, or none. What is said where that
/// cannot be done.
pub(crate) fn correct(root: &Root) -> Option<String> {
    let devices = root.text("/proc/devices").unwrap_or_default();
    let (major, _) = character_majors(&devices).find(|(_, name)| *name == UVM)?;
    let paths = ["/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"].map(str::to_owned);
    let is_stale = |path: &&String| is_node(root, path) && !has_major(root, path, major);
    let stale: Vec<String> = paths.iter().filter(is_stale).cloned().collect();
    if stale.is_empty() {
        return None;
    }
    let missing = make(root, &stale, false);
    (!missing.is_empty()).then(|| {
        format!(
            "{} {} not the driver's number, {major}: 'nvidia-modprobe -u -c 0' makes it anew",
            join(&missing),
            if missing.len() == 1 { "has" } else { "have" }
        )
    })
}

fn can_be_had(root: &Root, driver: &NvidiaDriver, path: &str, load: bool) -> bool {
    let Some(name) = path.strip_prefix("/dev/nvidia") else {
        return root.exists(path);
    };
    let by_tool = |words: &[&str]| {
        if !is_node(root, path) && root.exists("/usr/bin/nvidia-modprobe") {
            let _ = root.program(words);
        }
        is_node(root, path)
    };
    match name.parse::<u32>() {
        // A node may be left of a GPU that is away.
        Ok(minor) => driver.gpus.iter().any(|gpu| gpu.minor == Some(minor)) && make_node(root, minor).is_none(),
        Err(_) if name == "ctl" => by_tool(&["nvidia-modprobe", "-c", "255"]),
        Err(_) if name == "-modeset" => by_tool(&["nvidia-modprobe", "-m"]),
        Err(_) if name.starts_with("-uvm") => {
            // Where somebody else is at work, that may be about to unload nvidia, which this one would hold.
            if load && !root.exists("/sys/module/nvidia_uvm") {
                let _ = root.program(&["modprobe", "--", "nvidia_uvm"]);
            }
            // With another number than the driver's it is another device's, or nobody's.
            let devices = root.text("/proc/devices").unwrap_or_default();
            let mut majors = character_majors(&devices);
            let Some((major, _)) = majors.find(|(_, name)| *name == "nvidia-uvm") else {
                return false;
            };
            if !has_major(root, path, major) && root.exists("/usr/bin/nvidia-modprobe") {
                let _ = root.program(&["nvidia-modprobe", "-u", "-c", "0"]);
            }
            has_major(root, path, major)
        }
        // Of the capabilities the host may have those of an earlier load.
        Err(_) if name.starts_with("-caps/") => {
            let devices = root.text("/proc/devices").unwrap_or_default();
            let major = character_majors(&devices).find(|(_, name)| *name == CAPS);
            major.is_some_and(|(major, _)| has_major(root, path, major))
        }
        // A folder of them, too.
        Err(_) => root.exists(path),
    }
}

fn has_major(root: &Root, path: &str, major: u64) -> bool {
    let found = std::fs::metadata(root.path(path));
    found.is_ok_and(|found| found.file_type().is_char_device() && nix::sys::stat::major(found.rdev()) == major)
}

fn is_node(root: &Root, path: &str) -> bool {
    let found = std::fs::metadata(root.path(path));
    found.is_ok_and(|found| found.file_type().is_char_device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_the_driver_does_not_list_has_no_node_whatever_lies_there() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let root = Root::at(dir.path());
        let asked = ["/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl", "/dev/dri/card0"].map(str::to_owned);
        assert_eq!(make(&root, &asked, true), asked);
        put(
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05\n",
        );
        put(
            "proc/driver/nvidia/gpus/0000:01:00.0/information",
            "Device Minor: 	 0\n",
        );
        put("dev/dri/card0", "");
        std::os::unix::fs::symlink("/dev/null", dir.path().join("dev/nvidiactl")).unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("dev/nvidia1")).unwrap();
        // The first is listed, and /dev/null's number is not its.
        assert_eq!(make(&root, &asked, true), ["/dev/nvidia0", "/dev/nvidia1"]);
        // A folder is there or not; a node that has another number than the driver's is not.
        put("dev/nvidia-caps/nvidia-cap1", "");
        std::os::unix::fs::symlink("/dev/null", dir.path().join("dev/nvidia-caps/nvidia-cap2")).unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("dev/nvidia-uvm")).unwrap();
        std::fs::create_dir_all(dir.path().join("sys/module/nvidia_uvm")).unwrap();
        let asked = ["/dev/nvidia-caps", "/dev/nvidia-uvm"].map(str::to_owned);
        for (major, missing) in [(509, &asked[1..]), (1, &asked[2..])] {
            put("proc/devices", &format!("Character devices:\n{major} nvidia-uvm\n"));
            assert_eq!(make(&root, &asked, false), missing, "{major}");
        }
        // Loaded for its node it is only by who may load the driver.
        std::fs::remove_dir(dir.path().join("sys/module/nvidia_uvm")).unwrap();
        put("proc/devices", "Character devices:\n195 nvidia\n");
        put("programs/modprobe -- nvidia_uvm", "");
        for load in [false, true] {
            let recording = root.clone().recording();
            assert_eq!(make(&recording, &asked[1..], load), asked[1..], "{load}");
            let looked_at = recording.recorded();
            let is_loaded = looked_at.keys().any(|path| path.ends_with("modprobe -- nvidia_uvm"));
            assert_eq!(is_loaded, load);
        }
        // What lies there with another number is said where it cannot be made anew; what does not lie there is nobody's.
        put("proc/devices", "Character devices:\n509 nvidia-uvm\n");
        let said = correct(&root).unwrap();
        assert_eq!(
            said,
            "/dev/nvidia-uvm has not the driver's number, 509: 'nvidia-modprobe -u -c 0' makes it anew"
        );
        put("proc/devices", "Character devices:\n1 nvidia-uvm\n");
        assert_eq!(correct(&root), None);
        let asked = ["/dev/nvidia-caps/nvidia-cap2".to_owned()];
        for (major, missing) in [(238, &asked[..]), (1, &[])] {
            put("proc/devices", &format!("Character devices:\n{major} nvidia-caps\n"));
            assert_eq!(make(&root, &asked, false), missing, "{major}");
        }
    }
}
