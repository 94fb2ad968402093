//! Tests that both programs print their version, and the commit that they were built from if the build knows it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::{Appliance, Programs, Reflector};
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Returns what `--version` prints, without the program's name.
fn version_of(program: &str) -> String {
    let output = Command::new(Programs::built().path(program)).arg("--version").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.strip_prefix(&format!("{program} ")).unwrap_or_else(|| panic!("{text}")).trim().to_owned()
}

#[test]
fn the_versions_of_both_programs_are_in_the_result_the_report_and_the_status() {
    let [theirs, ours] = ["reflector", "packetparamedic"].map(version_of);
    assert_eq!(theirs, ours, "they were built together");
    let version = ours.split(' ').next().unwrap();
    assert!(version.split('.').all(|part| part.parse::<u32>().is_ok()), "{ours}");
    assert!(
        fs::read_to_string(root().join("CHANGELOG.md")).unwrap().contains(&format!("\n## [{version}]")),
        "{version}"
    );

    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let test = ["-t", "0.3", "--idle", "0.1", "--download"];
    let result = appliance.speed_test(&test).result();
    assert_eq!(result.appliance.version, version);
    assert_eq!(result.reflector.unwrap().version.as_str(), version);
    let report = appliance.run(&[&["speed-test", "-v"], &test[..]].concat()).stdout;
    for end in ["Appliance", "Reflector"] {
        let line = report.lines().find(|line| line.starts_with(end) && line.contains("version"));
        assert!(line.is_some_and(|line| line.ends_with(version)), "{report}");
    }
    assert_eq!(reflector.status()["version"], version);
}

/// The compiled build script of `paramedic-host`, in a temporary folder.
struct BuildScript {
    kept: TempDir,
}

impl BuildScript {
    fn compiled() -> Self {
        let kept = tempfile::tempdir().unwrap();
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let script = root().join("crates/host/build.rs");
        let mut command = Command::new(rustc);
        command.args(["--edition", "2024", "-o"]).arg(kept.path().join("script")).arg(script);
        assert!(command.current_dir(root()).status().unwrap().success());
        Self { kept }
    }

    /// Creates a workspace at `place` in the temporary folder, with the files that the script reads.
    fn workspace(&self, place: &str) -> PathBuf {
        let workspace = self.kept.path().join(place);
        fs::create_dir_all(workspace.join("crates/host")).unwrap();
        for file in ["crates/host/commit.txt", "crates/host/build.rs", ".gitattributes"] {
            fs::copy(root().join(file), workspace.join(file)).unwrap();
        }
        workspace
    }

    /// Runs the script in a workspace, where it must succeed. Returns the commit and the date that it passes to cargo;
    /// `None` for each that it does not find.
    fn finds(&self, workspace: &Path, environment: &[(&str, &str)]) -> (Option<String>, Option<String>) {
        let text = self.run(workspace, environment);
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("cargo:rustc-env={name}=")));
            line.map(str::to_owned)
        };
        (value("BUILD_COMMIT"), value("BUILD_COMMIT_DATE"))
    }

    fn run(&self, workspace: &Path, environment: &[(&str, &str)]) -> String {
        let host = workspace.join("crates/host");
        let mut command = Command::new(self.kept.path().join("script"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("PROFILE", "release");
        command.env("CARGO_MANIFEST_DIR", &host).envs(environment.iter().copied()).current_dir(&host);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn git(folder: &Path, args: &[&str]) -> String {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=test", "-c", "user.email=test@example.org"]).args(args).current_dir(folder);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", folder);
    let output = command.env("GIT_COMMITTER_DATE", "2026-03-01T00:30:00+05:00").output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_commit_comes_from_the_environment_the_archive_or_git_and_a_build_without_any_succeeds() {
    let script = BuildScript::compiled();
    let none = (None, None);
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let short = Some(commit[..12].to_owned());
    let plain = script.workspace("plain");
    assert_eq!(script.finds(&plain, &[]), none);
    assert_eq!(script.finds(&plain, &[("SOURCE_DATE_EPOCH", "1767225600")]), none, "a date is no commit");
    assert_eq!(script.finds(&plain, &[("SOURCE_COMMIT", commit)]), (short.clone(), None));
    for (epoch, date) in [("1767225600", "2026-01-01"), ("951782400", "2000-02-29"), ("0", "1970-01-01")] {
        let named = [("SOURCE_COMMIT", commit), ("SOURCE_DATE_EPOCH", epoch)];
        assert_eq!(script.finds(&plain, &named), (short.clone(), Some(date.to_owned())));
    }
    let garbage = [("SOURCE_COMMIT", "main; rm -rf /"), ("SOURCE_DATE_EPOCH", "yesterday")];
    assert_eq!(script.finds(&plain, &garbage), none);

    // Further east it was the day after.
    let date = Some("2026-02-28".to_owned());
    let checkout = script.workspace("checkout");
    git(&checkout, &["init", "--quiet"]);
    git(&checkout, &["add", "."]);
    git(&checkout, &["commit", "--quiet", "-m", "first"]);
    let first = git(&checkout, &["rev-parse", "HEAD"]);
    let found = (Some(first[..12].to_owned()), date.clone());
    assert_eq!(script.finds(&checkout, &[]), found);
    assert_eq!(script.finds(&checkout, &[("PROFILE", "debug")]), none, "a commit must not compile everything again");
    assert_eq!(script.finds(&checkout, &[("PATH", "/nonexistent")]), none, "there is no git");

    // Cargo runs the script again after a commit, and not otherwise: every watched file exists, and one changed.
    let watched = || {
        let text = script.run(&checkout, &[]);
        let paths = text.lines().filter_map(|line| line.strip_prefix("cargo:rerun-if-changed="));
        let paths = paths.map(|path| checkout.join("crates/host").join(path)).collect::<Vec<_>>();
        paths
            .into_iter()
            .map(|path| fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}")))
            .collect::<Vec<_>>()
    };
    let before = watched();
    assert_eq!(before, watched());
    git(&checkout, &["commit", "--quiet", "--allow-empty", "-m", "second"]);
    assert_ne!(before, watched());
    assert_ne!(script.finds(&checkout, &[]), found);
    // In a further working tree too.
    git(&checkout, &["worktree", "add", "--quiet", "../tree", &first]);
    assert_eq!(script.finds(&script.kept.path().join("tree"), &[]), found);

    // An archive names its commit; a folder inside another checkout does not name that one.
    let archive = script.kept.path().join("archive");
    fs::create_dir(&archive).unwrap();
    git(&checkout, &["archive", "--output", "../archive.tar", &first]);
    let unpacked = Command::new("tar").args(["-x", "-f", "../archive.tar"]).current_dir(&archive).status().unwrap();
    assert!(unpacked.success());
    assert_eq!(script.finds(&archive, &[]), found);
    let inside = script.workspace("checkout/vendor/packetparamedic");
    assert_eq!(script.finds(&inside, &[]), none);
}
