//! The thread that supervises the iperf3 servers (children) of a session, one for each test. It starts each child
//! confined, answers the child's system calls, reads its output and reaps it. The kernel kills the child when this
//! thread ends.

use std::collections::VecDeque;
use std::io::{self, PipeReader, Read};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::libc;
use paramedic_engines::session_control::{Registration, SessionControl};
use paramedic_engines::sys::child::spawn_confined;
use paramedic_engines::sys::seccomp::{Question, Supervisor};
use paramedic_engines::thread_limit;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use super::handoff::{ChildExit, LaneHandoff};
use super::login::{self, LoginPadding, LoginPair, SessionLogin};
use super::output;
use super::process::{await_exit, signal_group, write_new};
use super::program::Program;
use super::sandbox;

/// The longest time that a child may take to exit after it has closed its output.
const EXIT_GRACE: Duration = Duration::from_secs(1);
/// How many of the last bytes of a child's output are kept. An error is among the last lines.
const MAX_OUTPUT_BYTES: usize = 4096;

/// How to start the children of a session.
pub(super) struct ChildSetup {
    pub(super) program: Program,
    pub(super) port: u16,
    pub(super) local: IpAddr,
    pub(super) login: SessionLogin,
    pub(super) pair: LoginPair,
    pub(super) padding: LoginPadding,
    /// The folder of the children, which is deleted together with this value.
    pub(super) folder: TempDir,
    /// The maximum number of streams of a test.
    pub(super) streams: usize,
    /// The number of tests of the session.
    pub(super) tests: usize,
}

/// Owns the supervising thread. Dropping this value kills the child and waits for the thread.
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
        // Cancelling the session shuts this socket down, which wakes the poll.
        let registration = control.register(&handoff.notifier)?;
        let of_thread = Arc::clone(&handoff);
        let run = move || supervise(&order, &of_thread, registration);
        let thread = thread_limit::spawn("iperf3-child", run)?;
        Ok(Self { handoff, thread: Some(thread) })
    }
}

impl Drop for ChildSupervisor {
    fn drop(&mut self) {
        self.handoff.close();
        if let Some(thread) = self.thread.take() {
            // After a panic the kernel has killed the child.
            if thread.join().is_err() {
                tracing::error!("the thread that supervises iperf3 panicked");
            }
        }
        self.handoff.close_connections();
    }
}

/// The largest clock difference that iperf3 accepts, in seconds. With it, a device whose clock is wrong by decades can
/// log in, too.
const MAX_CLOCK_SKEW_S: &str = "2147483647";
const KEY_FILE: &str = "login.key";
const USERS_FILE: &str = "users.csv";

fn supervise(order: &ChildSetup, handoff: &LaneHandoff, _registration: Registration) {
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
                handoff.note_thread_error(&error);
                // The first start is part of opening the session, which logs its failures itself, within the limit of
                // lines that a device can cause.
                if test > 0 {
                    tracing::error!(%error, "cannot start iperf3");
                }
                ChildExit { error: Some(error.to_string()), ..ChildExit::default() }
            }
        };
        tracing::debug!(?exit, "an iperf3 exited");
        handoff.set_exit(test, exit);
    }
}

/// Runs one child until it is reaped.
fn serve_test(order: &ChildSetup, handoff: &LaneHandoff) -> io::Result<ChildExit> {
    let (pipe, theirs) = io::pipe()?;
    let mut command = Command::new(&order.program.path);
    command.args(arguments(order)).current_dir(order.folder.path()).env_clear().env("TMPDIR", order.folder.path());
    command.stdin(Stdio::null()).stdout(theirs.try_clone()?).stderr(theirs);
    let confinement = sandbox::confinement(&order.program.path, order.folder.path(), order.streams)?;
    let (child, supervisor) = spawn_confined(command, confinement)?;
    let child = ServerChild { pid: Pid::from_child(&child), process: child };
    if !handoff.set_child(child.pid) {
        handoff.stop_signalling();
        // Dropping the child kills and reaps it.
        return Ok(ChildExit::default());
    }
    let mut output = ChildOutput::default();
    let attended = attend(handoff, &supervisor, pipe, &mut output);
    if attended.is_err() || handoff.is_over() {
        child.kill();
    }
    handoff.stop_signalling();
    attended?;
    Ok(child.reap(&supervisor, &output))
}

/// The command-line arguments of an iperf3 server for one test. iperf3 uses the port only in what it prints, because
/// the child gets a substitute for its listener from the supervisor instead of opening its own.
fn arguments(order: &ChildSetup) -> Vec<String> {
    let any = if order.local.to_canonical().is_ipv4() { "0.0.0.0" } else { "::" };
    let port = order.port.to_string();
    let mut arguments = ["-s", "-1", "-p", &port, "-B", any, "-i", "0", "--forceflush"].map(str::to_owned).to_vec();
    // The clocks of both ends may differ. The login is valid for this session only, so its time stamp does not matter.
    let login = ["--rsa-private-key-path", KEY_FILE, "--authorized-users-path", USERS_FILE];
    arguments.extend(login.map(str::to_owned));
    arguments.extend(["--time-skew-threshold", MAX_CLOCK_SKEW_S].map(str::to_owned));
    arguments.extend(order.program.padding_option(order.padding).map(str::to_owned));
    arguments
}

/// Answers the child's system calls and reads its output until the child closes its output or the session ends.
fn attend(
    handoff: &LaneHandoff,
    supervisor: &Supervisor,
    mut pipe: PipeReader,
    output: &mut ChildOutput,
) -> io::Result<()> {
    let mut accepts = VecDeque::new();
    loop {
        let mut polled = [
            PollFd::new(&handoff.notifier, PollFlags::IN),
            PollFd::new(supervisor, PollFlags::IN),
            PollFd::new(&pipe, PollFlags::IN),
        ];
        let next_look = handoff.account().and_then(|soon| Timespec::try_from(soon).ok());
        match rustix::event::poll(&mut polled, next_look.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [notifier, question, printed] = [0, 1, 2].map(|at| polled[at].revents());
        if handoff.is_over() {
            return Ok(());
        }
        // What the child writes to its listener has no meaning. If the child closes its end, the poll would never block
        // again.
        if !notifier.is_empty() && !drain(&handoff.notifier) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if question.contains(PollFlags::IN)
            && let Some(question) = supervisor.next()?
        {
            answer(handoff, supervisor, question, &mut accepts);
        }
        if !printed.is_empty() {
            let mut bytes = [0; 4096];
            match pipe.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    if output.push(&bytes[..read]) {
                        handoff.set_listening();
                    } else if output.listens
                        && let Some(error) = output.error()
                    {
                        handoff.set_error(error);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        answer_accepts(handoff, supervisor, &mut accepts);
    }
}

/// Reads and discards the bytes that the child wrote to its listener. Returns `false` if the child closed its end.
fn drain(mut notifier: &std::os::unix::net::UnixStream) -> bool {
    !matches!(notifier.read(&mut [0; 256]), Ok(0))
}

/// Answers a system call of the child. `socket` returns the substitute for the child's listener, and is refused unless
/// it is for TCP. `accept` waits for the next authenticated connection. `close` also ends the connection that the
/// descriptor belongs to.
fn answer(handoff: &LaneHandoff, supervisor: &Supervisor, question: Question, accepts: &mut VecDeque<Question>) {
    match question.call {
        libc::SYS_close => {
            // The kernel refuses numbers that are no descriptors.
            handoff.close_descriptor(question.arguments[0] as i32);
            return supervisor.let_happen(question);
        }
        libc::SYS_socket => {}
        _ => return accepts.push_back(question),
    }
    if is_for_tcp(question.arguments) {
        if let Err(error) = supervisor.hand_over(question, handoff.listener.as_fd()) {
            tracing::debug!(%error, "cannot give iperf3 its listener");
            supervisor.refuse(question, libc::EMFILE);
        }
    } else {
        tracing::debug!(arguments = ?question.arguments, "an iperf3 was refused a socket");
        supervisor.refuse(question, libc::EACCES);
    }
}

/// Whether these arguments of socket(2) (family, type with its flags, protocol) are for TCP.
fn is_for_tcp([family, kind, protocol, ..]: [u64; 6]) -> bool {
    let is = |value: u64, known: i32| value == u64::from(known.unsigned_abs());
    let kind = kind & !u64::from((libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).unsigned_abs());
    (is(family, libc::AF_INET) || is(family, libc::AF_INET6))
        && is(kind, libc::SOCK_STREAM)
        && (protocol == 0 || is(protocol, libc::IPPROTO_TCP))
}

fn answer_accepts(handoff: &LaneHandoff, supervisor: &Supervisor, accepts: &mut VecDeque<Question>) {
    while let Some(question) = accepts.front().copied() {
        let Some(connection) = handoff.take() else { return };
        accepts.pop_front();
        match supervisor.hand_over(question, connection.socket.as_fd()) {
            Ok(of_child) => handoff.set_accepted(&connection, of_child),
            // The call was interrupted; the child repeats it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => handoff.put_back(connection),
            Err(error) => {
                tracing::debug!(%error, "cannot give iperf3 a connection");
                supervisor.refuse(question, libc::EMFILE);
            }
        }
    }
}

/// A running iperf3 server. Dropping this value kills and reaps the process.
struct ServerChild {
    pid: Pid,
    process: std::process::Child,
}

impl ServerChild {
    fn reap(mut self, supervisor: &Supervisor, output: &ChildOutput) -> ChildExit {
        // A child that exits by itself does so at once; all others are killed.
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
        let exited_at = Instant::now();
        self.kill();
        // The child's processor time can be read only until the child is reaped.
        let cpu_s = await_exit(self.pid);
        let status = self.process.wait();
        let ended_well = status.as_ref().is_ok_and(std::process::ExitStatus::success);
        let error = output.error().or_else(|| match status {
            _ if ended_well => None,
            Ok(status) => Some(format!("iperf3 exited with {status}")),
            Err(why) => Some(why.to_string()),
        });
        ChildExit { cpu_s, at: Some(exited_at), error }
    }

    fn kill(&self) {
        signal_group(self.pid, Signal::KILL);
    }
}

impl Drop for ServerChild {
    fn drop(&mut self) {
        // The pid of a reaped child may belong to another process by now.
        if !matches!(self.process.try_wait(), Ok(None)) {
            return;
        }
        self.kill();
        if let Err(error) = self.process.wait() {
            tracing::warn!(%error, "cannot reap an iperf3");
        }
    }
}

/// The last bytes of a child's output, and whether the child has begun to listen.
#[derive(Default)]
struct ChildOutput {
    text: Vec<u8>,
    listens: bool,
}

impl ChildOutput {
    /// Adds output. Returns `true` only once: when the output shows that the child has begun to listen.
    fn push(&mut self, bytes: &[u8]) -> bool {
        self.text.extend_from_slice(bytes);
        let starts_listening = !self.listens && String::from_utf8_lossy(&self.text).contains("Server listening");
        self.listens |= starts_listening;
        let surplus = self.text.len().saturating_sub(MAX_OUTPUT_BYTES);
        self.text.drain(..surplus);
        starts_listening
    }

    /// The error that the child printed. If the child never listened and printed no error, returns its last line.
    fn error(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.text);
        if self.listens && !text.contains("error") { None } else { output::error_line(&text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_gets_only_tcp_sockets() {
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
    fn output_is_read_in_pieces_and_its_error_kept() {
        let mut output = ChildOutput::default();
        assert!(!output.push(b"-----\nServer lis"));
        assert!(output.push(b"tening on 5201 (test #1)\n"));
        assert!(!output.push(b"Server listening again\n"));
        assert_eq!(output.error(), None);
        output.push(&b"x".repeat(3 * MAX_OUTPUT_BYTES));
        assert_eq!(output.text.len(), MAX_OUTPUT_BYTES);
        output.push(b"\niperf3: error - test authorization \x1b[2Jfailed\n");
        assert_eq!(output.error().unwrap(), "test authorization [2Jfailed");
    }

    #[test]
    fn the_last_line_of_a_child_that_never_listened_is_its_error() {
        let mut output = ChildOutput::default();
        output.push(b"iperf3: cannot load library: libiperf.so.0\n");
        assert_eq!(output.error().unwrap(), "cannot load library: libiperf.so.0");
    }
}
