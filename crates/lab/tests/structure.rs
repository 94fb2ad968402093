//! Checks the structure of the workspace: crates depend on each other only as `CRATES` allows, and the files of a crate
//! do not import each other in a circle. Every crate except `paramedic-engines` forbids unsafe code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Every crate with the crates of this workspace that it may depend on, in any kind of dependency. A crate may only
/// depend on crates further down in this list, so there can be no circle. A row may name a crate that does not exist
/// yet.
const CRATES: &[(&str, &[&str])] = &[
    (
        "siege",
        &[
            "lab",
            "fuzz-targets",
            "reflector",
            "paramedic-host",
            "paramedic-report",
            "paramedic-engines",
            "paramedic-link",
        ],
    ),
    (
        "bench",
        &[
            "lab",
            "emulator",
            "test-postgres",
            "paramedic-report",
            "paramedic-iperf3",
            "paramedic-engines",
            "paramedic-link",
        ],
    ),
    ("truth", &["lab", "emulator", "paramedic-report", "paramedic-link"]),
    ("manuals", &["packetparamedic", "reflector"]),
    (
        "fuzz-targets",
        &["packetparamedic", "reflector", "paramedic-host", "paramedic-iperf3", "paramedic-engines", "paramedic-link"],
    ),
    ("lab", &["emulator", "test-postgres", "paramedic-report", "paramedic-link"]),
    ("emulator", &[]),
    (
        "packetparamedic",
        &[
            "paramedic-appliance",
            "paramedic-host",
            "paramedic-iperf3",
            "paramedic-report",
            "paramedic-engines",
            "paramedic-link",
        ],
    ),
    ("reflector", &["paramedic-host", "paramedic-iperf3", "paramedic-report", "paramedic-engines", "paramedic-link"]),
    (
        "paramedic-appliance",
        &[
            "paramedic-host",
            "paramedic-iperf3",
            "paramedic-report",
            "paramedic-engines",
            "paramedic-link",
            "test-postgres",
        ],
    ),
    ("paramedic-host", &["paramedic-iperf3", "paramedic-report", "paramedic-engines", "paramedic-link"]),
    ("paramedic-iperf3", &["paramedic-engines", "paramedic-link"]),
    ("paramedic-engines", &["paramedic-link"]),
    ("paramedic-report", &["paramedic-link"]),
    ("paramedic-link", &[]),
    ("test-postgres", &[]),
];

/// Import circles that still exist: the crate's folder, the modules, and the reason. Delete an entry once its circle is
/// gone; the test fails on entries that are not needed.
const KNOWN_CIRCLES: &[(&str, &[&str], &str)] = &[
    (
        "report",
        &["fold::arrived", "fold::phase", "fold::rates"],
        "whether a direction moved anything is judged from its rates, which are of a phase",
    ),
    (
        "reflector",
        &["sessions::decision", "sessions::limits"],
        "a denial names the limit, and a limit makes the denial",
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Returns the packages of the workspace, each with the names of all its dependencies.
fn packages() -> Vec<(String, Vec<String>)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata = serde_json::from_slice::<Value>(&output.stdout).unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| (name(package), package["dependencies"].as_array().unwrap().iter().map(name).collect()))
        .collect()
}

#[test]
fn crates_depend_only_downwards() {
    let packages = packages();
    let members = packages.iter().map(|(name, _)| name.as_str()).collect::<BTreeSet<_>>();
    for (package, dependencies) in &packages {
        let row = CRATES.iter().find(|(name, _)| name == package);
        let (_, allowed) = row.unwrap_or_else(|| panic!("add the crate {package} to `CRATES`"));
        for dependency in dependencies.iter().map(String::as_str).filter(|name| members.contains(name)) {
            assert!(allowed.contains(&dependency), "{package} must not depend on {dependency}; see ARCHITECTURE.md");
        }
    }
}

#[test]
fn the_table_of_crates_has_no_circle() {
    for (at, (name, allowed)) in CRATES.iter().enumerate() {
        for dependency in *allowed {
            let is_below = CRATES[at + 1..].iter().any(|(below, _)| below == dependency);
            assert!(is_below, "{name} may depend on {dependency}, which is not below it in `CRATES`");
        }
    }
}

#[test]
fn every_crate_except_engines_forbids_unsafe_code() {
    let mut checked = 0;
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let folder = entry.unwrap().path();
        // `paramedic-engines` has `sys`, the only module with unsafe code.
        for file in ["src/lib.rs", "src/main.rs"].map(|file| folder.join(file)) {
            let Ok(text) = fs::read_to_string(&file) else { continue };
            let is_forbidden = text.lines().any(|line| line == "#![forbid(unsafe_code)]");
            assert!(is_forbidden || folder.ends_with("engines"), "{} must forbid unsafe code", file.display());
            checked += 1;
        }
    }
    assert!(checked > 5, "only {checked} files found");
}

/// A module, as the names on the path from the crate's root.
type Module = Vec<String>;

#[test]
fn threads_are_started_only_where_a_refusal_of_the_host_is_explained() {
    let mut checked = 0;
    for krate in ["appliance", "engines", "host", "iperf3", "link", "packetparamedic", "reflector", "report"] {
        let source = root().join("crates").join(krate).join("src");
        let mut texts = BTreeMap::new();
        collect(&source, &source, &mut texts);
        for (module, code) in texts.iter().filter(|(module, _)| *module != &["thread_limit"]) {
            for call in ["thread::spawn(", "thread::Builder", "scope.spawn(", ".spawn_scoped("] {
                assert!(!code.contains(call), "{krate}: {module:?} has {call}; use paramedic_engines::thread_limit");
            }
            checked += code.matches("thread_limit::spawn").count();
        }
    }
    assert!(checked > 10, "{checked} places start threads");
}

#[test]
fn files_do_not_import_each_other_in_a_circle() {
    let mut unused = KNOWN_CIRCLES.to_vec();
    let mut unknown = Vec::new();
    let mut edge_count = 0;
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let graph = imports(&folder.join("src"));
        edge_count += graph.values().map(BTreeSet::len).sum::<usize>();
        for circle in circles(&graph) {
            let circle = circle.iter().map(|module| module.join("::")).collect::<Vec<_>>();
            let is_in = |known: &(&str, &[&str], &str)| {
                known.0 == name && circle.iter().all(|module| known.1.contains(&module.as_str()))
            };
            if !KNOWN_CIRCLES.iter().any(is_in) {
                unknown.push(format!("crates/{name}: {}", circle.join(", ")));
            }
            unused.retain(|known| !is_in(known));
        }
    }
    assert!(edge_count > 100, "only {edge_count} imports found");
    assert!(unknown.is_empty(), "these modules import each other in a circle: {unknown:#?}");
    assert!(unused.is_empty(), "these circles are gone, delete them from `KNOWN_CIRCLES`: {unused:?}");
}

#[test]
fn a_circle_through_a_re_export_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    fs::create_dir(folder.path().join("room")).unwrap();
    write("lib.rs", "mod room;\n");
    write("room/mod.rs", "mod a;\nmod b;\npub use a::A;\nfn run() { b::run() }\n");
    write("room/a.rs", "use super::b::{self, B};\npub struct A;\n");
    write("room/b.rs", "// use super::A;\npub struct B;\n#[cfg(test)]\nmod tests {\n    use super::super::A;\n}\n");
    assert_eq!(circles(&imports(folder.path())), Vec::<Vec<Module>>::new());
    write("room/b.rs", "use super::{A};\npub struct B;\n");
    let modules = |names: &[&str]| names.iter().map(|name| vec!["room".to_owned(), (*name).to_owned()]).collect();
    assert_eq!(circles(&imports(folder.path())), vec![modules(&["a", "b"])] as Vec<Vec<Module>>);
}

/// Returns which modules each module imports, by `crate::`, `super::`, `self::` or the name of a child. Tests do not
/// count. A path through a re-export counts as an import of the module that defines the name. Imports from a module's
/// own descendants do not count, so that a folder's `mod.rs` can dispatch to its files.
fn imports(source: &Path) -> BTreeMap<Module, BTreeSet<Module>> {
    let mut texts = BTreeMap::new();
    collect(source, source, &mut texts);
    let mut re_exports = BTreeMap::<(Module, String), Module>::new();
    for (module, text) in &texts {
        for path in text.split("use ").skip(1).zip(text.split("use ")).filter_map(|(tree, before)| {
            let is_public = before.trim_end().rsplit(['\n', ';', '}']).next().unwrap().trim_start().starts_with("pub");
            is_public.then(|| paths(tree))
        }) {
            for path in path.into_iter().filter(|path| is_local(path, module, &texts)) {
                re_exports.insert((module.clone(), path.last().unwrap().clone()), path);
            }
        }
    }
    let mut graph = BTreeMap::new();
    for (module, text) in &texts {
        let mut imported = BTreeSet::new();
        for path in all_paths(text).into_iter().filter(|path| is_local(path, module, &texts)) {
            let target = resolve(module, &path, &texts, &re_exports, 8);
            if !target.starts_with(module) {
                imported.insert(target);
            }
        }
        graph.insert(module.clone(), imported);
    }
    graph
}

/// Reads the source files below `folder` into `texts`, without comments, strings and tests.
fn collect(source: &Path, folder: &Path, texts: &mut BTreeMap<Module, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(source, &path, texts);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") || path.file_stem().unwrap() == "tests" {
            continue;
        }
        let relative = path.strip_prefix(source).unwrap().with_extension("");
        let mut module = relative.iter().map(|part| part.to_str().unwrap().to_owned()).collect::<Module>();
        let is_root = module == ["lib"] || module == ["main"] && !source.join("lib.rs").exists();
        if is_root || module.last().is_some_and(|name| name == "mod") {
            module.pop();
        }
        texts.insert(module, code_of(&fs::read_to_string(&path).unwrap()));
    }
}

/// Returns source text without comments, string literals, and anything after the beginning of the inline module of
/// tests.
fn code_of(text: &str) -> String {
    let is_inline_tests = |at: &usize| text[*at..].lines().nth(1).is_some_and(|line| line.ends_with('{'));
    let end = text.match_indices("\n#[cfg(test)]\n").map(|(at, _)| at + 1).find(is_inline_tests).unwrap_or(text.len());
    let mut code = String::new();
    for line in text[..end].lines() {
        // A quote inside a literal ends it too early or too late, but only for the rest of the line.
        let unquoted = line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"");
        code.push_str(unquoted.split("//").next().unwrap());
        code.push('\n');
    }
    code
}

fn is_identifier(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether the path begins at the crate's root, at `module`, at its parent, or with a child of `module`.
fn is_local(path: &[String], module: &Module, texts: &BTreeMap<Module, String>) -> bool {
    let Some(first) = path.first() else { return false };
    ["crate", "self", "super"].contains(&first.as_str())
        || texts.contains_key(&[&module[..], std::slice::from_ref(first)].concat())
}

/// Returns the paths with more than one segment in a source text. Expands braces, and leaves out the paths of
/// re-exports.
fn all_paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("::") {
        let before = code[..at].trim_end();
        let first = before.rsplit(|c: char| !is_identifier(c)).next().unwrap();
        let lead = before[..before.len() - first.len()].trim_end();
        // The middle of a path was found with its beginning.
        if first.is_empty() || lead.ends_with("::") {
            continue;
        }
        let statement = lead.rsplit(['\n', ';', '}']).next().unwrap().trim();
        if statement.starts_with("pub") && statement.ends_with("use") {
            continue;
        }
        found.extend(paths(&code[before.len() - first.len()..]));
    }
    found
}

/// Returns the paths of the use tree at the beginning of `text`.
fn paths(text: &str) -> Vec<Vec<String>> {
    tree(text.trim_start()).0
}

fn tree(text: &str) -> (Vec<Vec<String>>, &str) {
    if let Some(mut rest) = text.strip_prefix('{') {
        let mut found = Vec::new();
        loop {
            rest = rest.trim_start().trim_start_matches(',').trim_start();
            if rest.is_empty() || rest.starts_with('}') {
                return (found, rest.get(1..).unwrap_or_default());
            }
            let (paths, after) = tree(rest);
            if after.len() == rest.len() {
                return (found, rest);
            }
            found.extend(paths);
            rest = after;
        }
    }
    let end = text.find(|c: char| !is_identifier(c)).unwrap_or(text.len());
    let (first, rest) = text.split_at(end);
    if first.is_empty() {
        // `*` in a use tree; anything else is not part of a path.
        return (vec![vec![]], text.strip_prefix('*').unwrap_or(text));
    }
    let (below, rest) = match rest.trim_start().strip_prefix("::") {
        Some(below) => tree(below.trim_start()),
        None => (vec![vec![]], rest),
    };
    let rest = match rest.strip_prefix(" as ") {
        Some(alias) => alias.trim_start_matches(is_identifier),
        None => rest,
    };
    (below.into_iter().map(|path| [vec![first.to_owned()], path].concat()).collect(), rest)
}

/// Returns the module to which `path` leads from `module`. Follows at most `hops` re-exports.
fn resolve(
    module: &Module,
    path: &[String],
    texts: &BTreeMap<Module, String>,
    re_exports: &BTreeMap<(Module, String), Module>,
    hops: usize,
) -> Module {
    let mut current = if path[0] == "crate" { Vec::new() } else { module.clone() };
    for (at, segment) in path.iter().enumerate() {
        let child = [&current[..], std::slice::from_ref(segment)].concat();
        match segment.as_str() {
            "crate" | "self" => {}
            "super" => {
                current.pop();
            }
            _ if texts.contains_key(&child) => current = child,
            _ => {
                return match re_exports.get(&(current.clone(), segment.clone())) {
                    Some(target) if hops > 0 => {
                        let target = [&target[..], &path[at + 1..]].concat();
                        resolve(&current, &target, texts, re_exports, hops - 1)
                    }
                    _ => current,
                };
            }
        }
    }
    current
}

/// Returns the sets of modules that import each other in a circle.
fn circles(graph: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<Vec<Module>> {
    let reach = |from: &Module| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(module) = next.pop() {
            for target in graph.get(module).into_iter().flatten() {
                if seen.insert(target.clone()) {
                    next.push(target);
                }
            }
        }
        seen
    };
    let reached = graph.keys().map(|module| (module, reach(module))).collect::<BTreeMap<_, _>>();
    let mut found = BTreeSet::new();
    for (module, targets) in &reached {
        let circle = targets.iter().filter(|target| reached.get(target).is_some_and(|back| back.contains(*module)));
        let circle = circle.cloned().collect::<Vec<_>>();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

/// The size limit of files in the repository, in bytes. The largest files are a page of figures and pictures.
const LARGEST_FILE: u64 = 1 << 20;

#[test]
fn the_repository_has_no_state_folder_and_no_large_file() {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output().unwrap();
    if !listed.status.success() {
        eprintln!("SKIPPED: not a git repository");
        return;
    }
    let files = String::from_utf8(listed.stdout).unwrap();
    for file in files.split('\0').filter(|file| !file.is_empty()) {
        // A program that takes an option for a folder leaves one of that name.
        assert!(!file.starts_with('-'), "{file}");
        assert!(!file.ends_with("identity.key") && !file.ends_with("packetparamedic.db"), "{file}");
        let size = fs::symlink_metadata(root().join(file)).map_or(0, |metadata| metadata.len());
        assert!(size <= LARGEST_FILE, "{file}: {size} bytes");
    }
}
