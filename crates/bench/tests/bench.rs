//! Runs the program as a user does: measures a real cell, whose values are not judged, and checks that an interrupted
//! run leaves no process and no namespace behind.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::{Programs, Running, is_gone};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(60);

/// A command that runs `bench`, after building the two programs that `bench` runs.
fn bench(args: &[&str]) -> Command {
    Programs::built();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command.args(args);
    command
}

#[test]
fn a_cell_runs_both_sides_in_turn() {
    // iperf3 takes whole seconds alone.
    let output = bench(&["one", "--streams", "1", "--pairs", "2", "--seconds", "1"]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let lines = said.lines().collect::<Vec<_>>();
    assert_eq!(lines.len(), 4, "{said}");
    assert!(lines[3].starts_with("loopback/tcp/direct/1/download/default: iperf3 "), "{said}");
    assert!(lines[3].contains("95 % interval"), "{said}");
}

#[test]
fn a_page_is_written_and_made_again_from_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let output = bench(&["--only", "alone/handshakes", "--pairs", "1", "--out", out]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let page = folder.path().join("README.md");
    let written = std::fs::read_to_string(&page).unwrap();
    assert!(written.contains("| mutual TLS handshakes, both ends here |"), "{written}");
    std::fs::remove_file(&page).unwrap();
    let output = bench(&["--render", "--out", out]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(std::fs::read_to_string(&page).unwrap(), written);
}

/// The path of the installed iperf3.
fn iperf3() -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join("iperf3")).find(|path| path.is_file());
    found.expect("iperf3 is installed: script/test does it")
}

/// Creates a script `iperf3` in `folder` that writes to `fifo` when it starts as a client, and then becomes the real
/// iperf3.
fn wrap(folder: &Path, fifo: &Path) {
    let path = folder.join("iperf3");
    let (fifo, real) = (fifo.display(), iperf3());
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in *--client*) echo begun >'{fifo}' ;; esac\nexec '{}' \"$@\"\n",
        real.display()
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_wish_to_stop_leaves_no_process_and_no_namespace_behind() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("begun");
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    wrap(folder.path(), &fifo);
    // Both ends are held, so that neither this nor the other side waits for an end that never comes.
    let begun = std::fs::File::options().read(true).write(true).open(&fifo).unwrap();

    let is_root = rustix::process::geteuid().is_root();
    let link = if is_root { "veth-1500" } else { "loopback" };
    let path = std::env::var("PATH").unwrap();
    let mut command = bench(&["one", "--pairs", "1", "--seconds", "600", "--link", link]);
    command.env("PATH", format!("{}:{path}", folder.path().display()));
    let mut running = Running::start(command, Stdio::inherit()).unwrap();
    let patience = Timespec::try_from(PATIENCE).unwrap();
    let ready = poll(&mut [PollFd::new(&begun, PollFlags::IN)], Some(&patience)).unwrap();
    assert_eq!(ready, 1, "a client begins");

    let children = running.children();
    // The reflector, iperf3's server and its client.
    assert!(children.len() >= 3, "{children:?}");
    let namespaces = || String::from_utf8(Command::new("ip").args(["netns", "list"]).output().unwrap().stdout).unwrap();
    let own = format!("pp{}-", running.pid().as_raw_nonzero());
    assert!(!is_root || namespaces().contains(&own));
    running.signal(Signal::TERM);
    let status = running.wait(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(130));
    for (pid, name) in children {
        assert!(is_gone(pid, Duration::ZERO), "{name} is still there");
    }
    assert!(!is_root || !namespaces().contains(&own));
}

#[test]
fn cells_are_listed_and_a_name_that_none_has_is_said() {
    let listed = bench(&["--list", "--only", "lane", "--only", "iperf3"]).output().unwrap();
    let names = String::from_utf8(listed.stdout).unwrap();
    assert!(names.lines().count() >= 4 && names.lines().all(|name| name.contains("/iperf3/")), "{names}");
    let none = bench(&["--only", "no such cell"]).output().unwrap();
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&none.stderr).contains("--list"));
}
