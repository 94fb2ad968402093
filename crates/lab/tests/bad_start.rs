//! Conditions under which a reflector cannot start: in each, it prints a three-line error, exits with the documented
//! code, and loses no data.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::{Appliance, Outcome, Reflector, Running};

const PATIENCE: Duration = Duration::from_secs(30);
const NOBODY: u32 = 65_534;
const SERVE: &[&str] = &["serve", "--listen", "127.0.0.1:0"];

/// Whether the test runs as root. Prints SKIPPED if not.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED: mounts, namespaces and other users need root");
    }
    is_root
}

/// Runs a shell script, and then a command of `reflector`, in new mount and network namespaces. In the script, `$1` is
/// `folder`.
fn after(script: &str, folder: &Path, reflector: &Reflector, args: &[&str]) -> Outcome {
    let plain = reflector.command(args);
    let script = format!("set -e; ip link set lo up; {script}; shift; exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "sh", "-c", &script, "sh"]).arg(folder).arg(plain.get_program());
    command.args(plain.get_args()).env_clear();
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null()).output().unwrap().into()
}

/// Returns the path and the content of each file below a folder.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => all.extend(contents(&entry.path())),
            kind if kind.is_file() => {
                all.push((entry.path().display().to_string(), fs::read(entry.path()).unwrap()));
            }
            _ => {}
        }
    }
    all.sort();
    all
}

#[test]
fn a_read_only_or_too_small_file_system_is_an_error_of_the_folder() {
    if !is_root() {
        return;
    }
    let mut reflector = Reflector::serve(&[]);
    let _paired = Appliance::new().pair(&reflector, reflector.address());
    reflector.end(rustix::process::Signal::TERM);
    let state = reflector.state();
    let before = contents(&state);
    let read_only = r#"mount --bind "$1" "$1"; mount -o remount,ro,bind "$1""#;
    let outcome = after(read_only, &state, &reflector, SERVE);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (2, ""), "{outcome:?}");
    let said = outcome.three_lines().concat();
    assert!(said.contains(state.to_str().unwrap()), "{said}");
    assert_eq!(contents(&state), before, "nothing was changed");

    // The volume is missing, and the root file system is read-only.
    let empty = Reflector::idle(&[]);
    let outcome = after(read_only, empty.home(), &empty, SERVE);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (2, ""), "{outcome:?}");
    assert!(outcome.three_lines().concat().contains(empty.state().to_str().unwrap()), "{outcome:?}");

    // A runtime folder that has no room for a socket, one that is read-only, and a path that no socket can have.
    let runtime = reflector.home().join("run");
    fs::create_dir(&runtime).unwrap();
    let long = reflector.home().join("r".repeat(120));
    let tiny = r#"mount -t tmpfs -o nr_inodes=1 tmpfs "$1""#;
    for (script, folder) in [(tiny, &runtime), (read_only, &runtime), ("true", &long)] {
        let args = [SERVE, &["--runtime-dir", folder.to_str().unwrap()]].concat();
        let outcome = after(script, folder, &reflector, &args);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (2, ""), "{script}: {outcome:?}");
        let [what, because, advice] = outcome.three_lines();
        assert_eq!(what, "the runtime folder cannot be used", "{outcome:?}");
        assert!(because.contains(folder.to_str().unwrap()) && advice.contains("--runtime-dir"), "{outcome:?}");
    }
    reflector.start().unwrap_or_else(|error| panic!("it serves again: {error:#}\n{}", reflector.log()));
    assert_eq!(reflector.status()["peers"], 1);
    reflector.must(&["audit", "verify"]);
}

#[test]
fn a_key_file_of_another_user_is_refused_and_not_changed() {
    if !is_root() {
        return;
    }
    let reflector = Reflector::idle(&[]);
    reflector.id();
    let key = reflector.state().join("identity.key");
    chown(&key, Some(NOBODY), None).unwrap();
    let before = fs::read(&key).unwrap();
    for command in [SERVE, &["show-id"]] {
        let said = reflector.fails(command, 2).concat();
        assert!(said.contains(key.to_str().unwrap()) && said.contains("65534"), "{said}");
    }
    assert_eq!(fs::read(&key).unwrap(), before);
}

#[test]
fn without_ipv6_an_ipv4_address_is_served_and_an_ipv6_address_is_an_error() {
    if !is_root() {
        return;
    }
    let reflector = Reflector::idle(&[]);
    let without =
        "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6";
    let outcome = after(without, reflector.home(), &reflector, &["serve", "--listen", "[::1]:0"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (1, ""), "{outcome:?}");
    assert!(outcome.three_lines()[1].contains("no interface of this host has the address ::1"), "{outcome:?}");
    // The shell ends the reflector once it serves.
    let serves = format!(
        "{without}; mkfifo \"$1/out\"; \"$2\" serve --listen 0 >\"$1/out\" & exec 3<\"$1/out\"; read -r line <&3; echo \"$line\"; kill $!; wait $!; exit 0"
    );
    let outcome = after(&serves, reflector.home(), &reflector, &[]);
    assert!(outcome.stdout.starts_with("listening on 0.0.0.0:"), "{outcome:?}");
}

#[test]
fn a_mistyped_variable_ends_the_program_with_a_suggestion() {
    let mistyped = |variable: &str, nearest: Option<&str>| {
        let reflector = Reflector::idle(&[]).with_variable(variable, "3");
        for command in [SERVE, &["config", "check"], &["status"]] {
            let [what, because, advice] = reflector.fails(command, 2);
            assert_eq!(what, "the configuration is not valid");
            let suggestion = nearest.map_or_else(String::new, |nearest| format!("; did you mean \"{nearest}\"?"));
            assert_eq!(because, format!("unknown environment variable {variable}{suggestion}"));
            assert!(advice.contains("reflector config template"), "{advice}");
        }
        assert!(!reflector.state().exists(), "nothing was created");
    };
    mistyped("REFLECTOR_MAX_QEUE", Some("REFLECTOR_MAX_QUEUE"));
    mistyped("REFLECTOR_MAX_BYTES_PERDAY", Some("REFLECTOR_MAX_BYTES_PER_DAY"));
    mistyped("REFLECTOR_XYZZY", None);
    // An empty variable is not set, and those of container managers are none of ours.
    let around =
        [("REFLECTOR_MAX_QEUE", ""), ("REFLECTOR_PORT", "tcp://10.0.0.11:4000"), ("REFLECTOR_SERVICE_HOST", "x")];
    let reflector =
        around.iter().fold(Reflector::idle(&[]), |reflector, (name, value)| reflector.with_variable(name, value));
    reflector.must(&["config", "check"]);

    let appliance = Appliance::new();
    let run = |variable: &str, value: &str| {
        Outcome::from(appliance.command(&["speed-test", "--json"]).env(variable, value).output().unwrap())
    };
    let outcome = run("PACKETPARAMEDIC_STREAM", "3");
    let error = outcome.error().error;
    assert_eq!((outcome.code, error.code.as_str()), (2, "bad_config"), "{outcome:?}");
    assert!(error.because.ends_with("did you mean \"PACKETPARAMEDIC_STREAMS\"?"), "{outcome:?}");
    for (secret, value) in
        [("PACKETPARAMEDIC_CODE", "x"), ("PACKETPARAMEDIC_IPERF3_PASSWORD", "x"), ("REFLECTOR_X", "x")]
    {
        assert_ne!(run(secret, value).error().error.code, "bad_config", "{secret}");
    }
}

#[test]
fn of_two_reflectors_that_start_on_one_folder_at_once_one_serves() {
    let reflector = Reflector::idle(&[]);
    // The commands differ in their runtime folder, as those of two containers with one volume.
    let both = [0, 1].map(|number| {
        let runtime = reflector.home().join(format!("run-{number}"));
        let args = [SERVE, &["--runtime-dir", runtime.to_str().unwrap()]].concat();
        let log = fs::File::create(reflector.home().join(format!("log-{number}"))).unwrap();
        Running::start(reflector.command(&args), Stdio::from(log)).unwrap()
    });
    let serves = both
        .iter()
        .map(|one| one.line(PATIENCE).is_ok_and(|line| line.starts_with("listening on ")))
        .collect::<Vec<_>>();
    assert_eq!(serves.iter().filter(|serves| **serves).count(), 1, "{serves:?}");
    for (number, (mut one, serves)) in both.into_iter().zip(serves).enumerate() {
        if serves {
            one.signal(rustix::process::Signal::TERM);
        }
        let code = one.wait(PATIENCE).unwrap().code();
        let log = fs::read_to_string(reflector.home().join(format!("log-{number}"))).unwrap();
        if serves {
            assert_eq!(code, Some(0), "{log}");
        } else {
            assert_eq!(code, Some(1), "{log}");
            assert!(log.contains("because: another reflector is running with the state folder"), "{log}");
        }
    }
    reflector.must(&["audit", "verify"]);
    assert_eq!(reflector.audited("started").len(), 1);
}
