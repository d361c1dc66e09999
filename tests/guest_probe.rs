//! The probe for a Linux guest (contrib/guest-probe/probe.sh), run on guests that are trees of files. The one for Windows is
//! PowerShell's, which is not run here.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// A function below /sys/bus/pci/devices: its ids, its driver, the first bytes of its config space.
fn function(sys: &Path, addr: &str, ids: [&str; 2], driver: Option<&str>, config: &[u8]) {
    let dir = sys.join("bus/pci/devices").join(addr);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("vendor"), format!("{}\n", ids[0])).unwrap();
    fs::write(dir.join("class"), format!("{}\n", ids[1])).unwrap();
    fs::write(dir.join("config"), config).unwrap();
    fs::write(
        dir.join("resource"),
        "0x0000000080000000 0x0000000080ffffff 0x0000000000040200\n0x0000000800000000 0x000000080fffffff 0x000000000014220c\n",
    )
    .unwrap();
    if let Some(driver) = driver {
        let of = sys.join("bus/pci/drivers").join(driver);
        fs::create_dir_all(&of).unwrap();
        symlink(of, dir.join("driver")).unwrap();
    }
}

/// What it says of a guest, without what is this machine's: programs, nodes and the kernel's log.
fn probe(guest: &Path) -> (String, bool) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/guest-probe/probe.sh");
    let mut command = Command::new("/bin/sh");
    command
        .arg(script)
        .env("SYS", guest.join("sys"))
        .env("PROC", guest.join("proc"));
    // Of PATH only what it needs to read files: no nvidia-smi, no dmesg.
    let bin = guest.join("bin");
    fs::create_dir_all(&bin).unwrap();
    for tool in [
        "cat", "basename", "readlink", "od", "tr", "sort", "tail", "head", "grep",
    ] {
        symlink(Path::new("/usr/bin").join(tool), bin.join(tool)).unwrap();
    }
    let output = command.env("PATH", &bin).output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    let said = String::from_utf8(output.stdout).unwrap();
    let ours: Vec<&str> = said.lines().take_while(|line| !line.contains("nvidia-smi")).collect();
    (ours.join("\n"), output.status.success())
}

#[test]
fn a_guest_is_told_what_it_has_and_what_is_wrong() {
    let (gpu, sound, alive) = (["0x10de", "0x030000"], ["0x10de", "0x040300"], [0xde, 0x10, 0x04, 0x22]);
    for (driver, config, with_sound, version, expected, well) in [
        (
            Some("nvidia"),
            alive,
            true,
            Some("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05"),
            "ok:    0000:01:00.0 is on nvidia\n\
             ok:    0000:01:00.0: its largest region has 256 MiB (256: Resizable BAR is not used)\n\
             ok:    NVIDIA's open modules: NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05",
            true,
        ),
        (
            None,
            alive,
            false,
            None,
            "wrong: 0000:01:00.0 is on no driver: is NVIDIA's installed for this kernel? dmesg | grep NVRM\n\
             ok:    0000:01:00.0: its largest region has 256 MiB (256: Resizable BAR is not used)\n\
             note:  0000:01:00.0 has no function 1: no sound at its port; give the VM the whole card",
            false,
        ),
        (
            Some("nouveau"),
            [0xff; 4],
            true,
            None,
            "note:  0000:01:00.0 is on nouveau: CUDA needs NVIDIA's driver\n\
             wrong: 0000:01:00.0 reads all ones: it does not answer; see the host's kernel log\n\
             ok:    0000:01:00.0: its largest region has 256 MiB (256: Resizable BAR is not used)",
            false,
        ),
    ] {
        let guest = tempfile::tempdir().unwrap();
        let sys = guest.path().join("sys");
        function(&sys, "0000:01:00.0", gpu, driver, &config);
        function(&sys, "0000:00:02.0", ["0x1234", "0x030000"], Some("bochs-drm"), &alive);
        if with_sound {
            function(&sys, "0000:01:00.1", sound, Some("snd_hda_intel"), &alive);
        }
        if let Some(version) = version {
            fs::create_dir_all(guest.path().join("proc/driver/nvidia")).unwrap();
            fs::write(guest.path().join("proc/driver/nvidia/version"), version).unwrap();
        }
        assert_eq!(probe(guest.path()), (expected.to_owned(), well), "{driver:?}");
    }
    let none = tempfile::tempdir().unwrap();
    fs::create_dir_all(none.path().join("sys/bus/pci/devices")).unwrap();
    let said = "wrong: no NVIDIA GPU is on this guest's bus: see 'qm config' on the host";
    assert_eq!(probe(none.path()), (said.to_owned(), false));
}
