//! The inputs from which fuzzing starts. Seeds are generated from the vectors, fixtures and documents of the repository
//! where these exist; the other seeds are files in `seeds/`.

use std::fs;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use paramedic_link::EndpointId;
use paramedic_link::admission::Preamble;

use crate::Target;

/// An input of a fuzz target, either generated or stored as a file.
#[derive(Clone, Debug)]
pub struct Seed {
    /// The name of the input, unique within its target; for a stored input, the file name.
    pub name: String,
    /// The contents of the input.
    pub bytes: Vec<u8>,
}

impl Seed {
    pub(crate) fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), bytes: bytes.into() }
    }
}

/// Returns all seeds of a target: first the generated ones, then the files in `seeds/`.
pub fn seeds(target: &Target) -> Vec<Seed> {
    let mut seeds = (target.recorded)();
    seeds.extend(files(&folder("seeds").join(target.name)));
    seeds
}

/// Returns all stored inputs on which a target failed in the past.
pub fn crashes(target: &Target) -> Vec<Seed> {
    files(&folder("crashes").join(target.name))
}

/// Returns the path of this crate's folder `seeds` or `crashes`, which contains one folder for each target.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Returns the path of a file, given relative to the root of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// Reads each file of a folder and its subfolders as a seed, sorted by name. Returns no seed if the folder does not
/// exist.
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

/// Returns no seed. For a target whose seeds are all files in `seeds/`.
pub(crate) fn none() -> Vec<Seed> {
    Vec::new()
}

/// Returns the test vectors of the link protocol: one seed for each JSON message of either direction.
pub(crate) fn messages() -> Vec<Seed> {
    files(&repository("crates/link/vectors"))
}

/// Returns each test vector of the link protocol in a frame, and one more seed for each direction: all its frames as
/// one stream.
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

/// Reads the byte strings that docs/protocol.md shows as lines of hexadecimal digits. Each such line is one seed.
fn documented_bytes() -> Vec<Seed> {
    let text = fs::read_to_string(repository("docs/protocol.md")).expect("docs/protocol.md");
    let shown = text.lines().enumerate().filter_map(|(at, line)| {
        let bytes = HEXLOWER.decode(line.trim().as_bytes()).ok().filter(|bytes| bytes.len() >= Preamble::LEN)?;
        Some(Seed::new(format!("protocol.md-{}", at + 1), bytes))
    });
    shown.collect()
}

/// Returns the example preamble of a data connection from docs/protocol.md.
pub(crate) fn preambles() -> Vec<Seed> {
    documented_bytes().into_iter().filter(|seed| seed.bytes.len() == Preamble::LEN).collect()
}

/// Returns printed Endpoint IDs, among them those with only 0 bits and with only 1 bits.
pub(crate) fn endpoint_ids() -> Vec<Seed> {
    let of = |byte| Seed::new(format!("key-of-{byte:02x}"), EndpointId::from_bytes([byte; 32]).to_string());
    [0, 1, 0x2a, 0x80, 0xff].map(of).into()
}

/// Returns the example datagrams of the engines `echo` and `udp` from docs/protocol.md.
pub(crate) fn datagrams() -> Vec<Seed> {
    documented_bytes().into_iter().filter(|seed| seed.bytes.len() != Preamble::LEN).collect()
}

/// Returns a complete audit log, and two logs that contain only its first lines.
pub(crate) fn audit_logs() -> Vec<Seed> {
    let lines = crate::audit::main_chain();
    let first = |count: usize| Seed::new(format!("{count}-lines"), lines[..count].concat());
    [1, 3, lines.len()].map(first).into()
}

/// Returns the configuration template of a program: as it is printed, and with every setting uncommented.
pub(crate) fn configurations<C: paramedic_host::config::Configuration>() -> Vec<Seed> {
    let template = paramedic_host::config::template::<C>();
    // A line with a `#` and no space behind it is a setting that is commented out.
    let set = template.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') => setting,
        _ => line,
    });
    let set = set.collect::<Vec<_>>().join("\n");
    vec![Seed::new("template", template), Seed::new("template-in-force", set)]
}

/// Reads the recorded outputs of real iperf3 clients from the fixtures of the crate `iperf3`.
pub(crate) fn iperf3_outputs() -> Vec<Seed> {
    let mut seeds = files(&repository("crates/iperf3/fixtures"));
    seeds.retain(|seed| seed.name.ends_with(".json") || seed.name.ends_with(".jsonl"));
    seeds
}
