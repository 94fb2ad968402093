//! The audit log of a real reflector: disk faults during the start, deleted files, and the size limit.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::{Appliance, Reflector, Running};
use rustix::fs::{CWD, FileType, mknodat};
use rustix::process::Signal;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// Starts `reflector serve` under strace, which injects a fault. strace runs as the grandchild, so the returned process
/// is the reflector itself.
fn serve_with_fault(reflector: &Reflector, inject: &str) -> Running {
    let serve = reflector.command(&["serve"]);
    let mut traced = Command::new("strace");
    traced.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", inject, "--"]);
    traced.arg(serve.get_program()).args(serve.get_args()).env_clear();
    traced.envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
    traced.env("REFLECTOR_LISTEN", "127.0.0.1:0");
    Running::start(traced, Stdio::null()).expect("strace")
}

fn may_trace() -> bool {
    let probe = Command::new("strace").args(["-D", "-qq", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    let may = probe.is_ok_and(|status| status.success());
    if !may {
        eprintln!("SKIPPED: faults are injected by strace, which is missing or lacks the rights");
    }
    may
}

#[test]
fn after_a_failed_sync_during_a_start_the_next_start_serves() {
    if !may_trace() {
        return;
    }
    let mut reflector = Reflector::idle(&[]);
    reflector.start().unwrap();
    reflector.process().kill();
    let mut has_served = 0;
    // strace counts the calls of each thread. The third sync of SQLite's thread stores the audit head. A disk that
    // keeps failing also prevents the cleanup of SQLite at exit.
    for failing in ["1", "2", "3", "4", "1+", "2+", "3+", "4+"] {
        let mut faulty = serve_with_fault(&reflector, &format!("inject=fsync,fdatasync:error=EIO:when={failing}"));
        // It either serves or exits.
        has_served += u32::from(faulty.line(PATIENCE).is_ok());
        faulty.kill();
        reflector.start().unwrap_or_else(|error| panic!("fault {failing}: {error:#}\n{}", reflector.log()));
        reflector.process().kill();
        reflector.must(&["audit", "verify"]);
    }
    assert!(has_served > 0, "the later faults hit a serving reflector");
    let seqs = reflector.audit().iter().map(|line| line["seq"].as_u64().unwrap()).collect::<Vec<_>>();
    assert!(seqs.iter().copied().eq(1..=seqs.len() as u64), "{seqs:?}");
}

#[test]
fn after_a_deleted_log_verify_reports_the_line_of_the_new_beginning() {
    let mut reflector = Reflector::serve(&[]);
    reflector.process().kill();
    let lines = reflector.audit().len() as u64;
    let whole = reflector.must(&["audit", "verify"]);
    assert!(whole.starts_with("the audit log is whole: "), "{whole}");
    fs::remove_dir_all(reflector.state().join("audit")).unwrap();
    let bad = reflector.fails(&["audit", "verify"], 1);
    assert!(bad[1].contains(&format!("line {lines} was acknowledged")), "{bad:?}");
    reflector.start().unwrap();
    let outcome = reflector.run(&["audit", "verify"]);
    assert_eq!(outcome.code, 3, "{outcome:?}");
    let first = lines + 1;
    assert!(outcome.stdout.contains(&format!("whole since line {first}")), "{outcome:?}");
    assert!(outcome.stdout.contains("started again"), "{outcome:?}");
    assert_eq!(reflector.run(&["audit", "verify", "--nonsense"]).code, 2);
    // A changed byte after that line is still detected.
    reflector.process().kill();
    let file = fs::read_dir(reflector.state().join("audit")).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(&file).unwrap().replacen("\"version\"", "\"Version\"", 1);
    fs::write(&file, text).unwrap();
    reflector.fails(&["audit", "verify"], 1);
}

#[test]
fn lines_and_garbage_behind_the_acknowledged_end_are_counted() {
    let mut reflector = Reflector::serve(&[]);
    reflector.end(Signal::TERM);
    let database = reflector.state().join("reflector.db");
    let before = (fs::read(&database).unwrap(), reflector.audit().len());
    assert!(!reflector.must(&["audit", "verify"]).contains("behind"));
    // Well-formed lines that the database does not know: those of another run.
    reflector.start().unwrap();
    reflector.end(Signal::TERM);
    fs::write(&database, before.0).unwrap();
    let lines = reflector.audit().len() - before.1;
    let file = reflector.state().join("audit/000001.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    let bytes = text.lines().skip(before.1).map(|line| line.len() + 1).sum::<usize>();
    let told = reflector.must(&["audit", "verify"]);
    let counted = format!("; {bytes} bytes after its acknowledged end, with {lines} complete lines");
    assert!(told.lines().next().unwrap().ends_with(&counted), "{counted}: {told}");
    fs::write(&file, text + "garbage\n").unwrap();
    let told = reflector.must(&["audit", "verify"]);
    let counted = format!("; {} bytes after its acknowledged end, with {lines} complete lines", bytes + 8);
    assert!(told.lines().next().unwrap().ends_with(&counted), "{counted}: {told}");
    // The next start adopts the lines and cuts the rest.
    reflector.start().unwrap();
    let adopted = reflector.audit().len();
    assert!(adopted > before.1 + lines, "{adopted}");
    assert_eq!(reflector.await_audited("tail_repaired", |_| true)["bytes"], 8);
    reflector.end(Signal::TERM);
    assert!(!reflector.must(&["audit", "verify"]).contains("behind"));
}

#[test]
fn a_log_file_that_is_a_link_or_a_fifo_is_an_error() {
    let mut reflector = Reflector::serve(&[]);
    reflector.end(Signal::TERM);
    let file = reflector.state().join("audit/000001.jsonl");
    let away = reflector.state().join("away");
    fs::rename(&file, &away).unwrap();
    std::os::unix::fs::symlink(&away, &file).unwrap();
    let bad = reflector.fails(&["audit", "verify"], 1);
    assert!(bad[1].contains("000001.jsonl") && bad[1].contains("not a regular file"), "{bad:?}");
    assert!(reflector.start().is_err());
    fs::rename(&away, &file).unwrap();
    let fifo = file.with_file_name("000005.jsonl");
    mknodat(CWD, &fifo, FileType::Fifo, 0o600.into(), 0).unwrap();
    let bad = reflector.fails(&["audit", "verify"], 1);
    assert!(bad[1].contains("000005.jsonl") && bad[1].contains("not a regular file"), "{bad:?}");
    assert!(reflector.start().is_err());
    fs::remove_file(&fifo).unwrap();
    reflector.start().unwrap();
}

#[test]
fn a_log_that_is_deleted_under_a_running_reflector_is_a_fault() {
    let mut reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let test = ["speed-test", "--json-stream", "-t", "3", "--idle", "0.3", "--download", "-b", "10M"];
    let mut running = appliance.start(&test);
    while !running.line(PATIENCE).unwrap().contains("\"interval\"") {}
    let folder = reflector.state().join("audit");
    let aside = reflector.state().join("aside");
    fs::rename(&folder, &aside).unwrap();
    // The fault is detected although no event is recorded.
    reflector.await_log("the audit log can't be written");
    let status = reflector.status();
    assert_eq!(status["state"], "faulted", "{status:#}");
    let problem = status["problems"][0].as_str().unwrap();
    assert!(problem.contains("removed or replaced") && problem.contains("restart"), "{problem}");
    let health = reflector.fails(&["health"], 1);
    assert!(health[1].contains("removed or replaced"), "{health:?}");
    // The running test completes.
    assert_eq!(running.wait(PATIENCE).unwrap().code(), Some(0), "{}", reflector.log());
    appliance.fails(&["speed-test", "-t", "1", "--idle", "0.3", "-b", "1M"], 5, "reflector_faulted");
    assert!(!folder.exists(), "no new log is written in its place");
    // Moving the same files back ends the fault; the events in between are written then.
    fs::rename(&aside, &folder).unwrap();
    reflector.await_log("can be written again");
    reflector.await_audited("session_ended", |_| true);
    reflector.must(&["audit", "verify"]);
    // A copy of the files does not.
    fs::rename(&folder, &aside).unwrap();
    let copied = Command::new("cp").arg("-r").arg(&aside).arg(&folder).status().unwrap();
    assert!(copied.success());
    assert!(reflector.run(&["pair", "--ttl", "10s"]).code != 0);
    assert_eq!(reflector.status()["state"], "faulted");
    fs::remove_dir_all(&folder).unwrap();
    reflector.process().kill();
    reflector.start().unwrap();
    assert_eq!(reflector.must(&["health"]), "serving");
    assert_eq!(reflector.run(&["audit", "verify"]).code, 3);
}

#[test]
fn a_log_that_is_truncated_or_extended_under_a_running_reflector_is_a_fault() {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let file = reflector.state().join("audit/000001.jsonl");
    let whole = fs::read(&file).unwrap();
    let mut changed = OpenOptions::new().append(true).open(&file).unwrap();
    changed.set_len(0).unwrap();
    reflector.await_log("was truncated while the reflector was running");
    let health = reflector.fails(&["health"], 1);
    assert!(health[1].contains("truncated"), "{health:?}");
    let test = ["speed-test", "-t", "1", "--idle", "0.3", "-b", "1M"];
    appliance.fails(&test, 5, "reflector_faulted");
    changed.write_all(&whole).unwrap();
    reflector.await_log("can be written again");
    reflector.must(&["audit", "verify"]);
    let length = changed.metadata().unwrap().len();
    changed.write_all(b"garbage\n").unwrap();
    reflector.await_log("was extended while the reflector was running");
    appliance.fails(&test, 5, "reflector_faulted");
    changed.set_len(length).unwrap();
    reflector.must(&["audit", "verify"]);
}

/// Sends one request to the admin socket and returns the answer.
fn ask(socket: &Path, request: &Value) -> Value {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(format!("{request}\n").as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

fn audit_bytes(reflector: &Reflector) -> u64 {
    let files = fs::read_dir(reflector.state().join("audit")).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn the_log_stays_within_its_size_limit_and_records_what_was_trimmed() {
    let mut reflector = Reflector::serve(&[("AUDIT_MAX_SIZE", "4MB"), ("AUDIT_SEGMENT_SIZE", "64kB")]);
    let id = Appliance::new().id();
    reflector.must(&["peers", "add", &id]);
    let socket = reflector.state().join("admin.sock");
    // Names of the maximum length: about 800 bytes a line, 4.8 MB in all.
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let (socket, id) = (&socket, &id);
            scope.spawn(move || {
                for turn in 0..750 {
                    let name = format!("{worker}-{turn:03}-{}", "\u{10348}".repeat(114));
                    let told = ask(socket, &json!({"v": 1, "do": "rename_peer", "peer": id, "name": name}));
                    assert_eq!(told["event"], "done", "{told}");
                }
            });
        }
    });
    assert!(audit_bytes(&reflector) <= 4_000_000, "{} bytes", audit_bytes(&reflector));
    let trimmed = reflector.await_audited("log_trimmed", |_| true);
    assert_eq!(trimmed["chain"], "main");
    let outcome = reflector.run(&["audit", "verify"]);
    assert_eq!(outcome.code, 3, "{outcome:?}");
    assert!(outcome.stdout.contains("trimmed"), "{outcome:?}");
    reflector.process().kill();
    reflector.start().unwrap();
    reflector.process().kill();
    // More files are missing than the record says.
    let mut files = fs::read_dir(reflector.state().join("audit")).unwrap().map(|file| file.unwrap().path());
    let oldest = files.by_ref().filter(|file| !file.to_string_lossy().contains("refusals")).min().unwrap();
    fs::remove_file(oldest).unwrap();
    let bad = reflector.fails(&["audit", "verify"], 1);
    assert!(bad[1].contains("missing"), "{bad:?}");
    assert!(reflector.start().is_err());
}
