//! Tests the reflector's state folder, and to which running reflector a command connects.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::Path;

use lab::{Appliance, Reflector};
use rustix::process::Pid;
use serde_json::{Value, json};

const NOBODY: u32 = 65_534;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn make(path: &Path, mode: u32) {
    fs::create_dir(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Whether the test may give files to another user. Prints SKIPPED if not.
fn may_give_away() -> bool {
    let may = rustix::process::geteuid().is_root();
    if !may {
        eprintln!("SKIPPED: only root can give a folder away");
    }
    may
}

#[test]
fn in_a_volume_that_is_open_to_all_users_the_state_has_a_private_folder() {
    let mut reflector = Reflector::idle(&[]);
    make(&reflector.state(), 0o777);
    fs::write(reflector.state().join("photos"), "").unwrap();
    reflector.start().unwrap_or_else(|error| panic!("it serves: {error:#}\n{}", reflector.log()));
    let private = reflector.state().join("private");
    assert_eq!((mode(&reflector.state()), mode(&private)), (0o777, 0o700));
    for name in ["identity.key", "reflector.db", "audit", "scratch"] {
        assert!(private.join(name).exists() && !reflector.state().join(name).exists(), "{name}");
    }
    // An earlier version worked in the open folder: a command that only reads leaves it there.
    let scratch = reflector.state().join("scratch");
    make(&scratch, 0o700);
    let id = reflector.id();
    assert!(scratch.exists());
    assert_eq!(reflector.status()["endpoint_id"], id.as_str());
    let _paired = Appliance::new().pair(&reflector, reflector.address());
    reflector.end(rustix::process::Signal::KILL);
    reflector.start().unwrap();
    assert_eq!(reflector.id(), id);
    assert_eq!(reflector.status()["peers"], 1);
    assert!(reflector.must(&["audit", "verify"]).contains("whole"));
}

/// Counts the occurrences of `secret` on the stack of a process's main thread.
fn copies_on_the_stack(pid: Pid, secret: &[u8]) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
    let (from, to) = stack.split_once(' ').unwrap().0.split_once('-').unwrap();
    let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
    let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
    fs::File::open(format!("/proc/{pid}/mem")).unwrap().read_exact_at(&mut bytes, from).unwrap();
    bytes.windows(secret.len()).filter(|window| *window == secret).count()
}

#[test]
fn the_identity_key_of_a_running_reflector_is_not_on_its_stack() {
    let mut reflector = Reflector::serve(&[]);
    // A key that was created, then one that was read.
    for _ in 0..2 {
        let file = fs::read_to_string(reflector.state().join("identity.key")).unwrap();
        let digits = file.trim_end().strip_prefix("packetparamedic-key-v1 ").unwrap();
        let seed =
            (0..64).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect::<Vec<_>>();
        assert_eq!(copies_on_the_stack(reflector.process().pid(), &seed), 0);
        reflector.end(rustix::process::Signal::TERM);
        reflector.start().unwrap();
    }
}

#[test]
fn a_used_state_folder_that_other_users_can_enter_is_made_private_with_a_warning() {
    let mut reflector = Reflector::serve(&[]);
    let id = reflector.id();
    reflector.end(rustix::process::Signal::TERM);
    fs::set_permissions(reflector.state(), Permissions::from_mode(0o755)).unwrap();
    reflector.start().unwrap_or_else(|error| panic!("it serves: {error:#}\n{}", reflector.log()));
    assert_eq!(mode(&reflector.state()), 0o700);
    assert!(reflector.log().contains("warning") && reflector.log().contains("0755"), "{}", reflector.log());
    assert_eq!(reflector.id(), id);
}

#[test]
fn folders_of_another_user_are_refused() {
    if !may_give_away() {
        return;
    }
    let mut reflector = Reflector::idle(&[]);
    make(&reflector.state(), 0o700);
    chown(reflector.state(), Some(NOBODY), None).unwrap();
    assert!(reflector.start().is_err(), "it does not serve");
    for said in [reflector.log(), reflector.fails(&["show-id"], 2).concat()] {
        assert!(said.contains(reflector.state().to_str().unwrap()) && said.contains("65534"), "{said}");
    }
    assert_eq!(fs::read_dir(reflector.state()).unwrap().count(), 0, "nothing was written there");
    // Also with a key that belongs to this user.
    let key = Reflector::idle(&[]);
    key.id();
    fs::copy(key.state().join("identity.key"), reflector.state().join("identity.key")).unwrap();
    fs::set_permissions(reflector.state().join("identity.key"), Permissions::from_mode(0o600)).unwrap();
    for command in [&["show-id"][..], &["rotate-identity", "--yes"]] {
        let said = reflector.fails(command, 2).concat();
        assert!(said.contains(reflector.state().to_str().unwrap()) && said.contains("65534"), "{said}");
    }

    let reflector = Reflector::idle(&[]);
    let runtime = reflector.home().join("runtime");
    make(&runtime, 0o755);
    chown(&runtime, Some(NOBODY), None).unwrap();
    let mut reflector = reflector.with_variable("REFLECTOR_RUNTIME_DIR", runtime.to_str().unwrap());
    assert!(reflector.start().is_err(), "it does not serve");
    let said = reflector.fails(&["serve"], 2).concat();
    assert!(said.contains(runtime.to_str().unwrap()) && said.contains("65534"), "{said}");
}

#[test]
fn a_provided_key_is_the_identity_and_is_only_read() {
    let first = Reflector::serve(&[]);
    let key = first.home().join("secret");
    fs::copy(first.state().join("identity.key"), &key).unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o400)).unwrap();
    let mut second = Reflector::idle(&[]).with_variable("REFLECTOR_KEY_FILE", key.to_str().unwrap());
    second.start().unwrap_or_else(|error| panic!("it serves: {error:#}\n{}", second.log()));
    assert_eq!([second.id(), second.status()["endpoint_id"].as_str().unwrap().to_owned()], [first.id(), first.id()]);
    assert!(!second.state().join("identity.key").exists());
    second.end(rustix::process::Signal::TERM);
    let refused = second.fails(&["rotate-identity", "--yes"], 2);
    assert!(refused[1].contains(key.to_str().unwrap()), "{refused:?}");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let refused = second.fails(&["serve"], 2);
    assert!(refused[1].contains("0644"), "{refused:?}");
    fs::remove_file(&key).unwrap();
    let refused = second.fails(&["serve"], 2);
    assert!(refused[1].contains("does not exist"), "{refused:?}");
}

#[test]
fn a_user_other_than_root_and_the_reflectors_gets_only_a_counted_refusal() {
    if !may_give_away() {
        return;
    }
    let reflector = Reflector::serve(&[]);
    let socket = reflector.state().join("admin.sock");
    // The permissions of the folders and of the socket let every user connect: the reflector itself refuses.
    for (path, mode) in [(reflector.home(), 0o755), (reflector.state().as_path(), 0o711), (socket.as_path(), 0o666)] {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    let peer = Appliance::new().id();
    let requests = [json!({ "v": 1, "do": "status" }), json!({ "v": 1, "do": "add_peer", "peer": peer, "name": "x" })];
    let answers = |user: u32| {
        let ask = |request: &Value| {
            let mut stream = UnixStream::connect(&socket).unwrap();
            // A refusal is sent without reading the request.
            let _ = stream.write_all(format!("{request}\n").as_bytes());
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            serde_json::from_str::<Value>(&line).unwrap()["event"].as_str().unwrap().to_owned()
        };
        // Only this thread changes its user.
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(user)).unwrap();
                requests.each_ref().map(ask)
            });
            asking.join().unwrap()
        })
    };
    assert_eq!(answers(NOBODY), ["failed", "failed"]);
    let status = reflector.status();
    assert_eq!((&status["refused"]["admin_user"], &status["peers"]), (&json!(2), &json!(0)), "{status:#}");
    reflector.await_audited("refused", |line| line["reason"] == "admin_user");
    assert_eq!(answers(0), ["status", "done"]);
    assert_eq!(reflector.status()["peers"], 1);
}

#[test]
fn a_command_does_not_talk_to_a_reflector_of_another_user() {
    let Some(theirs) = Reflector::serve_as_nobody(&["127.0.0.1:0"], &[]) else { return };
    assert_eq!(theirs.must(&["health"]), "serving", "its own user may");
    let ours = Reflector::idle(&[]);
    let state = theirs.state();
    for command in [&["status"][..], &["health"], &["pair"], &["peers"]] {
        let lines = ours.fails(&[command, &["--state-dir", state.to_str().unwrap()]].concat(), 1).concat();
        assert!(lines.contains("65534"), "{lines}");
    }
    assert!(theirs.audited("code_opened").is_empty(), "it was asked nothing");
}
