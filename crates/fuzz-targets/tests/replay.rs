//! Runs every fuzz target on its seeds and past crashes with the stable compiler. Checks that the folders `fuzz/`,
//! `seeds/` and `crashes/` contain the same targets as the list `TARGETS`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use fuzz_targets::{Mutator, Seed, TARGETS, crashes, find, folder, seeds};

/// Runs a target on one input. If the target panics, the test fails with the name of the input.
fn play(run: fn(&[u8]), target: &str, seed: &Seed) {
    let played = std::panic::catch_unwind(|| run(&seed.bytes));
    assert!(played.is_ok(), "the target {target} fails on {}", seed.name);
}

#[test]
fn every_seed_is_played() {
    for target in TARGETS {
        let seeds = seeds(target);
        assert!(!seeds.is_empty(), "{} has no seed", target.name);
        let names = seeds.iter().map(|seed| &*seed.name).collect::<BTreeSet<_>>();
        assert_eq!(names.len(), seeds.len(), "two seeds of {} have one name", target.name);
        seeds.iter().for_each(|seed| play(target.run, target.name, seed));
        // Every target must accept an empty input.
        play(target.run, target.name, &Seed { name: "nothing".to_owned(), bytes: Vec::new() });
    }
}

#[test]
fn every_past_crash_is_played() {
    for target in TARGETS {
        crashes(target).iter().for_each(|crash| play(target.run, target.name, crash));
    }
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|why| panic!("{}: {why}", folder.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn every_stored_folder_belongs_to_a_target() {
    for kind in ["seeds", "crashes"] {
        for name in names_in(&folder(kind)).iter().filter(|name| *name != "README.md") {
            assert!(find(name).is_some(), "there is no target for {kind}/{name}");
        }
    }
}

#[test]
fn every_target_is_built_for_libfuzzer() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let expected = TARGETS.iter().map(|target| format!("{}.rs", target.name)).collect::<BTreeSet<_>>();
    assert_eq!(names_in(&fuzz.join("fuzz_targets")), expected);
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for target in TARGETS {
        let name = target.name;
        assert!(
            manifest.contains(&format!("[[bin]]\nname = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"\n")),
            "{name}"
        );
        let file = fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(file.contains(&format!("fuzz_targets::{name}(input)")), "{name}");
    }
}

#[test]
fn one_start_gives_the_same_inputs_and_another_start_others() {
    let seed: &[&[u8]] = &[b"a seed", b"and another one"];
    let inputs = |start| {
        let mut mutator = Mutator::new(start);
        (0..100).map(|_| mutator.change(seed)).collect::<Vec<_>>()
    };
    assert_eq!(inputs(7), inputs(7));
    assert_ne!(inputs(7), inputs(8));
    assert!(inputs(7).iter().collect::<BTreeSet<_>>().len() > 80, "the inputs differ");
}
