//! Inputs that are stored or recorded: where the targets begin. A seed is made here of vectors, fixtures and documents
//! where the repository has them, and is a file in `seeds/` where it does not.

use std::fs;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use paramedic_link::EndpointId;
use paramedic_link::admission::Preamble;

use crate::Target;

/// One input.
#[derive(Clone, Debug)]
pub struct Seed {
    /// A file name that is unique within its target.
    pub name: String,
    /// The input.
    pub bytes: Vec<u8>,
}

impl Seed {
    pub(crate) fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), bytes: bytes.into() }
    }
}

/// Every seed of a target, the recorded ones first.
pub fn seeds(target: &Target) -> Vec<Seed> {
    let mut seeds = (target.recorded)();
    seeds.extend(files(&folder("seeds").join(target.name)));
    seeds
}

/// Every input that a target failed on once.
pub fn crashes(target: &Target) -> Vec<Seed> {
    files(&folder("crashes").join(target.name))
}

/// The folder of stored inputs with this name, `seeds` or `crashes`: one folder a target in it.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A file of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// The files of a folder and of those below it, in the order of their names; none where there is no such folder.
pub(crate) fn files(folder: &Path) -> Vec<Seed> {
    let mut seeds = Vec::new();
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut paths = entries.map(|entry| entry.expect("a readable folder").path()).collect::<Vec<_>>();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            seeds.extend(files(&path).into_iter().map(|seed| Seed { name: format!("{name}-{}", seed.name), ..seed }));
        } else {
            seeds.push(Seed::new(name, fs::read(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))));
        }
    }
    seeds
}

/// For a target whose seeds are all files.
pub(crate) fn none() -> Vec<Seed> {
    Vec::new()
}

/// The recorded messages of both directions.
pub(crate) fn messages() -> Vec<Seed> {
    files(&repository("crates/link/vectors"))
}

/// The same in frames, and each direction's as one stream.
pub(crate) fn frames() -> Vec<Seed> {
    let mut seeds = messages();
    for seed in &mut seeds {
        let value = serde_json::from_slice::<serde_json::Value>(&seed.bytes).expect("a vector is JSON");
        seed.bytes = paramedic_link::frame::encode(&value).expect("a vector fits into a frame");
    }
    for direction in ["to_appliance", "to_reflector"] {
        let of_it = seeds.iter().filter(|seed| seed.name.starts_with(direction));
        let stream = of_it.flat_map(|seed| seed.bytes.clone()).collect::<Vec<_>>();
        seeds.push(Seed::new(format!("all-{direction}"), stream));
    }
    seeds
}

/// The lines of docs/protocol.md that show bytes in hexadecimal digits.
fn documented_bytes() -> Vec<Seed> {
    let text = fs::read_to_string(repository("docs/protocol.md")).expect("docs/protocol.md");
    let shown = text.lines().enumerate().filter_map(|(at, line)| {
        let bytes = HEXLOWER.decode(line.trim().as_bytes()).ok().filter(|bytes| bytes.len() >= Preamble::LEN)?;
        Some(Seed::new(format!("protocol.md-{}", at + 1), bytes))
    });
    shown.collect()
}

/// The documented preamble.
pub(crate) fn preambles() -> Vec<Seed> {
    documented_bytes().into_iter().filter(|seed| seed.bytes.len() == Preamble::LEN).collect()
}

/// Endpoint IDs at the ends of what they can be.
pub(crate) fn endpoint_ids() -> Vec<Seed> {
    let of = |byte| Seed::new(format!("key-of-{byte:02x}"), EndpointId::from_bytes([byte; 32]).to_string());
    [0, 1, 0x2a, 0x80, 0xff].map(of).into()
}

/// The documented datagrams, of both engines.
pub(crate) fn datagrams() -> Vec<Seed> {
    documented_bytes().into_iter().filter(|seed| seed.bytes.len() != Preamble::LEN).collect()
}

/// A whole audit log, and its beginnings.
pub(crate) fn audit_logs() -> Vec<Seed> {
    let lines = crate::audit::main_chain();
    let first = |count: usize| Seed::new(format!("{count}-lines"), lines[..count].concat());
    [1, 3, lines.len()].map(first).into()
}

/// The template, as it is printed and with every setting in force.
pub(crate) fn configurations<C: paramedic_host::config::Configuration>() -> Vec<Seed> {
    let template = paramedic_host::config::template::<C>();
    // A setting is commented out by a `#` without a blank behind it.
    let set = template.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') => setting,
        _ => line,
    });
    let set = set.collect::<Vec<_>>().join("\n");
    vec![Seed::new("template", template), Seed::new("template-in-force", set)]
}

/// What real clients printed.
pub(crate) fn iperf3_outputs() -> Vec<Seed> {
    let mut seeds = files(&repository("crates/iperf3/fixtures"));
    seeds.retain(|seed| seed.name.ends_with(".json") || seed.name.ends_with(".jsonl"));
    seeds
}
