//! Runs the conformance cases: VM configs, and what Proxmox VE 8 and 9 make of them.
//!
//! The cases and the meaning of their files are described in tests/pve-conformance/README.md. Another
//! folder of cases of the same form is taken from PVE_CONFORMANCE_CASES. Every key of expect.json is
//! compared; a case that cannot be read counts as failed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use gpu_handoff::base::pci::{PciClass, parse_sysfs_hex};
use gpu_handoff::base::vmid::VmId;
use gpu_handoff::proxmox::choice::{Site, Stage, Start, start};
use gpu_handoff::proxmox::grammar::generation::Generation;
use gpu_handoff::proxmox::grammar::value::Value as Bytes;
use gpu_handoff::proxmox::hostpci::{Driver, HostPci};
use gpu_handoff::proxmox::mappings::Mappings;
use gpu_handoff::proxmox::reservations::{Moment, Reservations};
use gpu_handoff::proxmox::resolve::{HostFunction, Resolved, Share, resolve};
use gpu_handoff::proxmox::start_error::{ResolveError, StartError};
use gpu_handoff::proxmox::vm_config::{Section, VmConfig, parse};
use serde_json::{Map, Value, json};

#[test]
fn every_case_is_read_as_proxmox_reads_it() {
    let folder = match std::env::var_os("PVE_CONFORMANCE_CASES") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pve-conformance/cases"),
    };
    let mut cases: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.is_dir())
        .collect();
    cases.sort();
    assert!(!cases.is_empty(), "no cases below {}", folder.display());

    let mut report = String::new();
    let mut failed = 0;
    for case in &cases {
        let problems = run(case);
        if !problems.is_empty() {
            failed += 1;
            writeln!(report, "{}", case.file_name().unwrap_or_default().display()).unwrap();
            for problem in problems {
                writeln!(report, "    {problem}").unwrap();
            }
        }
    }
    let passed = cases.len() - failed;
    // Not println!: this line is to be seen of a passed test, too.
    writeln!(
        std::io::stdout(),
        "{} cases, {passed} passed, {failed} failed",
        cases.len()
    )
    .expect("an open stdout");
    assert!(failed == 0, "{failed} of {} cases failed:\n{report}", cases.len());
}

/// The differences of one case, in both generations.
fn run(case: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, generation) in [("pve8", Generation::Pve8), ("pve9", Generation::Pve9)] {
        match verdict(case, name, generation) {
            Ok((expected, actual)) => differences(name, &expected, &actual, &mut problems),
            Err(e) => problems.push(format!("{name}: not run: {e}")),
        }
    }
    problems
}

type Failure = Box<dyn std::error::Error>;

/// What is expected of a case, and what we make of it.
fn verdict(case: &Path, name: &str, generation: Generation) -> Result<(Value, Value), Failure> {
    let expected = read_json(&case.join("expect.json"))?;
    let expected = canonical(expected.get(name).ok_or("expect.json lacks the generation")?);
    let config = parse(&fs::read(case.join("vm.conf"))?, generation);
    let mut actual = json!({
        "facts": facts(&config),
        "hostpci": hostpci(&config),
        "ignored_lines": config.ignored_lines.iter().map(|l| {
            json!({"line": l.line, "key": l.key, "reason": l.reason.code()})
        }).collect::<Vec<_>>(),
        "pending": {
            "hostpci": entries(&config.pending),
            "delete": config.pending.delete().map(bytes),
        },
        "snapshots": config.snapshots,
    });
    if let Some(sysfs) = optional(&case.join("sysfs.json"))? {
        let facts = read_json(&case.join("case.json"))?;
        let functions = functions(&serde_json::from_slice(&sysfs)?)?;
        let mappings = Mappings::parse(&optional(&case.join("pci.cfg"))?.unwrap_or_default());
        let reservations = Reservations::parse(&optional(&case.join("reservations"))?.unwrap_or_default());
        let node = facts["node"].as_str().ok_or("node")?;
        let vmid = VmId::try_from(u32::try_from(facts["vmid"].as_u64().ok_or("vmid")?)?)?;
        let running = |id: VmId| {
            facts["running"][id.to_string()]
                .as_u64()
                .and_then(|pid| u32::try_from(pid).ok())
        };
        let moment = Moment {
            vmid,
            now: facts["now"].as_u64().ok_or("now")?,
            running: &running,
        };

        let site = Site {
            node,
            generation,
            mappings: &mappings,
            functions: &functions,
            reservations: &reservations,
        };
        let resolved = resolve(&config, &mappings, &functions, node);
        let resolved = resolved.iter().map(|(index, found)| (key(*index), resolution(found)));
        actual["resolve"] = Value::Object(resolved.collect());
        actual["start"] = start_verdict(&start(&config, site, moment));
    }
    Ok((expected, canonical(&actual)))
}

fn facts(config: &VmConfig) -> Value {
    let mut facts = json!({"template": config.current.get("template").map(|_| config.template())});
    for key in [
        "lock",
        "hookscript",
        "machine",
        "bios",
        "cpu",
        "args",
        "vga",
        "description",
    ] {
        facts[key] = config.current.get(key).map(bytes).into();
    }
    facts
}

fn hostpci(config: &VmConfig) -> Value {
    let mut all = entries(&config.current);
    for (key, reason) in &config.ignored_hostpci {
        all.insert(key.clone(), json!({"ignored": reason.code()}));
    }
    Value::Object(all)
}

fn entries(section: &Section) -> Map<String, Value> {
    section
        .hostpci()
        .map(|entry| (entry.key(), entry_json(entry)))
        .collect()
}

fn entry_json(entry: &HostPci) -> Value {
    let mut options = Map::new();
    let flags = [
        ("rombar", entry.rombar),
        ("pcie", entry.pcie),
        ("x-vga", entry.x_vga),
        ("legacy-igd", entry.legacy_igd),
    ];
    for (name, flag) in flags {
        options.extend(flag.map(|on| (name.to_owned(), json!(on))));
    }
    for (name, value) in [("romfile", &entry.romfile), ("mdev", &entry.mdev)] {
        options.extend(value.as_ref().map(|v| (name.to_owned(), bytes(v))));
    }
    for (name, id) in [
        ("vendor-id", &entry.vendor_id),
        ("device-id", &entry.device_id),
        ("sub-vendor-id", &entry.sub_vendor_id),
        ("sub-device-id", &entry.sub_device_id),
    ] {
        options.extend(id.as_ref().map(|id| (name.to_owned(), json!(id))));
    }
    let driver = entry.driver.map(|d| if d == Driver::Keep { "keep" } else { "vfio" });
    options.extend(driver.map(|d| ("driver".to_owned(), json!(d))));

    let mut value = json!({ "options": options });
    if !entry.host.is_empty() {
        value["host"] = json!(entry.host);
    }
    if let Some(mapping) = &entry.mapping {
        value["mapping"] = json!(mapping);
    }
    value
}

fn resolution(found: &Result<Resolved, ResolveError>) -> Value {
    let found = match found {
        Ok(found) => found,
        Err(error) => return resolve_error(error),
    };
    let mut value = json!({"alternatives": found.alternatives});
    match &found.share {
        Share::Whole => {}
        Share::Mdev(model) => value["mdev"] = bytes(model),
        Share::NvidiaVgpu(number) => value["nvidia_vgpu"] = json!(number),
    }
    if found.live_migration_capable {
        value["live_migration_capable"] = json!(true);
    }
    value
}

fn resolve_error(error: &ResolveError) -> Value {
    let mut value = match error {
        ResolveError::DeviceNotFound { device } | ResolveError::MappingDeviceMissing { device } => {
            json!({"device": bytes(device)})
        }
        ResolveError::MappingNotFound { mapping } => json!({"mapping": mapping}),
        ResolveError::MappingPropertyMissing { property, device }
        | ResolveError::MappingPropertyUnexpected { property, device } => {
            json!({"property": property, "device": device})
        }
        ResolveError::MappingPropertyMismatch {
            property,
            host_has,
            mapping_has,
        } => {
            json!({"property": property, "host_has": host_has, "mapping_has": mapping_has})
        }
        _ => json!({}),
    };
    value["error"] = json!(error.code());
    value
}

fn start_verdict(start: &Start) -> Value {
    let mut value = match &start.error {
        None => json!({}),
        Some(StartError::Resolve { error, .. }) => resolve_error(error),
        Some(error) => {
            let mut value = match error {
                StartError::AssignedTwice { device } | StartError::VgpuTypeUnavailable { device, .. } => {
                    json!({"device": device})
                }
                StartError::NoFreeDevice { index } => json!({"hostpci": key(*index)}),
                StartError::ReservedByOther { device, vmid } | StartError::InUseByOther { device, vmid } => {
                    json!({"device": device, "vmid": vmid})
                }
                _ => json!({}),
            };
            value["error"] = json!(error.code());
            value
        }
    };
    value["stage"] = json!(start.stage.code());
    if matches!(start.stage, Stage::Ok | Stage::Reserve) {
        let chosen: BTreeMap<String, _> = start
            .chosen
            .iter()
            .map(|(index, chosen)| (key(*index), &chosen.functions))
            .collect();
        value["chosen"] = json!(chosen);
    }
    value
}

fn key(index: u8) -> String {
    format!("hostpci{index}")
}

fn functions(list: &Value) -> Result<Vec<HostFunction>, Failure> {
    let number = |value: &Value| value.as_str().and_then(parse_sysfs_hex);
    let id = |value: &Value| number(value).and_then(|n| u16::try_from(n).ok());
    let one = |f: &Value| -> Result<HostFunction, Failure> {
        let types = |value: &Value| value.as_array().cloned();
        Ok(HostFunction {
            addr: f["bdf"].as_str().ok_or("bdf")?.parse()?,
            vendor: id(&f["vendor"]),
            device: id(&f["device"]),
            class: number(&f["class"]).map(PciClass),
            subsystem_vendor: id(&f["subsystem_vendor"]),
            subsystem_device: id(&f["subsystem_device"]),
            iommu_group: f["iommu_group"].as_u64().and_then(|g| u32::try_from(g).ok()),
            mdev_types: types(&f["mdev_types"])
                .map(|t| t.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
            nvidia_vgpu: types(&f["nvidia_vgpu"]).map(|t| {
                t.iter()
                    .filter_map(Value::as_u64)
                    .filter_map(|n| u32::try_from(n).ok())
                    .collect()
            }),
            physfn: f["physfn"].as_str().map(str::parse).transpose()?,
        })
    };
    list.as_array()
        .ok_or("sysfs.json is no list")?
        .iter()
        .map(one)
        .collect()
}

/// Text where it is UTF-8, else its bytes in hex, as in expect.json.
fn bytes(value: &Bytes) -> Value {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": hex(value.as_bytes()) }),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// expect.json has text that is not printable in hex; here all text is brought to one form.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(map) if map.len() == 1 && map.get("hex").is_some_and(Value::is_string) => {
            let digits = map["hex"].as_str().unwrap_or_default();
            let pairs = digits
                .as_bytes()
                .chunks(2)
                .map(|p| std::str::from_utf8(p).unwrap_or_default());
            let bytes: Result<Vec<u8>, _> = pairs.map(|p| u8::from_str_radix(p, 16)).collect();
            match bytes.map(String::from_utf8) {
                Ok(Ok(text)) => json!(text),
                _ => value.clone(),
            }
        }
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), canonical(v))).collect(),
        Value::Array(list) => list.iter().map(canonical).collect(),
        _ => value.clone(),
    }
}

/// One line for each place where two values differ.
fn differences(place: &str, expected: &Value, actual: &Value, problems: &mut Vec<String>) {
    match (expected, actual) {
        (Value::Object(left), Value::Object(right)) => {
            let keys: std::collections::BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            for key in keys {
                let (a, b) = (left.get(key), right.get(key));
                match (a, b) {
                    (Some(a), Some(b)) => differences(&format!("{place}.{key}"), a, b, problems),
                    _ => problems.push(format!("{place}.{key}: expected {}, got {}", show(a), show(b))),
                }
            }
        }
        _ if expected == actual => {}
        _ => problems.push(format!(
            "{place}: expected {}, got {}",
            show(Some(expected)),
            show(Some(actual))
        )),
    }
}

fn show(value: Option<&Value>) -> String {
    let text = value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    match text.char_indices().nth(300) {
        Some((at, _)) => format!("{}... ({} bytes)", &text[..at], text.len()),
        None => text,
    }
}

fn read_json(path: &Path) -> Result<Value, Failure> {
    Ok(serde_json::from_slice(
        &fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?,
    )?)
}

fn optional(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("{}: {e}", path.display()).into()),
    }
}
