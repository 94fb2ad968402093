//! The thread that keeps a lane's child: starts it confined, answers what it asks for, reads what it says, and buries it,
//! one for each test of the session. The kernel ties the child to this thread, so it lives as long.

use std::collections::VecDeque;
use std::io::{self, PipeReader, Read};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::libc;
use paramedic_engines::host_facts;
use paramedic_engines::session_control::{Registration, SessionControl};
use paramedic_engines::sys::child::spawn_confined;
use paramedic_engines::sys::seccomp::{Question, Supervisor};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tempfile::TempDir;

use super::handoff::{ChildExit, LaneHandoff};
use super::login::{self, LoginPadding, LoginPair, SessionLogin};
use super::output;
use super::program::Program;
use super::sandbox;
use super::write_new;

/// How long a child that has closed its output may take to be gone.
const EXIT_GRACE: Duration = Duration::from_secs(1);
/// What is kept of what a child says: an error is among its last lines.
const MAX_OUTPUT_BYTES: usize = 4096;

/// What a child is started with.
pub(super) struct ChildSetup {
    pub(super) program: Program,
    pub(super) port: u16,
    pub(super) local: IpAddr,
    pub(super) login: SessionLogin,
    pub(super) pair: LoginPair,
    pub(super) padding: LoginPadding,
    /// The child's folder; gone with it.
    pub(super) folder: TempDir,
    /// The most streams of a test.
    pub(super) streams: usize,
    /// How many tests the session has.
    pub(super) tests: usize,
}

/// The keeper's thread. Dropping it ends the child and waits for the thread.
pub(super) struct ChildSupervisor {
    handoff: Arc<LaneHandoff>,
    thread: Option<JoinHandle<()>>,
}

impl ChildSupervisor {
    pub(super) fn start(
        order: ChildSetup,
        handoff: Arc<LaneHandoff>,
        control: &Arc<SessionControl>,
    ) -> io::Result<Self> {
        write_new(&order.folder.path().join(KEY_FILE), &order.pair.private_pem)?;
        write_new(&order.folder.path().join(USERS_FILE), &login::users(&order.login))?;
        // Cutting the control shuts the bell down, which wakes the poll.
        let registration = control.register(&handoff.bell)?;
        let of_thread = Arc::clone(&handoff);
        let run = move || keep(&order, &of_thread, registration);
        let thread = std::thread::Builder::new().name("iperf3-keeper".into()).spawn(run)?;
        Ok(Self { handoff, thread: Some(thread) })
    }
}

impl Drop for ChildSupervisor {
    fn drop(&mut self) {
        self.handoff.close();
        if let Some(thread) = self.thread.take() {
            // One that panicked has taken its child along.
            let _ = thread.join();
        }
    }
}

/// As many seconds as iperf3 takes: a device whose clock stands in 1970 is let in, too.
const MAX_CLOCK_SKEW_S: &str = "2147483647";
const KEY_FILE: &str = "login.key";
const USERS_FILE: &str = "users.csv";

fn keep(order: &ChildSetup, handoff: &LaneHandoff, _registration: Registration) {
    for test in 0..order.tests {
        if test > 0 && !handoff.await_next(test - 1) {
            return;
        }
        if handoff.is_over() {
            return;
        }
        let exit = match serve_test(order, handoff) {
            Ok(exit) => exit,
            Err(error) => {
                tracing::error!(%error, "no iperf3 can be started");
                ChildExit { complaint: Some(error.to_string()), ..ChildExit::default() }
            }
        };
        tracing::debug!(?exit, "an iperf3 ended");
        handoff.ended(test, exit);
    }
}

/// One child, from its start to its grave.
fn serve_test(order: &ChildSetup, handoff: &LaneHandoff) -> io::Result<ChildExit> {
    let (pipe, theirs) = io::pipe()?;
    let mut command = Command::new(&order.program.path);
    command.args(arguments(order)).current_dir(order.folder.path()).env_clear().env("TMPDIR", order.folder.path());
    command.stdin(Stdio::null()).stdout(theirs.try_clone()?).stderr(theirs);
    let confinement = sandbox::confinement(&order.program.path, order.folder.path(), order.streams)?;
    let (child, supervisor) = spawn_confined(command, confinement)?;
    let child = ServerChild { pid: Pid::from_child(&child), process: child };
    if !handoff.started(child.pid) {
        handoff.is_being_reaped();
        // It is killed and buried as it is dropped.
        return Ok(ChildExit::default());
    }
    let mut output = ChildOutput::default();
    let attended = attend(handoff, &supervisor, pipe, &mut output);
    if attended.is_err() || handoff.is_over() {
        child.kill();
    }
    handoff.is_being_reaped();
    attended?;
    Ok(child.reap(&supervisor, &output))
}

/// The one-off server of one test: its port is the one that is ours, so it binds none itself.
fn arguments(order: &ChildSetup) -> Vec<String> {
    let any = if order.local.to_canonical().is_ipv4() { "0.0.0.0" } else { "::" };
    let port = order.port.to_string();
    let mut arguments = ["-s", "-1", "-p", &port, "-B", any, "-i", "0", "--forceflush"].map(str::to_owned).to_vec();
    // Both ends' clocks may differ by anything; the login is good for this session alone all the same.
    let login = ["--rsa-private-key-path", KEY_FILE, "--authorized-users-path", USERS_FILE];
    arguments.extend(login.map(str::to_owned));
    arguments.extend(["--time-skew-threshold", MAX_CLOCK_SKEW_S].map(str::to_owned));
    arguments.extend(order.program.padding_option(order.padding).map(str::to_owned));
    arguments
}

/// Answers and listens until the child has closed its output, or everything is over.
fn attend(
    handoff: &LaneHandoff,
    supervisor: &Supervisor,
    mut pipe: PipeReader,
    output: &mut ChildOutput,
) -> io::Result<()> {
    let mut takers = VecDeque::new();
    loop {
        let mut polled = [
            PollFd::new(&handoff.bell, PollFlags::IN),
            PollFd::new(supervisor, PollFlags::IN),
            PollFd::new(&pipe, PollFlags::IN),
        ];
        let next_look = handoff.account().and_then(|soon| Timespec::try_from(soon).ok());
        match rustix::event::poll(&mut polled, next_look.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [bell, asked, spoke] = [0, 1, 2].map(|at| polled[at].revents());
        if handoff.is_over() {
            return Ok(());
        }
        // Nothing that the child says there means anything; but one that hangs up would wake us for ever.
        if !bell.is_empty() && !drain(&handoff.bell) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if asked.contains(PollFlags::IN)
            && let Some(question) = supervisor.next()?
        {
            answer(handoff, supervisor, question, &mut takers);
        }
        if !spoke.is_empty() {
            let mut words = [0; 4096];
            match pipe.read(&mut words) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    if output.hear(&words[..read]) {
                        handoff.listens();
                    } else if output.listens
                        && let Some(complaint) = output.complaint()
                    {
                        handoff.complained(complaint);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        serve_takers(handoff, supervisor, &mut takers);
    }
}

/// Takes off what the child said; `false` where it will say nothing more.
fn drain(mut bell: &std::os::unix::net::UnixStream) -> bool {
    !matches!(bell.read(&mut [0; 256]), Ok(0))
}

/// A socket is what stands for the listener, and nothing else can be had; who wants a connection gets the next one that
/// was let in, or waits for it; what is closed is let go of here, too.
fn answer(handoff: &LaneHandoff, supervisor: &Supervisor, question: Question, takers: &mut VecDeque<Question>) {
    match question.call {
        libc::SYS_close => {
            // What is no descriptor is refused by the kernel.
            handoff.closes(question.arguments[0] as i32);
            return supervisor.let_happen(question);
        }
        libc::SYS_socket => {}
        _ => return takers.push_back(question),
    }
    if is_for_tcp(question.arguments) {
        if let Err(error) = supervisor.hand_over(question, handoff.listener.as_fd()) {
            tracing::debug!(%error, "an iperf3 got no listener");
            supervisor.refuse(question, libc::EMFILE);
        }
    } else {
        tracing::debug!(arguments = ?question.arguments, "an iperf3 was refused a socket");
        supervisor.refuse(question, libc::EACCES);
    }
}

/// `socket(2)`: family, type with its flags, protocol.
fn is_for_tcp([family, kind, protocol, ..]: [u64; 6]) -> bool {
    let is = |value: u64, known: i32| value == u64::from(known.unsigned_abs());
    let kind = kind & !u64::from((libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).unsigned_abs());
    (is(family, libc::AF_INET) || is(family, libc::AF_INET6))
        && is(kind, libc::SOCK_STREAM)
        && (protocol == 0 || is(protocol, libc::IPPROTO_TCP))
}

fn serve_takers(handoff: &LaneHandoff, supervisor: &Supervisor, takers: &mut VecDeque<Question>) {
    while let Some(question) = takers.front().copied() {
        let Some(connection) = handoff.take() else { return };
        takers.pop_front();
        match supervisor.hand_over(question, connection.socket.as_fd()) {
            Ok(of_child) => handoff.taken(&connection, of_child),
            // It was interrupted, and will ask again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => handoff.put_back(connection),
            Err(error) => {
                tracing::debug!(%error, "an iperf3 got no connection");
                supervisor.refuse(question, libc::EMFILE);
            }
        }
    }
}

/// Killed and buried when dropped, whatever happened.
struct ServerChild {
    pid: Pid,
    process: std::process::Child,
}

impl ServerChild {
    fn reap(mut self, supervisor: &Supervisor, output: &ChildOutput) -> ChildExit {
        // One that ended by itself is gone in a moment; all others are not asked.
        let deadline = Instant::now() + EXIT_GRACE;
        let mut polled = [PollFd::new(supervisor, PollFlags::empty())];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match rustix::event::poll(&mut polled, Some(&limit)) {
                Err(Errno::INTR) if !left.is_zero() => {}
                _ => break,
            }
        }
        let ended_at = Instant::now();
        self.kill();
        // Its accounts can be read as long as it is not buried.
        let _ = rustix::process::waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        let cpu_s = host_facts::cpu_of(self.pid);
        let status = self.process.wait();
        let ended_well = status.as_ref().is_ok_and(std::process::ExitStatus::success);
        let complaint = output.complaint().or_else(|| match status {
            _ if ended_well => None,
            Ok(status) => Some(format!("iperf3 ended with {status}")),
            Err(error) => Some(error.to_string()),
        });
        ChildExit { cpu_s, at: Some(ended_at), complaint }
    }

    fn kill(&self) {
        // Its number is its own until it is buried.
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
    }
}

impl Drop for ServerChild {
    fn drop(&mut self) {
        self.kill();
        // For one that is buried already this says what it said then.
        let _ = self.process.wait();
    }
}

/// The end of what a child prints.
#[derive(Default)]
struct ChildOutput {
    text: Vec<u8>,
    listens: bool,
}

impl ChildOutput {
    /// Keeps what was printed; `true` once: it listens.
    fn hear(&mut self, words: &[u8]) -> bool {
        self.text.extend_from_slice(words);
        let heard_it = !self.listens && String::from_utf8_lossy(&self.text).contains("Server listening");
        self.listens |= heard_it;
        let surplus = self.text.len().saturating_sub(MAX_OUTPUT_BYTES);
        self.text.drain(..surplus);
        heard_it
    }

    /// What it named as an error; or, before it listened, whatever it printed last.
    fn complaint(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.text);
        if self.listens && !text.contains("error") { None } else { output::trouble(&text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_gets_sockets_for_tcp_alone() {
        let ask =
            |family: i32, kind: i32, protocol: i32| is_for_tcp([family as u64, kind as u64, protocol as u64, 0, 0, 0]);
        assert!(ask(libc::AF_INET, libc::SOCK_STREAM, 0));
        assert!(ask(libc::AF_INET6, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_TCP));
        assert!(!ask(libc::AF_INET, libc::SOCK_DGRAM, 0));
        assert!(!ask(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP));
        assert!(!ask(libc::AF_UNIX, libc::SOCK_STREAM, 0));
        assert!(!ask(libc::AF_NETLINK, libc::SOCK_RAW, 0));
        assert!(!is_for_tcp([u64::MAX, 1, 0, 0, 0, 0]));
    }

    #[test]
    fn what_a_child_says_is_heard_in_pieces_and_its_error_kept() {
        let mut output = ChildOutput::default();
        assert!(!output.hear(b"-----\nServer lis"));
        assert!(output.hear(b"tening on 5201 (test #1)\n"));
        assert!(!output.hear(b"Server listening again\n"));
        assert_eq!(output.complaint(), None);
        output.hear(&b"x".repeat(3 * MAX_OUTPUT_BYTES));
        assert_eq!(output.text.len(), MAX_OUTPUT_BYTES);
        output.hear(b"\niperf3: error - test authorization \x1b[2Jfailed\n");
        assert_eq!(output.complaint().unwrap(), "test authorization [2Jfailed");
    }

    #[test]
    fn what_never_listened_is_known_by_its_last_words() {
        let mut output = ChildOutput::default();
        output.hear(b"iperf3: cannot load library: libiperf.so.0\n");
        assert_eq!(output.complaint().unwrap(), "cannot load library: libiperf.so.0");
    }
}
