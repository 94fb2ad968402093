//! Runs programs and measures the processor time and the memory that they use. Ends them when the user interrupts the
//! benchmark.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::resource::{UsageWho, getrusage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The timeout of a run. A run that takes longer is killed and recorded as failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// The user's interrupt: SIGINT, SIGTERM or SIGHUP.
#[derive(Debug)]
pub(crate) struct Stop {
    /// The read end of a pipe, which becomes readable once the user interrupts the program.
    wished: OwnedFd,
}

/// The error of an operation that was ended by the user's interrupt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

impl Stop {
    /// Catches SIGINT, SIGTERM and SIGHUP from now on, so that they no longer end the process.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let (wished, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let mut signals = {
            let _inside = runtime.enter();
            let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
            kinds.map(signal).into_iter().collect::<Result<Vec<_>, _>>()?
        };
        let any = async move {
            std::future::poll_fn(|context| {
                let came = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
                if came { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            })
            .await;
            // Closing the write end makes the read end readable for every later poll, just as writing would.
            drop(tell);
        };
        std::thread::Builder::new().name("stop".into()).spawn(move || runtime.block_on(any))?;
        Ok(Self { wished })
    }

    /// Returns an error if the user has interrupted the program.
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        if self.first_of(None, Duration::ZERO) == First::Stop { Err(Interrupted) } else { Ok(()) }
    }

    /// Sleeps for `time`. Returns an error as soon as the user interrupts the program.
    pub(crate) fn pass(&self, time: Duration) -> Result<(), Interrupted> {
        if self.first_of(None, time) == First::Stop { Err(Interrupted) } else { Ok(()) }
    }

    /// Waits for whichever comes first: an interrupt, `other` becoming readable, or the end of `within`.
    fn first_of(&self, other: Option<BorrowedFd<'_>>, within: Duration) -> First {
        let until = Instant::now() + within;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or_default();
            let mut fds = vec![PollFd::new(&self.wished, PollFlags::IN)];
            fds.extend(other.iter().map(|other| PollFd::from_borrowed_fd(*other, PollFlags::IN)));
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return First::Time,
                Ok(_) if !fds[0].revents().is_empty() => return First::Stop,
                Ok(_) => return First::Other,
                // Another signal interrupted the poll: go on waiting.
                Err(_) => {}
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Stop,
    Other,
    Time,
}

/// The output and the costs of a program that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// The time from the start of the program to its exit, in seconds.
    pub(crate) wall_s: f64,
    /// The processor time of the process, user and system, in seconds.
    pub(crate) cpu_s: f64,
}

/// A child process that is killed when this value is dropped.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        // The child may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `command` until it exits. The caller must not wait for other children meanwhile, because the kernel adds up the
/// processor time of all children that have exited.
pub(crate) fn run(mut command: Command, stop: &Stop) -> anyhow::Result<Ended> {
    stop.check()?;
    // Files instead of pipes: they need no reader while the program runs.
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    // In its own process group, the child does not get the signal of Ctrl-C; this program gets it and ends the child.
    command.process_group(0);
    let before = cpu_of_ended_children()?;
    let began = Instant::now();
    let mut held = Held(command.spawn().with_context(|| format!("{} does not start", name_of(&command)))?);
    let pidfd = pidfd_open(Pid::from_child(&held.0), PidfdFlags::empty())?;
    match stop.first_of(Some(pidfd.as_fd()), PATIENCE) {
        First::Stop => return Err(Interrupted.into()),
        First::Time => bail!("{} still runs after {PATIENCE:?}", name_of(&command)),
        First::Other => {}
    }
    let wall_s = began.elapsed().as_secs_f64();
    let status = held.0.wait()?;
    let cpu_s = cpu_of_ended_children()? - before;
    Ok(Ended { status, stdout: text_of(&mut stdout)?, stderr: text_of(&mut stderr)?, wall_s, cpu_s })
}

fn name_of(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn text_of(file: &mut File) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn cpu_of_ended_children() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// The processor time that a running process has used so far, in seconds: that of all its threads, and of the children
/// that it has reaped.
pub(crate) fn cpu_so_far(process: Pid) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()))?;
    let ticks = ticks_of(&stat).context("/proc/PID/stat has no processor times")?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Sums up fields 14 to 17 of proc_pid_stat(5), in ticks: `utime`, `stime`, `cutime`, `cstime`. Field 2 is a name that
/// may contain any character.
fn ticks_of(stat: &str) -> Option<u64> {
    let fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(4);
    let fields = fields.map(|field| field.parse().ok()).collect::<Option<Vec<u64>>>()?;
    (fields.len() == 4).then(|| fields.iter().sum())
}

/// A process's memory in bytes: `VmRSS` is the resident memory, `VmHWM` its maximum.
pub(crate) fn memory_of(process: Pid, key: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero())).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Resets a process's `VmHWM` to its current resident memory.
pub(crate) fn forget_the_most(process: Pid) -> anyhow::Result<()> {
    Ok(fs::write(format!("/proc/{}/clear_refs", process.as_raw_nonzero()), "5")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_shifts_no_field() {
        let stat = "7 (a) b) R 1 7 7 0 -1 4194304 9 9 9 9 10 20 30 40 20 0 1 0";
        assert_eq!(ticks_of(stat), Some(100));
        assert_eq!(ticks_of("7 (short) R 1 7"), None);
    }

    #[test]
    fn what_a_program_says_and_how_it_ends_is_told() {
        let stop = Stop::listen().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo beside >&2; exit 3"]);
        let ended = run(command, &stop).unwrap();
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("out\n", "beside\n"));
        assert_eq!(ended.status.code(), Some(3));
        assert!(run(Command::new("/nowhere/at/all"), &stop).unwrap_err().to_string().contains("/nowhere/at/all"));
    }

    #[test]
    fn our_own_memory_is_more_than_nothing() {
        let own = rustix::process::getpid();
        // Read `VmRSS` first: other tests in this process allocate more memory meanwhile.
        let now = memory_of(own, "VmRSS");
        assert!(now.unwrap() > 100_000);
        assert!(memory_of(own, "VmHWM") >= now);
        assert_eq!(memory_of(own, "VmNothing"), None);
        assert!(cpu_so_far(own).unwrap() >= 0.0);
    }
}
