//! What the walls say of files that break them, and that they say nothing of files that do not.

use crate::code::Source;
use crate::rules::{offences, texts};
use crate::watches;

/// A planted file: its path below src, and its code behind a first line that says what it is for.
type Planted<'a> = (&'a str, &'a str);

fn planted(files: &[Planted<'_>]) -> Vec<Source> {
    let source = |(file, text): &Planted<'_>| ((*file).to_owned(), format!("//! For a test.\n{text}\n"));
    files.iter().map(source).collect()
}

const OUT: Planted<'_> = ("plan/out.rs", "pub fn plan() {}");
const ROOT: Planted<'_> = ("base/root.rs", "pub struct Root;");

/// What is said of `plan::out` in a file of `host`.
const UP: &str = "an import goes down: crate::plan::out";
const ABOVE: &str = "is of plan, which lies above host";

#[test]
fn imports_that_go_up_are_named_however_they_are_written() {
    let of = |code: &str| texts(&offences(&planted(&[OUT, ("host/nodes.rs", code)])).0);
    for (code, line, name) in [
        ("use std::io;\nuse crate::plan::out::plan;", 3, "::plan"),
        ("use crate::plan::{self as p, out};", 2, ""),
        ("use crate::{base::root, plan::{out}};", 2, ""),
        ("pub use crate::plan::out::*;", 2, ""),
        ("mod deep { use super::super::super::plan::out; }", 2, ""),
        ("mod deep { use self::super::super::super::plan::out; }", 2, ""),
        ("use self::super::super::plan::out;", 2, ""),
        (
            "fn f() {\n    println!(\"{:?}\", crate::plan::out::plan());\n}",
            3,
            "::plan",
        ),
        ("macro_rules! m { () => { $crate::plan::out::plan() } }", 2, "::plan"),
        ("#[serde(with = \"crate::plan::out\")]\nstruct A;", 2, ""),
        ("#[serde(with = \"super::super::plan::out\")]\nstruct A;", 2, ""),
        ("#[cfg(test)]\nmod tests {\n    use crate::plan::out;\n}", 4, ""),
        ("use crate as c;\nfn f() { c::plan::out::plan() }", 3, "::plan"),
        (
            "use super::super as top;\nfn f() { top::plan::out::plan() }",
            3,
            "::plan",
        ),
        ("use crate::plan;\nfn f() { plan::out::plan() }", 3, "::plan"),
    ] {
        let expected = format!("src/host/nodes.rs:{line}: {UP}{name} {ABOVE}");
        assert!(
            of(code).lines().any(|said| said == expected),
            "{code}\n{}\n{expected}",
            of(code)
        );
    }
    // Words in comments, in strings and in other attributes are none.
    for code in [
        "/// As [`crate::plan::out`].\nconst A: &str = \"crate::plan::out\";",
        "#[doc = \"crate::plan::out\"]\nstruct A;",
        "#[serde(rename = \"see crate::plan::out\")]\nstruct A;",
        "fn f() -> impl Iterator<Item = u8> + use<'_> { plan::out() }",
    ] {
        assert_eq!(of(code), "", "{code}");
    }
    let down = ("execute/linux.rs", "use crate::plan::out;\nuse crate::base::root;");
    assert_eq!(texts(&offences(&planted(&[OUT, ROOT, down])).0), "");
}

#[test]
fn what_hides_an_import_is_named() {
    let door = ("plan/vendor/mod.rs", "pub mod nvidia;");
    for (file, code, expected) in [
        (
            "host/nodes.rs",
            "use crate as c;",
            "2: an import names what it needs: crate is a whole wing",
        ),
        (
            "host/nodes.rs",
            "use crate::*;",
            "2: an import names what it needs: crate is a whole wing",
        ),
        (
            "host/nodes.rs",
            "use crate::base;",
            "2: an import names what it needs: crate::base is a whole wing",
        ),
        (
            "host/nodes.rs",
            "use crate::base as b;",
            "2: an import names what it needs: crate::base is a whole wing",
        ),
        (
            "host/nodes.rs",
            "use super::*;",
            "2: an import names what it needs: crate::host is a whole wing",
        ),
        (
            "run/look.rs",
            "use crate::plan::vendor;",
            "2: an import names what it needs: crate::plan::vendor is a whole wing",
        ),
        (
            "host/nodes.rs",
            "fn f() { crate::shortcut() }",
            "2: a path leads into a wing: crate::shortcut is in none",
        ),
        (
            "host/nodes.rs",
            "crate::shortcut!();",
            "2: a path leads into a wing: crate::shortcut is in none",
        ),
        (
            "lib.rs",
            "pub mod plan;\npub use plan::out::plan;",
            "3: lib.rs lists the wings and has nothing of its own: it has 'pub use plan :'",
        ),
        (
            "plan/moving.rs",
            "#[macro_export]\nmacro_rules! m { () => {} }",
            "2: what a file has of another one it has by a path: 'macro_export' goes round that",
        ),
        (
            "plan/mod.rs",
            "#[macro_use]\nmod moving;",
            "2: what a file has of another one it has by a path: 'macro_use' goes round that",
        ),
        (
            "host/nodes.rs",
            "#[path = \"../plan/out.rs\"]\nmod out;",
            "2: what a file has of another one it has by a path: 'path' goes round that",
        ),
        (
            "host/nodes.rs",
            "include!(\"../plan/out.rs\");",
            "2: what a file has of another one it has by a path: 'include' goes round that",
        ),
        (
            "host/nodes.rs",
            "extern crate self as house;",
            "2: what a file has of another one it has by a path: 'extern' goes round that",
        ),
    ] {
        let said = texts(&offences(&planted(&[door, (file, code)])).0);
        let first = said.lines().next().unwrap_or_default();
        assert_eq!(first, format!("src/{file}:{expected}"), "{code}\n{said}");
    }
    let fine = [
        ("lib.rs", "pub mod plan; // what is done\npub mod base;"),
        ("base/mod.rs", "#[cfg(test)]\nmod tests { use super::*; }"),
        (
            "host/nodes.rs",
            "#[cfg(test)]\nmod tests { use super::*; fn f() { let path = \"a\"; } }",
        ),
    ];
    assert_eq!(texts(&offences(&planted(&fine)).0), "");
}

#[test]
fn circles_are_named_with_the_way_round() {
    for (files, expected) in [
        (
            vec![
                ("host/nodes.rs", "use crate::host::usb::below;\npub struct Node;"),
                ("host/usb.rs", "pub fn below() -> super::nodes::Node { todo() }"),
            ],
            "src/host/nodes.rs:2: no circles: it imports src/host/usb.rs, which imports it\n\
             src/host/usb.rs:2: no circles: it imports src/host/nodes.rs, which imports it",
        ),
        (
            vec![
                ("base/a.rs", "use crate::base::b::B;"),
                ("base/b.rs", "use crate::base::c::C;"),
                ("base/c.rs", "\nuse crate::base::a::A;"),
            ],
            "src/base/a.rs:2: no circles: it imports src/base/b.rs, which imports src/base/c.rs, which imports it\n\
             src/base/b.rs:2: no circles: it imports src/base/c.rs, which imports src/base/a.rs, which imports it\n\
             src/base/c.rs:3: no circles: it imports src/base/a.rs, which imports src/base/b.rs, which imports it",
        ),
        // A door that calls its child by the child's name, and the child that calls it.
        (
            vec![
                ("commands/mod.rs", "mod status;\npub fn run() {\n    status::run()\n}"),
                ("commands/status.rs", "pub fn run() { crate::commands::run() }"),
            ],
            "src/commands/mod.rs:4: no circles: it imports src/commands/status.rs, which imports it\n\
             src/commands/status.rs:2: no circles: it imports src/commands/mod.rs, which imports it",
        ),
        (
            vec![
                ("commands/mod.rs", "mod status;\npub use status::run;"),
                ("commands/status.rs", "pub fn run() { super::run() }"),
            ],
            "src/commands/mod.rs:3: no circles: it imports src/commands/status.rs, which imports it\n\
             src/commands/status.rs:2: no circles: it imports src/commands/mod.rs, which imports it",
        ),
        (
            vec![
                ("commands/mod.rs", "mod status;\npub fn run() { status::run() }"),
                ("commands/status.rs", "pub fn run() {}"),
            ],
            "",
        ),
    ] {
        assert_eq!(texts(&offences(&planted(&files)).0), expected, "{files:?}");
    }
}

#[test]
fn what_a_pure_file_may_not_know_is_named() {
    let of = |file: &str, code: &str| texts(&offences(&planted(&[ROOT, (file, code)])).0);
    for (code, line, name) in [
        (
            "use crate::base::root::Root;\nfn f(root: Root) {}",
            2,
            "crate::base::root::Root",
        ),
        ("fn f() { let _ = std::fs::read(\"x\"); }", 2, "std::fs::read"),
        ("use std::io;\nfn f() { io::stdout(); }", 3, "std::io::stdout"),
        ("use std::io::stderr;", 2, "std::io::stderr"),
        ("fn f() { std::thread::yield_now() }", 2, "std::thread::yield_now"),
        (
            "use std::time;\nfn f() { time::Instant::now() }",
            3,
            "std::time::Instant::now",
        ),
        ("use std::time::{Duration, SystemTime};", 2, "std::time::SystemTime"),
        (
            "use std::path::Path;\nfn f(path: &Path) -> bool { path.exists() }",
            3,
            "exists()",
        ),
        ("fn f(path: &P) { path\n.read_dir() }", 3, "read_dir()"),
        (
            "use std::path::Path;\nconst F: fn(&Path) -> bool = Path::is_dir;",
            3,
            "is_dir()",
        ),
        ("fn f(begun: &I) { begun.elapsed() }", 2, "elapsed()"),
        ("fn f() { println!(\"x\") }", 2, "println!"),
        ("use crate::base::process::process;", 2, "crate::base::process::process"),
        ("use crate::base::threads::start;", 2, "crate::base::threads::start"),
        ("use crate::base::uevents::Uevents;", 2, "crate::base::uevents::Uevents"),
        (
            "use crate::base::unsafe_calls::fork_to;",
            2,
            "crate::base::unsafe_calls::fork_to",
        ),
        (
            "use crate::base::systemd_socket::call;",
            2,
            "crate::base::systemd_socket::call",
        ),
        (
            "use crate::base::clock;\nfn f() { clock::now() }",
            3,
            "crate::base::clock::now",
        ),
        // What is compiled for tests alone, and is not the module of the tests, is no end of the file.
        ("#[cfg(test)]\nuse std::fmt;\nuse std::fs;", 4, "std::fs"),
    ] {
        let expected = format!("src/model/act.rs:{line}: a pure wing knows values only: model uses {name}");
        assert_eq!(of("model/act.rs", code), expected, "{code}");
    }
    for (file, code) in [
        (
            "settings/file.rs",
            "use crate::base::root::Root;\nfn f(root: &Root) -> bool { root.exists() }",
        ),
        (
            "model/act.rs",
            "use std::io;\nuse crate::base::clock;\nfn f() -> io::Error { clock::utc() }",
        ),
        (
            "model/act.rs",
            "use crate::base::process::{Group, Process};\nuse std::process::ExitCode;",
        ),
        (
            "model/act.rs",
            "#[cfg(test)]\nmod tests {\n    use std::fs;\n    fn f() { p.exists() }\n}",
        ),
        ("host/nodes.rs", "use std::fs;\nfn f() { p.exists() }"),
    ] {
        assert_eq!(of(file, code), "", "{code}");
    }
    // A reader is not who says something.
    for code in [
        "use tracing::warn;",
        "fn f() { std::io::stdout(); }",
        "fn f() { eprintln!() }",
    ] {
        let said = of("settings/file.rs", code);
        assert!(said.contains("settings uses"), "{code}: {said}");
    }
}

#[test]
fn a_file_without_a_wing_one_that_is_silent_and_one_that_is_long_are_named() {
    let of = |file: &str, text: String| texts(&offences(&[(file.to_owned(), text)]).0);
    let corner = of("corner.rs", "//! For a test.\n".to_owned());
    assert!(
        corner.starts_with("src/corner.rs:1: every file is in a wing: the wings are commands, run,"),
        "{corner}"
    );
    assert_eq!(
        of("base/a.rs", "use std::io;\n".to_owned()),
        "src/base/a.rs:1: a file says what it is for: it begins without a line of '//!'"
    );
    let lines = |n: usize| "const A: u8 = 0;\n".repeat(n);
    let tests = "#[cfg(test)]\nmod tests {\n    const A: u8 = 0;\n}\n";
    let named = "src/base/a.rs:1: a file has at most 500 lines: 501 lines without its tests";
    for (text, expected) in [
        (format!("//! A.\n{}{tests}", lines(499)), ""),
        (format!("//! A.\n{}{tests}", lines(500)), named),
        // Code behind the tests, and behind what else is compiled for tests alone.
        (format!("//! A.\n{tests}{}", lines(500)), named),
        (format!("//! A.\n#[cfg(test)]\n{}{tests}", lines(499)), named),
    ] {
        assert_eq!(of("base/a.rs", text), expected);
    }
}

#[test]
fn what_is_not_in_its_one_place_is_named() {
    let one = |file: &str, code: &str| texts(&watches::offences(&planted(&[(file, code)])));
    for (file, code, expected) in [
        (
            "host/vms.rs",
            "fn f(root: &Root) { root.line(format!(\"/proc/{pid}/stat\")) }",
            "one place reads /proc/PID/stat: Stat::read of base/process.rs has what is in it",
        ),
        (
            "host/vms.rs",
            "fn f(dir: &Path) { dir.join(\"stat\") }",
            "one place reads /proc/PID/stat: Stat::read of base/process.rs has what is in it",
        ),
        (
            "execute/worker.rs",
            "const KILL: &str = \"GPU_HANDOFF_TEST_KILL\";",
            "a switch of the tests is in builds with fault-points alone: \"GPU_HANDOFF_TEST_KILL\"",
        ),
        (
            "execute/fault_points.rs",
            "mod build { const KILL: &str = \"GPU_HANDOFF_TEST_KILL\"; }",
            "a switch of the tests is in builds with fault-points alone: \"GPU_HANDOFF_TEST_KILL\"",
        ),
        (
            "execute/worker.rs",
            "fn f() { std::env::var_os(\"GH_KILL\") }",
            "SECURITY.md has each variable that is read: var_os(\"GH_KILL\")",
        ),
        (
            "execute/worker.rs",
            "fn f(name: &str) { std::env::var(name) }",
            "SECURITY.md has each variable that is read: var(name)",
        ),
        (
            "tell/mail.rs",
            "fn f(text: &str) { text.split(\" Hint: \") }",
            "no text of ours is taken apart: split(\" Hint: \"): src/model/sentence.rs reads it",
        ),
        (
            "tell/events.rs",
            "fn f(owner: &str) { owner.strip_prefix(\"VM \") }",
            "no text of ours is taken apart: strip_prefix(\"VM \"): src/model/record.rs reads it",
        ),
    ] {
        assert_eq!(one(file, code), format!("src/{file}:2: {expected}"), "{code}");
    }
    let kill = "#[cfg(feature = \"fault-points\")]\nmod build { const KILL: &str = \"GPU_HANDOFF_TEST_KILL\"; }";
    for (file, code) in [
        ("base/process.rs", "fn f(dir: &str) { format!(\"{dir}/stat\") }"),
        (
            "host/vms.rs",
            "// /proc/PID/stat\n#[cfg(test)]\nmod tests { const A: &str = \"/proc/1/stat\"; }",
        ),
        ("execute/fault_points.rs", kill),
        (
            "output/style.rs",
            "fn f(name: &str) { std::env::var_os(name); std::env::var_os(\"TERM\") }",
        ),
        (
            "tell/mail.rs",
            "fn f(text: &str) { text.split(\": \"); format!(\"{text}. Hint: {hint}\") }",
        ),
        ("model/record.rs", "fn f(text: &str) { text.strip_prefix(\"VM \") }"),
    ] {
        assert_eq!(one(file, code), "", "{code}");
    }
}

#[test]
fn a_setting_without_its_row_is_named() {
    let of = |values: &str, parser: &str| {
        let table = "static KEYS: &[Key] = &[Key { name: \"way\", field: |s| &mut s.way }, \
                     Key { name: \"deadlines.look\", field: |s| &mut s.budgets.look }];\n\
                     static DEVICE: &[DeviceKey] = &[DeviceKey { name: \"ids\" }];";
        let deadlines = "pub struct Budgets {\n    #[serde(default = \"look\")]\n    pub look: Duration,\n    pub nap: Duration,\n}";
        let deadlines = if values.contains("nap") {
            deadlines.to_owned()
        } else {
            deadlines.replace("pub nap: Duration,", "")
        };
        texts(&watches::offences(&planted(&[
            ("settings/table.rs", table),
            ("settings/values.rs", values),
            ("settings/file.rs", parser),
            ("base/deadlines.rs", &deadlines),
        ])))
    };
    let values = "pub struct Settings {\n    pub budgets: Budgets,\n    pub way: Way,\n    pub facts: Vec<Fact>,\n    pub origins: BTreeMap<String, String>,\n}";
    let parser = "fn f() { match (a, b) { (\"ids\", c) => 1, _ if key == \"vm\" => 2, _ => d(\"it is no key\") } }";
    let rule = "each setting has its row in the table";
    assert_eq!(of(values, parser), "");
    let more = values.replace("    pub way", "    pub hidden: bool,\n    pub way");
    assert_eq!(
        of(&more, parser),
        format!("src/settings/values.rs:4: {rule}: hidden of Settings has none")
    );
    let more = values.replace("pub struct", "// nap\npub struct");
    assert_eq!(
        of(&more, parser),
        format!("src/base/deadlines.rs:5: {rule}: nap of Budgets has none")
    );
    let more = parser.replace("(\"ids\", c)", "(\"secret\", c)");
    assert_eq!(
        of(values, &more),
        format!("src/settings/file.rs:2: {rule}: the parser knows 'secret', which has none")
    );
    let more = parser.replace("key == \"vm\"", "key == \"by-the-way\"");
    assert_eq!(
        of(values, &more),
        format!("src/settings/file.rs:2: {rule}: the parser knows 'by-the-way', which has none")
    );
}

#[test]
fn a_reason_without_a_name_that_is_said_twice_is_named() {
    let of = |one: &str, other: &str| {
        texts(&watches::offences(&planted(&[
            ("plan/out.rs", one),
            ("run/look.rs", other),
        ])))
    };
    let other = "fn f() { Reason::Other(format!(\"{addr} is gone\", addr = \"x\")) }";
    assert_eq!(
        of("fn f() { Reason::Other(\"{addr} is gone\".to_owned()) }", other),
        "src/run/look.rs:2: Reason::Other is for what is said once: src/plan/out.rs:2 says the same: give it a variant of \
         Reason"
    );
    for one in [
        "fn f() { Reason::Other(\"{addr} is here\".to_owned()) }",
        "fn f() { Reason::Other(why); warn!(\"{addr} is gone\") }",
        "fn f() { Loader::Other(\"{addr} is gone\".to_owned()) }",
        "#[cfg(test)]\nmod tests { fn f() { Reason::Other(\"{addr} is gone\".to_owned()) } }",
    ] {
        assert_eq!(of(one, other), "", "{one}");
    }
}

#[test]
fn a_door_that_shows_more_than_is_used_is_named() {
    let of = |code: &str, outside: &str| {
        let files = planted(&[
            (
                "plan/mod.rs",
                "pub mod out;\npub(crate) mod steps; // of out\nmod inner;",
            ),
            ("plan/out.rs", "use crate::plan::steps::Steps;"),
            ("run/look.rs", code),
        ]);
        texts(&watches::doors(&files, &planted(&[("hosts.rs", outside)])))
    };
    let out = "src/plan/mod.rs:2: a door shows what others use: nobody outside uses plan::out";
    let steps = "src/plan/mod.rs:3: a door shows what others use: nobody outside uses plan::steps";
    for (code, outside, expected) in [
        ("use crate::plan::out::plan;", "", steps.to_owned()),
        ("use crate::plan::{out::{a, b}, steps};", "", String::new()),
        (
            "use crate::{base::root, plan::{steps::Steps}};",
            "use gpu_handoff::plan::out;",
            String::new(),
        ),
        (
            "#[serde(with = \"crate::plan::steps\")]\nstruct A;",
            "use gpu_handoff::{plan::out, base};",
            String::new(),
        ),
        ("// crate::plan::out", "", format!("{out}\n{steps}")),
    ] {
        assert_eq!(of(code, outside), expected, "{code} {outside}");
    }
}
