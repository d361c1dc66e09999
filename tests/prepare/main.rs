//! `prepare` on hosts that are trees of files: what it shows, does and takes back, and that no kill, failure or edit in
//! between leaves anything behind.

#![allow(clippy::unwrap_used)] // a test that cannot set itself up should stop there
#![allow(clippy::print_stdout)] // what was counted is a result

mod hosts;
mod world;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gpu_handoff::base::root::Root;
use gpu_handoff::model::error::{Error, Exit};
use gpu_handoff::output::prepare::{applying, text};
use gpu_handoff::prepare::apply::{Done, add_due};
use gpu_handoff::prepare::changes::changes;
use gpu_handoff::prepare::effects::Effects;
use gpu_handoff::prepare::facts::Facts;
use gpu_handoff::prepare::journal::{DIR, Journal};
use gpu_handoff::prepare::revert::{judge, said, shown};
use gpu_handoff::prepare::wanted::wanted;

use crate::hosts::{ALL, Fixture, GRUB_AMD, GRUB_INTEL, SYSTEMD_BOOT_AMD, SYSTEMD_BOOT_INTEL, tree, write};
use crate::world::{Fault, Ran, World, apply_once, killed_or, needed, revert_once};

const NOTHING: Done = Done {
    changed: false,
    reboot: false,
};

/// What would be shown on a host.
fn screen(root: &Root) -> String {
    let world = World::at(root, &Ran::default(), None);
    let facts = Facts::read(root);
    let wanted = wanted(&facts);
    match changes(&world, &facts, &wanted) {
        Err(why) => format!("refused: {why}\n"),
        Ok(changes) => {
            let journal = Journal::read(root).unwrap();
            let mut due = journal.due.clone();
            for change in &changes {
                add_due(&mut due, &change.entry.commands);
            }
            text(&applying(&changes, &due, &wanted.notes, &journal, "this boot"))
        }
    }
}

#[test]
fn what_would_be_done_is_shown_as_it_was_when_it_was_read() {
    for fixture in ALL {
        let (_dir, root) = fixture.make(&[]);
        let shown = screen(&root);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/prepare/{}.txt", fixture.name));
        if std::env::var_os("UPDATE_HOSTS").is_some() {
            fs::write(&path, &shown).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(shown, expected, "{}: UPDATE_HOSTS=1 writes it anew", fixture.name);
    }
}

#[test]
fn what_is_applied_is_taken_back_to_the_byte_and_both_are_the_same_twice() {
    for fixture in ALL {
        let (dir, root) = fixture.make(&[]);
        let (before, ran) = (tree(dir.path()), Ran::default());
        let world = || World::at(&root, &ran, None);
        let first = apply_once(&mut world()).unwrap();
        let after = tree(dir.path());
        assert_eq!(first.changed, before != after, "{}", fixture.name);
        let (journal, count) = (Journal::read(&root).unwrap(), ran.borrow().len());
        assert_eq!(apply_once(&mut world()).unwrap(), NOTHING, "{}", fixture.name);
        assert_eq!(
            (tree(dir.path()), ran.borrow().len()),
            (after, count),
            "{}",
            fixture.name
        );
        assert_eq!(Journal::read(&root).unwrap(), journal);
        assert!(needed(&world()).unwrap().is_empty());
        assert_eq!(revert_once(&mut world()).unwrap().changed, first.changed);
        assert_eq!(tree(dir.path()), before, "{}", fixture.name);
        assert!(!root.exists(DIR), "{}", fixture.name);
        let count = ran.borrow().len();
        assert_eq!(revert_once(&mut world()).unwrap(), NOTHING);
        assert_eq!((tree(dir.path()), ran.borrow().len()), (before, count));
    }
}

#[test]
fn the_commands_are_those_of_the_loader_and_see_the_files_as_they_are_in_the_end() {
    for (fixture, commands) in [
        (&GRUB_INTEL, &["update-initramfs -u -k all", "update-grub"][..]),
        (
            &SYSTEMD_BOOT_INTEL,
            &["update-initramfs -u -k all", "proxmox-boot-tool refresh"],
        ),
        (&GRUB_AMD, &["update-initramfs -u -k all", "proxmox-boot-tool refresh"]),
        (&SYSTEMD_BOOT_AMD, &[]),
    ] {
        let (dir, root) = fixture.make(&[]);
        let ran = Ran::default();
        apply_once(&mut World::at(&root, &ran, None)).unwrap();
        let words: Vec<String> = ran.borrow().iter().map(|(words, _)| words.clone()).collect();
        assert_eq!(words, commands, "{}", fixture.name);
        assert!(ran.borrow().iter().all(|(_, seen)| *seen == tree(dir.path())));
        ran.borrow_mut().clear();
        revert_once(&mut World::at(&root, &ran, None)).unwrap();
        let words: Vec<String> = ran.borrow().iter().map(|(words, _)| words.clone()).collect();
        assert_eq!(words, commands, "{}", fixture.name);
        assert!(ran.borrow().iter().all(|(_, seen)| *seen == tree(dir.path())));
    }
}

#[test]
fn the_hosts_driver_is_never_kept_out_and_rights_and_links_stay() {
    for fixture in ALL {
        let (dir, root) = fixture.make(&[]);
        let before = tree(dir.path());
        let world = World::at(&root, &Ran::default(), None);
        for change in needed(&world).unwrap() {
            let diff = change.diff();
            let added = diff
                .lines()
                .filter(|l| l.starts_with('+') && !l.starts_with("+# gpu-handoff: "));
            let bad: Vec<&str> = added
                .filter(|l| l.contains("blacklist") && l.contains("nvidia"))
                .collect();
            assert!(bad.is_empty(), "{bad:?}");
        }
        apply_once(&mut World::at(&root, &Ran::default(), None)).unwrap();
        for (path, was) in &before {
            let now = &tree(dir.path())[path];
            let rights = |text: &str| text.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" ");
            assert_eq!(rights(was), rights(now), "{path}");
        }
    }
}

/// A run of `prepare`.
type Run = fn(&mut World) -> Result<Done, Error>;

/// Kills a run at each of its effects; `first` is that run, `then` are those that follow.
fn campaign(
    fixture: &Fixture,
    prepare: bool,
    first: Run,
    then: &[Run],
    faults: &[Fault],
    end: &dyn Fn(&Path, &Root, &Ran, &str),
) -> usize {
    let mut points = 0;
    for fault in faults {
        for at in 1.. {
            let (dir, root) = fixture.make(&[]);
            let ran = Ran::default();
            if prepare {
                apply_once(&mut World::at(&root, &ran, None)).unwrap();
            }
            let ended = killed_or(|| first(&mut World::at(&root, &ran, Some((at, *fault)))));
            let case = format!("{} {fault:?} at {at}", fixture.name);
            let is_over = match (&ended, fault) {
                (Some(Ok(_)), Fault::Fails) => true,
                (Some(Err(e)), Fault::Fails) => {
                    let exit = e.exit();
                    assert!(matches!(exit, Exit::Failed | Exit::NotRestored), "{case}: {e}");
                    false
                }
                (Some(result), _) => {
                    assert!(result.is_ok(), "{case}: {result:?}");
                    true
                }
                (None, _) => false,
            };
            if is_over {
                break;
            }
            points += 1;
            for run in then {
                let result = run(&mut World::at(&root, &ran, None));
                assert!(result.is_ok(), "{case}: {result:?}");
            }
            end(dir.path(), &root, &ran, &case);
        }
    }
    points
}

const KILLS: [Fault; 4] = [Fault::Before, Fault::Within, Fault::After, Fault::Fails];

#[test]
fn killed_or_failed_anywhere_the_next_run_goes_on_or_takes_back_and_nothing_is_left() {
    quiet();
    let mut points = 0;
    for fixture in [&GRUB_INTEL, &SYSTEMD_BOOT_INTEL, &GRUB_AMD] {
        let (dir, root) = fixture.make(&[]);
        let before = tree(dir.path());
        apply_once(&mut World::at(&root, &Ran::default(), None)).unwrap();
        let after = tree(dir.path());
        let as_before = |dir: &Path, root: &Root, ran: &Ran, case: &str| {
            assert_eq!(tree(dir), before, "{case}");
            assert!(!root.exists(DIR), "{case}: {:?}", root.names(DIR));
            last_runs_saw(ran, &before, case);
        };
        let as_after = |dir: &Path, root: &Root, ran: &Ran, case: &str| {
            assert_eq!(tree(dir), after, "{case}");
            let journal = Journal::read(root).unwrap();
            assert_eq!((journal.doing, journal.due.len()), (None, 0), "{case}");
            last_runs_saw(ran, &after, case);
        };
        points += campaign(fixture, false, apply_once, &[apply_once], &KILLS, &as_after);
        points += campaign(
            fixture,
            false,
            apply_once,
            &[apply_once, revert_once],
            &KILLS,
            &as_before,
        );
        points += campaign(fixture, false, apply_once, &[revert_once], &KILLS, &as_before);
        points += campaign(fixture, true, revert_once, &[revert_once], &KILLS, &as_before);
        points += campaign(fixture, true, revert_once, &[apply_once], &KILLS, &as_after);
        points += campaign(
            fixture,
            true,
            revert_once,
            &[apply_once, revert_once],
            &KILLS,
            &as_before,
        );
    }
    println!("killed or failed at {points} points");
    assert!(points > 500, "{points}");
}

/// Each program that ran has seen, the last time, what is there now: of what it reads.
fn last_runs_saw(ran: &Ran, now: &BTreeMap<String, String>, case: &str) {
    let ran = ran.borrow();
    for program in ["update-initramfs", "update-grub", "proxmox-boot-tool"] {
        if let Some((words, seen)) = ran.iter().rfind(|(words, _)| words.starts_with(program)) {
            let read = |files: &BTreeMap<String, String>| -> BTreeMap<String, String> {
                let files = files.clone().into_iter();
                let of_loader = |file: &str| file.contains("/default/grub") || file.ends_with("/kernel/cmdline");
                let of_initramfs = |file: &str| !of_loader(file) && !file.contains("/modules-load.d/");
                files
                    .filter(|(file, _)| match program {
                        "update-initramfs" => of_initramfs(file),
                        _ => of_loader(file),
                    })
                    .collect()
            };
            assert_eq!(read(seen), read(now), "{case}: {words}");
        }
    }
}

/// Keeps what a kill of the test says off the screen.
fn quiet() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let payload = info.payload();
            if payload.is::<&str>() || payload.is::<String>() {
                before(info);
            }
        }));
    });
}

#[test]
fn a_file_that_cannot_be_written_leaves_the_host_as_it_was() {
    let (dir, root) = GRUB_INTEL.make(&[]);
    let before = tree(dir.path());
    // Copies and journal come first.
    let changes = needed(&World::at(&root, &Ran::default(), None)).unwrap().len();
    let copies = 2 * changes - 2; // two files are new, and have no copy of before
    let ran = Ran::default();
    let error = apply_once(&mut World::at(&root, &ran, Some((copies + 3, Fault::Fails)))).unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.exit()),
        (
            "/etc/modprobe.d/nvidia-off.conf could not be changed: No space left on device (os error 28); the host is as \
             it was before",
            Exit::Failed
        )
    );
    assert_eq!((tree(dir.path()), ran.borrow().len()), (before, 0));
    assert!(!root.exists(DIR));
}

#[test]
fn a_command_that_fails_or_is_missing_is_said_and_all_can_be_taken_back() {
    let (dir, root) = GRUB_INTEL.make(&[]);
    let before = tree(dir.path());
    let ran = Ran::default();
    let mut world = World::at(&root, &ran, None);
    world.missing = vec!["update-grub"];
    let error = apply_once(&mut world).unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.exit()),
        (
            "'update-grub' is not on this host, and what is changed would not count without it. Hint: the package \
             grub2-common has it",
            Exit::Refused
        )
    );
    assert_eq!(tree(dir.path()), before);
    world.missing.clear();
    world.failing = Some("update-grub");
    let error = apply_once(&mut world).unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.exit()),
        (
            "'update-grub' failed (exit status: 1); not restored: the files are changed, and 'update-grub' is still to be \
             run. Hint: see its output above and what it is missing, then run 'gpu-handoff prepare --apply' once more; \
             '--revert' takes back what was changed",
            Exit::NotRestored
        )
    );
    assert!(
        screen(&root).contains("Then it would run:\n    update-grub\n"),
        "{}",
        screen(&root)
    );
    let error = revert_once(&mut world).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("run 'gpu-handoff prepare --revert' once more"),
        "{error}"
    );
    assert_eq!(tree(dir.path()), before, "the files are back all the same");
    world.failing = None;
    revert_once(&mut world).unwrap();
    assert_eq!(tree(dir.path()), before);
    assert!(!root.exists(DIR));
}

#[test]
fn what_the_administrator_has_edited_since_is_not_overwritten() {
    for (edits, left, exit) in [
        // Ours can be told from theirs.
        (
            &[(
                "etc/default/grub",
                "GRUB_TIMEOUT=1\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet intel_iommu=on iommu=pt\"\n",
            )][..],
            &[(
                "/etc/default/grub",
                "GRUB_TIMEOUT=1\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet iommu=pt\"\n",
            )][..],
            None,
        ),
        (
            &[(
                "etc/modprobe.d/nvidia-off.conf",
                "# gpu-handoff: install nvidia /bin/false\noptions nvidia a=1\n",
            )],
            &[(
                "/etc/modprobe.d/nvidia-off.conf",
                "install nvidia /bin/false\noptions nvidia a=1\n",
            )],
            None,
        ),
        // There is nothing of ours in it.
        (
            &[("etc/default/grub", "GRUB_CMDLINE_LINUX_DEFAULT=\"splash\"\n")],
            &[("/etc/default/grub", "GRUB_CMDLINE_LINUX_DEFAULT=\"splash\"\n")],
            None,
        ),
        // They cannot.
        (
            &[(
                "etc/default/grub",
                "GRUB_CMDLINE_LINUX_DEFAULT=\"intel_iommu=on\"\nGRUB_CMDLINE_LINUX=\"intel_iommu=on\"\n",
            )],
            &[(
                "/etc/default/grub",
                "GRUB_CMDLINE_LINUX_DEFAULT=\"intel_iommu=on\"\nGRUB_CMDLINE_LINUX=\"intel_iommu=on\"\n",
            )],
            Some((
                "not everything could be taken back; not restored: /etc/default/grub, as said above. Hint: take the change \
                 out of it by hand and run 'gpu-handoff prepare --revert' once more, or leave it and remove \
                 /var/lib/gpu-handoff/prepared, which has the file as it was",
                Exit::NotRestored,
            )),
        ),
    ] {
        let (dir, root) = GRUB_INTEL.make(&[]);
        let before = tree(dir.path());
        apply_once(&mut World::at(&root, &Ran::default(), None)).unwrap();
        for (path, text) in edits {
            write(dir.path(), path, text);
        }
        let result = revert_once(&mut World::at(&root, &Ran::default(), None));
        let error = result.err().map(|e| (e.to_string(), e.exit()));
        let expected = exit.map(|(text, exit)| (text.to_owned(), exit));
        assert_eq!(error, expected, "{edits:?}");
        let now = tree(dir.path());
        for (path, was) in &before {
            match left.iter().find(|(p, _)| p == path) {
                Some((_, text)) => assert_eq!(fs::read_to_string(root.path(path)).unwrap(), *text, "{path}"),
                None => assert_eq!(now.get(path), Some(was), "{path}"),
            }
        }
        assert_eq!(now.len(), before.len(), "{edits:?}");
        if exit.is_some() {
            // By hand, as was said; then nothing is left of it.
            let text = "GRUB_CMDLINE_LINUX_DEFAULT=\"\"\n";
            write(dir.path(), "etc/default/grub", text);
            revert_once(&mut World::at(&root, &Ran::default(), None)).unwrap();
            assert_eq!(fs::read_to_string(root.path("/etc/default/grub")).unwrap(), text);
        }
        assert!(!root.exists(DIR), "{edits:?}");
    }
}

#[test]
fn a_file_that_was_removed_since_stays_so_and_one_put_back_by_hand_is_theirs() {
    let (dir, root) = GRUB_INTEL.make(&[]);
    let before = tree(dir.path());
    apply_once(&mut World::at(&root, &Ran::default(), None)).unwrap();
    fs::remove_file(root.path("/etc/modprobe.d/nvidia-off.conf")).unwrap();
    let theirs = "options vfio-pci ids=10de:2204,10de:1aef,8086:1533 disable_vga=1";
    fs::write(root.path("/etc/modprobe.d/vfio.conf"), theirs).unwrap();
    revert_once(&mut World::at(&root, &Ran::default(), None)).unwrap();
    let mut expected = before;
    expected.remove("/etc/modprobe.d/nvidia-off.conf");
    assert_eq!(tree(dir.path()), expected);
    assert!(!root.exists(DIR));
}

#[test]
fn what_was_put_back_by_hand_gets_the_programs_that_make_it_count() {
    let (dir, root) = GRUB_INTEL.make(&[]);
    let before = tree(dir.path());
    let as_it_was = fs::read_to_string(root.path("/etc/default/grub")).unwrap();
    apply_once(&mut World::at(&root, &Ran::default(), None)).unwrap();
    write(
        dir.path(),
        "etc/default/grub",
        "GRUB_CMDLINE_LINUX_DEFAULT=\"intel_iommu=on\"\nGRUB_CMDLINE_LINUX=\"intel_iommu=on\"\n",
    );
    revert_once(&mut World::at(&root, &Ran::default(), None)).unwrap_err();
    fs::write(root.path("/etc/default/grub"), as_it_was).unwrap();
    let ran = Ran::default();
    revert_once(&mut World::at(&root, &ran, None)).unwrap();
    let programs: Vec<String> = ran.borrow().iter().map(|(words, _)| words.clone()).collect();
    assert_eq!(programs, ["update-grub"]);
    assert_eq!(tree(dir.path()), before);
    assert!(!root.exists(DIR));
}

#[test]
fn a_copy_of_a_packages_file_that_was_added_to_does_not_stay_to_hide_the_packages() {
    let (dir, root) = GRUB_INTEL.make(&[("usr/lib/modprobe.d/off.conf", "blacklist nvidia\noptions snd a=1\n")]);
    let ours = "etc/modprobe.d/off.conf";
    apply_once(&mut World::at(&root, &Ran::default(), None)).unwrap();
    let text = fs::read_to_string(root.path(ours)).unwrap() + "options snd b=1\n";
    write(dir.path(), ours, &text);
    let error = revert_once(&mut World::at(&root, &Ran::default(), None)).unwrap_err();
    assert!(
        error.to_string().contains("not restored: /etc/modprobe.d/off.conf"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(root.path(ours)).unwrap(), text);
    fs::remove_file(root.path(ours)).unwrap();
    revert_once(&mut World::at(&root, &Ran::default(), None)).unwrap();
    assert!(!root.exists(DIR));
}

#[test]
fn what_would_be_taken_back_is_shown_and_what_would_not_is_said() {
    let (dir, root) = SYSTEMD_BOOT_INTEL.make(&[]);
    apply_once(&mut World::at(&root, &Ran::default(), None)).unwrap();
    write(
        dir.path(),
        "etc/kernel/cmdline",
        "root=ZFS=rpool/ROOT/pve-2 boot=zfs intel_iommu=on\n",
    );
    let world = World::at(&root, &Ran::default(), None);
    let journal = Journal::read(&root).unwrap();
    let all: Vec<(Option<String>, Option<String>)> = journal
        .entries
        .iter()
        .map(|e| (shown(&world, e), said(e, &judge(&world, e))))
        .collect();
    let s = |text: &str| Some(text.to_owned());
    assert_eq!(
        all,
        [
            (
                s(
                    "--- /etc/gpu/ids.conf\n+++ /etc/gpu/ids.conf\n@@ -1,2 +1,2 @@\n # by hand\n-# gpu-handoff: options \
                   vfio_pci ids=10de:2204\n+options vfio_pci ids=10de:2204\n"
                ),
                None
            ),
            (
                None,
                s(
                    "/etc/kernel/cmdline was edited since, and where this change is in it now cannot be told: it is not \
                   overwritten. What would be taken back:\n--- /etc/kernel/cmdline\n+++ /etc/kernel/cmdline\n@@ -1 +1 \
                   @@\n-root=ZFS=rpool/ROOT/pve-1 boot=zfs modprobe.blacklist=nouveau \
                   intel_iommu=on\n+root=ZFS=rpool/ROOT/pve-1 boot=zfs vfio-pci.ids=10de:2204,10de:1aef \
                   modprobe.blacklist=nouveau,nvidia\n"
                ),
            ),
            (
                s(
                    "--- /etc/modules-load.d/gpu-handoff.conf\n+++ /dev/null\n@@ -1,3 +0,0 @@\n-# Made by 'gpu-handoff \
                   prepare --apply'; '--revert' takes it away.\n-vfio\n-vfio_pci\n"
                ),
                None
            ),
        ]
    );
}

#[test]
fn a_boot_loader_that_is_not_understood_is_left_where_nothing_of_it_is_in_the_way() {
    let odd = ("etc/default/grub", "if true; then GRUB_CMDLINE_LINUX=x; fi\n");
    let (dir, root) = GRUB_INTEL.make(&[odd, ("sys/class/iommu/dmar0/intel-iommu/version", "1\n")]);
    let facts = Facts::read(&root);
    assert_eq!(
        wanted(&facts).notes,
        [
            "The boot loader's configuration is not understood, and is left as it is (/etc/default/grub:1: it is no plain \
             assignment)."
        ]
    );
    let ran = Ran::default();
    apply_once(&mut World::at(&root, &ran, None)).unwrap();
    let words: Vec<String> = ran.borrow().iter().map(|(words, _)| words.clone()).collect();
    assert_eq!(words, ["update-initramfs -u -k all"]);
    assert_eq!(fs::read_to_string(dir.path().join(odd.0)).unwrap(), odd.1);
}

#[test]
fn what_comes_back_later_is_changed_too_and_all_of_it_is_taken_back_in_layers() {
    let (dir, root) = GRUB_INTEL.make(&[]);
    apply_once(&mut World::at(&root, &Ran::default(), None)).unwrap();
    let file = "etc/modprobe.d/pve-blacklist.conf";
    let theirs = "blacklist nvidiafb\nblacklist nvidia\n";
    write(dir.path(), file, theirs);
    let path = root.path("/etc/modprobe.d/nvidia-off.conf");
    let more = fs::read_to_string(&path).unwrap() + "install nvidia /bin/true\n";
    fs::write(&path, &more).unwrap();
    let result = apply_once(&mut World::at(&root, &Ran::default(), None)).unwrap();
    assert!(result.changed);
    assert!(needed(&World::at(&root, &Ran::default(), None)).unwrap().is_empty());
    revert_once(&mut World::at(&root, &Ran::default(), None)).unwrap();
    assert_eq!(fs::read_to_string(root.path(format!("/{file}"))).unwrap(), theirs);
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "install nvidia /bin/false\nsoftdep nvidia pre: vfio-pci\ninstall nvidia /bin/true\n"
    );
    assert!(!root.exists(DIR));
}

#[test]
fn what_is_not_understood_is_refused_with_its_line_before_anything_is_touched() {
    for (fixture, more, said) in [
        (
            &GRUB_INTEL,
            (
                "etc/default/grub",
                "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet \\\n  splash\"\n",
            ),
            "/etc/default/grub:1: it goes on in the next line",
        ),
        (
            &GRUB_INTEL,
            ("etc/default/grub", "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\r\n"),
            "/etc/default/grub:1: it has a control character, as the line ends of Windows are",
        ),
        (
            &GRUB_INTEL,
            (
                "etc/default/grub.d/x.cfg",
                "if [ -e /x ]; then GRUB_CMDLINE_LINUX=x; fi\n",
            ),
            "/etc/default/grub.d/x.cfg:1: it is no plain assignment",
        ),
        (
            &GRUB_INTEL,
            ("etc/default/grub", "GRUB_CMDLINE_LINUX_DEFAULT=\"a\"'b'\n"),
            "/etc/default/grub:1: its quotes are set in a way in which 'intel_iommu=on' cannot be added",
        ),
        (
            &SYSTEMD_BOOT_INTEL,
            ("etc/kernel/cmdline", "root=a\nquiet\n"),
            "/etc/kernel/cmdline:2: all arguments are to be on one line",
        ),
        (
            &SYSTEMD_BOOT_INTEL,
            (
                "etc/kernel/cmdline",
                "x=\"y vfio-pci.ids=10de:2204 z\" vfio-pci.ids=10de:2204\n",
            ),
            "/etc/kernel/cmdline: what would be written there does not come to the command line that is meant",
        ),
    ] {
        let (dir, root) = fixture.make(&[more]);
        let before = tree(dir.path());
        let shown = needed(&World::at(&root, &Ran::default(), None));
        assert_eq!(shown.unwrap_err(), said);
        assert_eq!(tree(dir.path()), before);
    }
}

#[test]
fn an_argument_in_quotes_is_the_one_that_the_kernel_reads() {
    let text = "root=a x=\"y vfio-pci.ids=10de:2204\" \"vfio-pci.ids=10de:2204\"\n";
    let (_dir, root) = SYSTEMD_BOOT_INTEL.make(&[("etc/kernel/cmdline", text)]);
    apply_once(&mut World::at(&root, &Ran::default(), None)).unwrap();
    assert_eq!(
        root.text("/etc/kernel/cmdline").unwrap(),
        "root=a x=\"y vfio-pci.ids=10de:2204\" intel_iommu=on\n"
    );
}

#[test]
fn files_that_are_no_plain_text_are_refused_and_none_holds_it_up() {
    let refused = |prepare: &dyn Fn(&Path)| {
        let (dir, root) = GRUB_INTEL.make(&[]);
        prepare(dir.path());
        let before = tree(dir.path());
        let why = needed(&World::at(&root, &Ran::default(), None)).map(|_| ());
        assert_eq!(tree(dir.path()), before);
        why.unwrap_err()
    };
    let in_modprobe = |name: &str| Path::new("etc/modprobe.d").join(name);
    assert_eq!(
        refused(&|dir| nix::unistd::mkfifo(&dir.join(in_modprobe("a.conf")), nix::sys::stat::Mode::S_IRWXU).unwrap()),
        "/etc/modprobe.d/a.conf: it is no regular file"
    );
    assert_eq!(
        refused(&|dir| fs::write(dir.join(in_modprobe("a.conf")), vec![b'#'; 2 << 20]).unwrap()),
        "/etc/modprobe.d/a.conf: it has more than a megabyte, as no such file has"
    );
    assert_eq!(
        refused(&|dir| fs::write(dir.join(in_modprobe("a.conf")), b"blacklist nvidia\n# \xff\n").unwrap()),
        "/etc/modprobe.d/a.conf: it is no text in UTF-8"
    );
    assert_eq!(
        refused(&|dir| fs::hard_link(dir.join(in_modprobe("vfio.conf")), dir.join("etc/other")).unwrap()),
        "/etc/modprobe.d/vfio.conf: it has several names (hard links), of which one alone would be changed"
    );
    assert_eq!(
        refused(&|dir| std::os::unix::fs::symlink("a.conf", dir.join(in_modprobe("a.conf"))).unwrap()),
        "/etc/modprobe.d/a.conf: Too many levels of symbolic links (os error 40)"
    );
}

#[test]
fn a_journal_of_an_earlier_version_is_taken_back_and_one_of_a_later_is_refused() {
    let (dir, root) = SYSTEMD_BOOT_AMD.make(&[("etc/kernel/cmdline", "root=a intel_iommu=on\n")]);
    let journal = |version: u32| {
        format!(
            "{{\"version\": {version}, \"written_by\": \"0.1.0\", \"entries\": [{{\"number\": 7, \"file\": \
             \"/etc/kernel/cmdline\", \"target\": \"/etc/kernel/cmdline\", \"before\": {{\"mode\": 420, \"uid\": 0, \"gid\": \
             0}}, \"commands\": [[\"proxmox-boot-tool\", \"refresh\"]], \"since a later version\": 1}}]}}"
        )
    };
    let at = |name: &str| format!("{DIR}/{name}");
    write(dir.path(), &at("7.before"), "root=a\n");
    write(dir.path(), &at("7.after"), "root=a intel_iommu=on\n");
    write(dir.path(), &at("journal.json"), journal(2));
    let error = Journal::read(&root).unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.exit()),
        (
            "/var/lib/gpu-handoff/prepared/journal.json is not used: its form is 2, of a later version of gpu-handoff; this \
             one knows 1. Hint: each file as it was lies beside it, as N.before; put back by hand what you want back, and \
             move the folder away",
            Exit::Refused
        )
    );
    write(dir.path(), &at("journal.json"), "{");
    assert_eq!(Journal::read(&root).unwrap_err().exit(), Exit::Refused);
    write(dir.path(), &at("journal.json"), journal(1));
    let ran = Ran::default();
    let done = revert_once(&mut World::at(&root, &ran, None)).unwrap();
    assert!(done.changed && done.reboot);
    assert_eq!(root.text("/etc/kernel/cmdline").unwrap(), "root=a\n");
    assert_eq!(ran.borrow()[0].0, "proxmox-boot-tool refresh");
    assert!(!root.exists(DIR));
}

#[test]
fn what_was_changed_is_for_root_alone_and_the_next_reboot_is_told() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, root) = GRUB_INTEL.make(&[]);
    let world = &mut World::at(&root, &Ran::default(), None);
    let done = apply_once(world).unwrap();
    assert!(done.reboot);
    let mode = |path: &str| fs::metadata(root.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(DIR), mode(&format!("{DIR}/journal.json"))), (0o700, 0o600));
    assert_eq!(
        screen(&root),
        "There is nothing to change: this host is prepared.\n\n\
         It was prepared since the last reboot: it counts from the next one on.\n"
    );
    // Modules alone need none.
    let (_dir, root) = SYSTEMD_BOOT_AMD.make(&[("etc/modules-load.d/vfio.conf", "")]);
    let world = &mut World::at(&root, &Ran::default(), None);
    let done = apply_once(world).unwrap();
    assert_eq!((done.changed, done.reboot), (true, false));
    assert!(
        world
            .root()
            .text("/etc/modules-load.d/gpu-handoff.conf")
            .unwrap()
            .ends_with("\nvfio\nvfio_iommu_type1\nvfio_pci\n")
    );
}
