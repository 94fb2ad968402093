//! Delivers messages by running a command on this host. Does I/O: files, processes.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::pin::pin;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use paramedic_link::PeerText;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::fault::{DeliveryFault, MAX_REASON_CHARS};
use crate::alerts::channel::{ChannelError, PathPart, ProgramFault};
use crate::alerts::message::{AlertMessage, Urgency};

/// The number of bytes that are kept from the end of a command's output. An error is usually in the last lines.
const MAX_OUTPUT_BYTES: usize = 4096;
/// How long to wait for the rest of the output after a command has ended. The wait has a limit, because a process that
/// the command started may keep the output open.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);
/// The maximum number of symbolic links on the path to a program. The kernel has the same limit.
const MAX_LINKS: u32 = 40;
/// How long to wait for the end of a command that was killed.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// The environment variables of this process that a command inherits. Other variables may contain secrets.
const INHERITED: [&str; 4] = ["PATH", "HOME", "LANG", "TZ"];

/// Runs the command of a channel with the message in environment variables, and waits until the command ends.
pub(super) async fn run(
    program: &str,
    args: &[String],
    message: &AlertMessage,
    limit: Duration,
) -> Result<(), DeliveryFault> {
    let mut command = tokio::process::Command::new(checked_program(Path::new(program))?);
    // The name of the program is passed as given, because a program with several names, such as busybox, chooses its
    // function by the name.
    command.arg0(program).args(args).env_clear().envs(environment(message)).current_dir("/");
    for name in INHERITED {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The command gets its own process group, which is killed together with every process that the command started.
    let mut child = command.process_group(0).kill_on_drop(true).spawn().map_err(DeliveryFault::NotStarted)?;
    let group = ProcessGroup::of(child.id());
    // Keeps standard output and standard error apart, because their order is not known.
    let (output, errors) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut reading = pin!(async { tokio::join!(drain(stdout, &output), drain(stderr, &errors)) });
    let mut is_read = false;
    let ended = tokio::time::timeout(limit, async {
        tokio::select! {
            status = child.wait() => status,
            _ = &mut reading => {
                is_read = true;
                child.wait().await
            }
        }
    });
    let Ok(status) = ended.await else {
        drop(group);
        child.start_kill().ok();
        await_killed(child.wait(), KILL_GRACE).await;
        return Err(DeliveryFault::Endless(limit));
    };
    group.release();
    let status = status.map_err(DeliveryFault::NotStarted)?;
    if status.success() {
        return Ok(());
    }
    if !is_read {
        // Waits only this long. The text may be incomplete if another process keeps the output open.
        tokio::time::timeout(OUTPUT_GRACE, reading).await.ok();
    }
    let text = |tail: &Mutex<Vec<u8>>| last_text(&tail.lock().unwrap_or_else(PoisonError::into_inner));
    let output = [&errors, &output].map(text).into_iter().find(|text| !text.is_empty());
    let output = output.map(|text| format!(": {text}")).unwrap_or_default();
    Err(DeliveryFault::Exit { status, output })
}

/// The path of the program with all symbolic links resolved. Fails if a user other than root can change which file is
/// run. Follows the path as the kernel does, and checks each folder and each link on it.
pub(crate) fn checked_program(program: &Path) -> Result<PathBuf, ChannelError> {
    let mut found = PathBuf::from("/");
    check_part(program, &found, false)?;
    // A stack: the next part of the path is the last element.
    let mut parts = parts_of(program);
    let mut links = 0;
    while let Some(part) = parts.pop() {
        let path = match part {
            WayPart::Root => "/".into(),
            // `found` contains no link, so its parent is the folder above it.
            WayPart::Above => found.parent().unwrap_or(&found).to_owned(),
            WayPart::Named(name) => found.join(name),
        };
        if check_part(program, &path, false)?.is_link {
            links += 1;
            if links > MAX_LINKS {
                return Err(unreadable(program, &io::Error::from(Errno::LOOP)));
            }
            parts.extend(parts_of(&std::fs::read_link(&path).map_err(|error| unreadable(program, &error))?));
        } else {
            found = path;
        }
    }
    check_part(program, &found, true)?;
    Ok(found)
}

/// One part of the path to a program.
enum WayPart {
    Root,
    Above,
    Named(OsString),
}

/// The parts of a path in reverse order, to be used as a stack.
fn parts_of(path: &Path) -> Vec<WayPart> {
    let part = |component: Component<'_>| match component {
        Component::RootDir => Some(WayPart::Root),
        Component::ParentDir => Some(WayPart::Above),
        Component::Normal(name) => Some(WayPart::Named(name.to_owned())),
        Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(part).collect()
}

/// Checks the file, folder or link at `path`, which is one step on the way to `program`. Does not follow a link.
/// `is_program` is true if `path` is the program itself.
fn check_part(program: &Path, path: &Path, is_program: bool) -> Result<PathPart, ChannelError> {
    let about = std::fs::symlink_metadata(path).map_err(|error| unreadable(program, &error))?;
    let part = PathPart {
        owner: about.uid(),
        mode: about.mode(),
        is_folder: about.is_dir(),
        is_file: about.is_file(),
        is_link: about.is_symlink(),
    };
    let fault = |fault| ChannelError::ProgramFile { path: path.display().to_string(), fault };
    part.check(is_program).map(|()| part).map_err(fault)
}

fn unreadable(program: &Path, error: &io::Error) -> ChannelError {
    let fault = ProgramFault::Unreadable(error.to_string());
    ChannelError::ProgramFile { path: program.display().to_string(), fault }
}

/// Waits for the end of a killed process, but at most for `limit`: the kernel cannot end a process that waits for an
/// unavailable disk or file server.
async fn await_killed(ended: impl Future, limit: Duration) {
    tokio::time::timeout(limit, ended).await.ok();
}

/// The message as environment variables of the command. NUL is removed, because environment variables cannot contain
/// it.
fn environment(message: &AlertMessage) -> Vec<(String, String)> {
    let urgency = match message.urgency {
        Urgency::Low => "low",
        Urgency::Normal => "normal",
        Urgency::High => "high",
    };
    let mut variables = vec![
        ("ID", message.id.to_string()),
        ("KIND", message.kind.as_str().to_owned()),
        ("AT", message.at.to_string()),
        ("TITLE", message.title.clone()),
        ("TEXT", message.text.clone()),
        ("URGENCY", urgency.to_owned()),
    ];
    if let Some(alert) = &message.alert {
        variables.extend([
            ("ALERT", alert.id.to_string()),
            ("RULE", alert.rule.clone()),
            ("SUBJECT", alert.subject.clone()),
            ("METRIC", alert.metric.clone()),
        ]);
    }
    let named = |(name, value): (&str, String)| (format!("PACKETPARAMEDIC_{name}"), value.replace('\0', ""));
    variables.into_iter().map(named).collect()
}

/// Reads an output to its end, and keeps its last bytes in `tail`.
async fn drain(output: Option<impl AsyncRead + Unpin>, tail: &Mutex<Vec<u8>>) {
    let Some(mut output) = output else { return };
    let mut bytes = vec![0; MAX_OUTPUT_BYTES];
    while let Ok(count @ 1..) = output.read(&mut bytes).await {
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(bytes.get(..count).unwrap_or_default());
        let surplus = tail.len().saturating_sub(MAX_OUTPUT_BYTES);
        tail.drain(..surplus);
    }
}

/// The last part of a command's output, in one line.
fn last_text(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    let surplus = lines.chars().count().saturating_sub(MAX_REASON_CHARS);
    PeerText::harmless(&lines.chars().skip(surplus).collect::<String>(), MAX_REASON_CHARS)
}

/// The process group of a command. Dropping this value kills its processes.
struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    fn of(leader: Option<u32>) -> Self {
        Self(leader.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }

    /// Forgets the group of a command that has ended, so that processes which the command left running are not killed.
    fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0.take() {
            // If this fails, the processes have already ended.
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{PidfdFlags, pidfd_open};

    use super::*;
    use crate::alerts::message::MessageKind;

    const LIMIT: Duration = Duration::from_secs(60);

    fn message() -> AlertMessage {
        AlertMessage {
            id: uuid::Uuid::from_u128(7),
            kind: MessageKind::Test,
            at: "2026-01-01T00:00:00Z".parse().unwrap(),
            title: "It's; $(touch /tmp/never) \0x".to_owned(),
            text: "one\ntwo".to_owned(),
            urgency: Urgency::High,
            alert: None,
        }
    }

    async fn shell(script: &str, limit: Duration) -> Result<(), DeliveryFault> {
        run("/bin/sh", &["-c".to_owned(), script.to_owned()], &message(), limit).await
    }

    #[tokio::test]
    async fn a_command_gets_the_message_in_its_environment_and_nothing_else() {
        let expected = "It's; $(touch /tmp/never) x|one\ntwo|high|test|00000000-0000-0000-0000-000000000007";
        let script = format!(
            "test \"$PACKETPARAMEDIC_TITLE|$PACKETPARAMEDIC_TEXT|$PACKETPARAMEDIC_URGENCY|$PACKETPARAMEDIC_KIND|\
             $PACKETPARAMEDIC_ID\" = '{}' && test -z \"$CARGO_MANIFEST_DIR\"",
            expected.replace('\'', "'\\''")
        );
        shell(&script, LIMIT).await.unwrap();
        assert!(!Path::new("/tmp/never").exists());
    }

    #[tokio::test]
    async fn a_command_that_fails_is_named_with_the_end_of_its_output() {
        let fault = shell("seq 100000; echo no route to the phone >&2; exit 3", LIMIT).await.unwrap_err().to_string();
        assert!(fault.contains("exit status: 3") && fault.contains("no route to the phone"), "{fault}");
        let fault = shell("seq 100000; exit 3", LIMIT).await.unwrap_err().to_string();
        assert!(fault.ends_with("; 99999; 100000") && fault.chars().count() < 2 * MAX_REASON_CHARS, "{fault}");
        let fault = run("/bin/absent", &[], &message(), LIMIT).await.unwrap_err();
        assert!(matches!(fault, DeliveryFault::Program(ChannelError::ProgramFile { .. })), "{fault}");
    }

    #[tokio::test]
    async fn a_command_that_never_ends_is_killed_with_what_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pids");
        // Both the shell and its child would run for ever if they were not killed.
        let script = format!("sleep 1000000 & echo $! $$ > {}.new; mv {0}.new {0}; wait", file.display());
        let fault = shell(&script, Duration::from_secs(2)).await.unwrap_err();
        assert!(matches!(fault, DeliveryFault::Endless(_)), "{fault}");
        let pids = std::fs::read_to_string(&file).unwrap();
        for pid in pids.split_whitespace() {
            let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
            // The kernel may need a moment to end a killed process, so the test waits. The process may have ended
            // already.
            let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
            let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)).unwrap();
            assert_eq!(ended, 1, "{pid:?} lives");
        }
    }

    #[tokio::test]
    async fn a_process_that_outlives_its_kill_delays_nothing() {
        await_killed(std::future::pending::<()>(), Duration::from_millis(1)).await;
    }

    #[tokio::test]
    async fn a_command_that_prints_a_gigabyte_is_read_to_its_end_in_little_memory() {
        let peak = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap().to_owned();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        let before = peak();
        let began = Instant::now();
        shell("head -c 1000000000 /dev/zero", LIMIT).await.unwrap();
        let grown = peak() - before;
        assert!(grown < 500_000, "{grown} KiB more after {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_process_that_a_command_leaves_running_delays_nothing() {
        let began = Instant::now();
        let fault = shell("sleep 30 & exit 4", LIMIT).await.unwrap_err();
        assert!(matches!(fault, DeliveryFault::Exit { .. }), "{fault}");
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_program_that_another_user_can_change_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        assert!(checked_program(Path::new("/bin/sh")).is_ok());
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: making files of root needs root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("notify");
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        let refused = |mode| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            checked_program(&file).err().map(|error| error.to_string())
        };
        assert_eq!(refused(0o755), None);
        assert!(refused(0o644).unwrap().contains("not an executable file"));
        assert!(refused(0o777).unwrap().contains("can write to this"));
        assert_eq!(refused(0o700), None);
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(refused(0o755).unwrap().contains("can write to this"), "its folder");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(&file, Some(65_534), None).unwrap();
        assert!(refused(0o755).unwrap().contains("not to root"));

        // Links are checked too, because a user who can replace a link chooses the program.
        let own = folder.path().join("own");
        std::fs::create_dir(&own).unwrap();
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o755)).unwrap();
        let link = |name: &str, target: &str| {
            let link = own.join(name);
            std::os::unix::fs::symlink(target, &link).unwrap();
            link
        };
        let (shell, up, round) = (link("sh", "/bin/sh"), link("up", "../own/./sh"), link("round", "round"));
        let through = link("bin", "/bin/").join("sh");
        let fault = |path: &Path| checked_program(path).err().map(|error| error.to_string());
        let real = Path::new("/bin/sh").canonicalize().unwrap();
        for path in [&shell, &up, &through, &own.join("../own/sh")] {
            assert_eq!(checked_program(path), Ok(real.clone()), "{path:?}");
        }
        assert!(fault(&round).unwrap().contains("symbolic links"), "{:?}", fault(&round));
        assert!(fault(&link("absent", "nowhere")).unwrap().contains("No such file"));
        assert!(fault(&shell.join("..")).unwrap().contains("not an executable file"));
        std::os::unix::fs::lchown(&shell, Some(65_534), None).unwrap();
        for path in [&shell, &up] {
            assert!(fault(path).unwrap().contains("not to root"), "the link: {path:?}");
        }
        std::os::unix::fs::chown(&own, Some(65_534), None).unwrap();
        assert!(fault(&through).unwrap().contains("not to root"), "the folder of the link");
    }
}
