//! Which folder of the engines may know which: an engine knows no other engine, and what stands below the engines knows
//! none of them.

use std::path::{Path, PathBuf};

const ENGINES: [&str; 3] = ["tcp", "udp", "echo"];
const BELOW: [&str; 5] = ["phase", "udp_port", "sys", "clock.rs", "socket.rs"];

fn sources(at: &Path) -> Vec<PathBuf> {
    if at.is_file() {
        return vec![at.to_owned()];
    }
    let entries = std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| sources(&path)).filter(|path| path.extension().is_some_and(|it| it == "rs")).collect()
}

/// The lines below `folder` that name one of `others` by its path.
fn mentions(folder: &str, others: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for path in sources(&root.join(folder)) {
        let text = std::fs::read_to_string(&path).unwrap();
        let names = |line: &&str| others.iter().any(|other| line.contains(&format!("crate::{other}::")));
        found.extend(text.lines().filter(names).map(|line| format!("{}: {line}", path.display())));
    }
    found
}

#[test]
fn no_engine_knows_another() {
    for engine in ENGINES {
        let others = ENGINES.into_iter().filter(|other| *other != engine).collect::<Vec<_>>();
        assert_eq!(mentions(engine, &others), [""; 0], "{engine}");
    }
}

#[test]
fn what_stands_below_the_engines_knows_none() {
    for below in BELOW {
        assert_eq!(mentions(below, &ENGINES), [""; 0], "{below}");
    }
}

#[test]
fn a_mention_is_found() {
    assert!(!mentions("tcp", &["phase"]).is_empty());
}
