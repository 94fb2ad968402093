//! Tests the appliance's state folder: key and database are always in a folder that only its user can enter, and the
//! appliance still finds existing state in an open folder.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::{Appliance, Outcome, Programs};
use tempfile::TempDir;

/// The id of a user other than root and `nobody`.
const ANOTHER: u32 = 12_345;

fn folder(mode: u32) -> (TempDir, PathBuf) {
    let kept = tempfile::tempdir().unwrap();
    fs::set_permissions(kept.path(), Permissions::from_mode(0o755)).unwrap();
    let path = kept.path().join("state");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    (kept, path)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn show_id(state: &Path) -> Outcome {
    Appliance::new().run(&["--state-dir", state.to_str().unwrap(), "show-id"])
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names = entries.collect::<Vec<_>>();
    names.sort();
    names
}

fn is_root() -> bool {
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !is_root {
        eprintln!("SKIPPED: other users and mounts need root");
    }
    is_root
}

#[test]
fn in_a_folder_that_other_users_can_enter_the_state_is_private() {
    let (_kept, state) = folder(0o777);
    fs::write(state.join("photos"), "").unwrap();
    let first = show_id(&state);
    assert_eq!(first.code, 0, "{first:?}");
    assert!(first.stderr.contains("private"), "no warning: {first:?}");
    assert_eq!(names(&state), ["photos", "private"]);
    assert_eq!((mode(&state), mode(&state.join("private"))), (0o777, 0o700));
    let second = show_id(&state);
    assert_eq!((&second.stdout, second.stderr.as_str()), (&first.stdout, ""), "the warning is printed once");
    let appliance = Appliance::new();
    let history = appliance.run(&["--state-dir", state.to_str().unwrap(), "history", "--json"]);
    assert_eq!(history.code, 0, "{history:?}");
    assert_eq!(names(&state), ["photos", "private"]);
}

#[test]
fn existing_state_keeps_its_identity_and_pairings() {
    for (open_to, other) in [(0o755, None), (0o777, Some("photos"))] {
        let (_kept, state) = folder(0o700);
        let path = state.to_str().unwrap();
        let id = show_id(&state).stdout;
        let reflector = lab::bad_reflectors::Script {
            name: "honest".to_owned(),
            stage: lab::bad_reflectors::Stage::First,
            act: lab::bad_reflectors::Act::Silence,
            more: &[],
            within: std::time::Duration::ZERO,
            exit: None,
        }
        .reflector(Default::default());
        let (address, endpoint) = (reflector.address.to_string(), reflector.id.to_string());
        let pair = ["--state-dir", path, "pair-reflector", "--peer", &address, "--endpoint-id", &endpoint];
        assert_eq!(Appliance::new().run(&pair).code, 0);
        fs::set_permissions(&state, Permissions::from_mode(open_to)).unwrap();
        if let Some(other) = other {
            fs::write(state.join(other), "").unwrap();
        }
        let after = show_id(&state);
        assert_eq!(after.stdout, id, "{open_to:o}: {after:?}");
        let known = Appliance::new().run(&["--state-dir", path, "reflectors", "--json"]);
        assert!(known.stdout.contains(&endpoint), "{open_to:o}: {known:?}");
        let private = if other.is_some() { state.join("private") } else { state.clone() };
        assert_eq!(mode(&private), 0o700, "{open_to:o}");
        assert!(private.join("identity.key").exists() && private.join("packetparamedic.db").exists());
    }
}

#[test]
fn a_folder_of_another_user_is_refused() {
    if !is_root() {
        return;
    }
    let (_kept, state) = folder(0o700);
    chown(&state, Some(ANOTHER), None).unwrap();
    let path = state.to_str().unwrap();
    Appliance::new().fails(&["--state-dir", path, "speed-test"], 2, "state_dir_foreign");
    Appliance::new().fails(&["--state-dir", path, "history"], 2, "state_dir_foreign");
    assert!(names(&state).is_empty());
    // Also if the private folder belongs to another user.
    let (_kept, state) = folder(0o777);
    fs::write(state.join("photos"), "").unwrap();
    fs::create_dir(state.join("private")).unwrap();
    chown(state.join("private"), Some(ANOTHER), None).unwrap();
    Appliance::new().fails(&["--state-dir", state.to_str().unwrap(), "history"], 2, "state_dir_foreign");
}

#[test]
fn files_of_another_user_in_an_open_folder_are_not_used() {
    if !is_root() {
        return;
    }
    let (_kept, state) = folder(0o1777);
    let planted = Appliance::new();
    planted.id();
    for name in ["identity.key", "packetparamedic.db"] {
        let there = state.join(name);
        fs::write(&there, fs::read(planted.state().join("identity.key")).unwrap()).unwrap();
        fs::set_permissions(&there, Permissions::from_mode(0o600)).unwrap();
        chown(&there, Some(ANOTHER), None).unwrap();
    }
    let shown = show_id(&state);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert_ne!(shown.stdout.trim(), planted.id());
}

#[test]
fn in_a_mount_that_is_open_to_all_users_the_state_has_a_private_folder() {
    if !is_root() {
        return;
    }
    // Like an emptyDir of Kubernetes for an unprivileged user.
    let (_kept, state) = folder(0o755);
    let program = Programs::built().path("packetparamedic");
    let script = r#"
        set -e
        mount -t tmpfs -o mode=777 tmpfs "$1"
        setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all env -i HOME=/nowhere "$2" --state-dir "$1" show-id
        stat -c '%a %u' "$1" "$1/private" "$1/private/identity.key""#;
    let mut command = Command::new("unshare");
    // A copy, because other users may be unable to read the build's folder.
    let copy = state.with_file_name("packetparamedic");
    fs::copy(program, &copy).unwrap();
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(&state).arg(&copy);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let lines = said.lines().collect::<Vec<_>>();
    assert!(lines[0].starts_with("PP-"), "{lines:?}");
    assert_eq!(lines[1..], ["777 0", "700 65534", "600 65534"]);
}
