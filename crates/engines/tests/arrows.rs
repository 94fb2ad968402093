//! Checks the dependencies inside this crate: an engine uses no other engine, and the modules below the engines use no
//! engine.

use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The names of the entries of `src`.
fn entries() -> Vec<String> {
    read_dir(source()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The folders whose `mod.rs` implements an engine.
fn engines() -> Vec<String> {
    let is_engine = |name: &String| {
        read_to_string(source().join(name).join("mod.rs")).is_ok_and(|text| text.contains("\nimpl Engine for "))
    };
    entries().into_iter().filter(is_engine).collect()
}

fn files(at: &Path) -> Vec<PathBuf> {
    if at.is_file() {
        return vec![at.to_owned()];
    }
    let entries = read_dir(at).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| files(&path)).filter(|path| path.extension().is_some_and(|it| it == "rs")).collect()
}

/// The lines below `part` that use one of `others` by its path.
fn uses(part: &str, others: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for path in files(&source().join(part)) {
        let text = read_to_string(&path).unwrap();
        let is_use = |line: &&str| others.iter().any(|other| line.contains(&format!("crate::{other}::")));
        found.extend(text.lines().filter(is_use).map(|line| format!("{}: {line}", path.display())));
    }
    found
}

#[test]
fn no_engine_uses_another() {
    let engines = engines();
    assert!(engines.len() >= 3, "{engines:?}");
    for engine in &engines {
        let others = engines.iter().filter(|other| *other != engine).cloned().collect::<Vec<_>>();
        assert_eq!(uses(engine, &others), [""; 0], "{engine}");
    }
}

#[test]
fn the_layers_below_use_no_engine() {
    let engines = engines();
    // The tests of loopback.rs run engines.
    let is_below = |name: &&String| !engines.contains(name) && *name != "loopback.rs";
    for part in entries().iter().filter(is_below) {
        assert_eq!(uses(part, &engines), [""; 0], "{part}");
    }
}

#[test]
fn a_use_is_found() {
    assert!(!uses("tcp", &["phase".to_owned()]).is_empty());
}
