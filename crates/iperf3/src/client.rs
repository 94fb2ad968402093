//! One run of an iperf3 client: its options, its start, its readings (what it counts per interval) and its exit.
//! `output.rs` parses what the client prints.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use paramedic_engines::engine::PhaseProgress;
use paramedic_engines::host_facts::CpuClock;
use paramedic_engines::origin::Origin;
use paramedic_engines::session_control::SessionControl;
use paramedic_engines::sys::child;
use paramedic_engines::tcp::rate_limit;
use paramedic_engines::thread_limit;
use paramedic_link::measurement::{Count, CpuUse, DirectionTally, PhaseTally, Sample};
use paramedic_link::test_spec::{Direction, Load, PhaseSpec, TestSpec};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;
use zeroize::Zeroizing;

use super::COUNTED_BY_IPERF3;
use super::login::LoginPadding;
use super::output::{self, ClientReading, ClientReport, FailureKind, PayloadProtocol, StreamParser, Unreadable};
use super::path_watch::PathWatch;
use super::process::{await_exit, folder_in, signal_group, write_new};
use super::program::Program;

/// The interval of the client's readings in seconds: the shortest that iperf3 supports, and the interval of the engines
/// tcp and udp.
const INTERVAL_S: &str = "0.1";
/// The maximum number of bytes that a client may print for one reading. In each interval and direction it prints one
/// reading per stream, and one for all streams together. The limit is about three times what iperf3 prints.
const MAX_BYTES_PER_READING: u64 = 2048;
/// The maximum number of bytes that a client may print in addition to its readings.
const MAX_BYTES_BESIDE_READINGS: u64 = 1 << 20;
/// The maximum number of bytes that a client may print in total: enough for an hour with four streams.
const MAX_OUTPUT_BYTES: u64 = 256 << 20;
/// The maximum number of bytes that are kept from a client's stderr.
const MAX_STDERR_BYTES: u64 = 16 << 10;
/// How long an interrupted client may take to print what it has measured. Callers must wait longer than this.
const INTERRUPT_GRACE: Duration = Duration::from_secs(3);
/// A client is interrupted if nothing arrived from its server for this long, not even the answer to a keepalive.
/// Together with [`INTERRUPT_GRACE`] this time is shorter than the silence that ends a session.
const MAX_SILENCE: Duration = Duration::from_secs(6);
/// How often the state of the path is checked.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// If nothing arrived from the server for this long, readings without bytes are held back: the path may be silent.
const SILENT_AFTER: Duration = Duration::from_secs(2);

/// The login at an iperf3 server.
#[derive(Clone)]
pub struct Credentials {
    /// The user name.
    pub user: String,
    /// The password. The client gets it in its environment, which other users cannot read.
    pub password: Zeroizing<String>,
    /// The server's public key in PEM. iperf3 encrypts the login with it.
    pub public_key_pem: String,
    /// The padding of the login before encryption.
    pub padding: LoginPadding,
}

/// The options of one run of a client.
#[derive(Clone)]
pub struct ClientOrder {
    /// The address of the server.
    pub target: SocketAddr,
    /// The directions of the payload.
    pub load: Load,
    /// The duration of the counted part of the test, in seconds.
    pub seconds: u32,
    /// The seconds at the start that iperf3 excludes from its totals (`-O`). The counted part follows them.
    pub omit_seconds: Option<u32>,
    /// The number of streams, the rate (absent: iperf3's default, which is 1 Mbit/s for UDP and no limit for TCP) and
    /// the socket options. Phases and data mode are ignored.
    pub spec: TestSpec,
    /// The protocol of the payload.
    pub transport: PayloadProtocol,
    /// The local address or interface to send from, if the user chose one.
    pub origin: Origin,
    /// How long the control connection may take to open.
    pub connect_timeout: Duration,
    /// The login, if the server requires one.
    pub credentials: Option<Credentials>,
    /// Whether to keep the client's raw output.
    pub keeps_raw: bool,
    /// An existing private folder for temporary files.
    pub scratch: PathBuf,
}

/// The bytes that iperf3 writes at once over TCP by default.
const DEFAULT_BLOCK_BYTES: u64 = 128 << 10;

/// The name of the file with the server's public key, in a client's folder.
const KEY_FILE: &str = "server.pem";

impl ClientOrder {
    /// The command line for this version of iperf3.
    fn arguments(&self, program: &Program) -> Vec<String> {
        // `IpAddr` does not print the scope of a link-local address.
        let host = match self.target {
            SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
            _ => self.target.ip().to_canonical().to_string(),
        };
        let mut arguments = vec!["-c".to_owned(), host, "-p".to_owned(), self.target.port().to_string()];
        let mut option = |name: &str, value: Option<String>| {
            arguments.push(name.to_owned());
            arguments.extend(value);
        };
        option(if streams_json(program) { "--json-stream" } else { "--json" }, None);
        option("-i", Some(INTERVAL_S.to_owned()));
        match self.spec.direction_bytes {
            Some(bytes) => option("-n", Some(bytes.to_string())),
            None => option("-t", Some(self.seconds.to_string())),
        }
        if let Some(seconds) = self.omit_seconds {
            option("-O", Some(seconds.to_string()));
        }
        option("-P", Some(self.spec.streams.to_string()));
        option("--connect-timeout", Some(self.connect_timeout.as_millis().to_string()));
        match self.load {
            Load::Download => option("-R", None),
            Load::Bidir => option("--bidir", None),
            Load::Upload | Load::Idle | Load::Unknown => {}
        }
        if self.transport == PayloadProtocol::Udp {
            option("-u", None);
        }
        if let Some(bps) = self.spec.bitrate_bps {
            option("-b", Some(bps.to_string()));
        }
        if let Some(name) = &self.spec.congestion_control {
            option("-C", Some(name.clone()));
        }
        if let Some(bytes) = self.spec.window_bytes {
            option("-w", Some(bytes.to_string()));
        }
        if let Some(bytes) = self.block_bytes() {
            option("-l", Some(bytes.to_string()));
        }
        if let Some(bytes) = self.spec.mss_bytes {
            option("-M", Some(bytes.to_string()));
        }
        if let Some(code_point) = self.spec.dscp {
            option("--dscp", Some(code_point.to_string()));
        }
        if let Some(address) = self.origin.address {
            option("-B", Some(address.to_string()));
        }
        if let Some(interface) = &self.origin.interface {
            option("--bind-dev", Some(interface.clone()));
        }
        if let Some(credentials) = &self.credentials {
            option("--username", Some(credentials.user.clone()));
            option("--rsa-public-key-path", Some(KEY_FILE.to_owned()));
            arguments.extend(program.padding_option(credentials.padding).map(str::to_owned));
        }
        arguments
    }
}

impl ClientOrder {
    /// The size of each write in bytes, if the user set one. Otherwise a size that is small enough for the rate limit
    /// and for the number of bytes to send: iperf3's default block (128 KiB) takes 16 s at 64 kbit/s, and iperf3 does
    /// nothing else while it writes a block. `None` means iperf3's default block.
    fn block_bytes(&self) -> Option<u64> {
        let limited = || {
            let bps = self.spec.bitrate_bps.filter(|bps| *bps > 0 && self.transport == PayloadProtocol::Tcp)?;
            Some(rate_limit::write_size(bps))
        };
        // iperf3 writes whole blocks, even if fewer bytes are left to send.
        let few = || self.spec.direction_bytes.filter(|_| self.transport == PayloadProtocol::Tcp);
        let chosen = || [limited(), few()].into_iter().flatten().min().filter(|bytes| *bytes < DEFAULT_BLOCK_BYTES);
        self.spec.block_bytes.map(u64::from).or_else(chosen)
    }
}

/// Whether this version of iperf3 prints readings while the test runs.
fn streams_json(program: &Program) -> bool {
    program.knows("--json-stream")
}

/// A client that runs or has exited. Dropping this value kills the client.
pub struct Client {
    shared: Arc<ClientShared>,
}

struct ClientShared {
    state: Mutex<ClientState>,
    changed: Condvar,
    control: Arc<SessionControl>,
    target: SocketAddr,
    /// Whether the client ends after a number of bytes instead of a time.
    has_bytes: bool,
}

#[derive(Default)]
struct ClientState {
    /// The process id. Set while the client may be signalled.
    pid: Option<Pid>,
    new_readings: Vec<ClientReading>,
    /// Why this program interrupted the client, if it did.
    ended_for: Option<EarlyEnd>,
    end: Option<Arc<ClientExit>>,
}

/// What is known about a client that has exited.
#[derive(Clone, Debug)]
pub struct ClientExit {
    /// The parsed output.
    pub report: Result<ClientReport, Unreadable>,
    /// The raw output: a JSON document, or the lines of `--json-stream` as one JSON array.
    pub raw: Option<String>,
    /// The error that the client printed on stderr.
    pub complaint: Option<String>,
    /// The client's processor time, and the load of this host during the run.
    pub cpu: CpuUse,
    /// Why this program interrupted the client, if the client did not exit by itself.
    pub ended_for: Option<EarlyEnd>,
}

/// Why this program interrupted a client before the client exited by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyEnd {
    /// The client did not exit in time.
    Overdue,
    /// The client had not moved all requested bytes in time.
    BytesLeft,
    /// The path to the server is silent.
    PathSilent {
        /// How long nothing had arrived from the server.
        silent_for: Duration,
        /// The payload bytes that the server's kernel had acknowledged until then.
        acknowledged: u64,
    },
}

impl ClientExit {
    /// Why the run failed or is incomplete; `None` if the run is complete.
    pub fn failure(&self) -> Option<String> {
        match self.ended_for {
            Some(EarlyEnd::Overdue) => return Some("iperf3 did not exit in time and was killed".to_owned()),
            Some(EarlyEnd::BytesLeft) => {
                return Some("the time (-t) ended before all bytes (-n) had moved".into());
            }
            Some(EarlyEnd::PathSilent { silent_for, .. }) => {
                let seconds = silent_for.as_secs();
                return Some(format!(
                    "no packet arrived from the server for {seconds} s, not even a TCP acknowledgement"
                ));
            }
            None => {}
        }
        let complaint = || self.complaint.clone();
        let why = match &self.report {
            Ok(ClientReport { error: Some(error), .. }) => error.clone(),
            Ok(report) if report.is_complete => return None,
            Ok(_) => complaint().unwrap_or_else(|| "no error, but it exited before the test was over".to_owned()),
            Err(unreadable) => complaint().unwrap_or_else(|| unreadable.to_string()),
        };
        Some(format!("iperf3 reports: {why}"))
    }

    /// The kind of [`Self::failure`].
    pub fn failure_kind(&self) -> Option<FailureKind> {
        match self.ended_for {
            Some(EarlyEnd::PathSilent { .. }) => Some(FailureKind::PathSilent),
            Some(EarlyEnd::BytesLeft) => Some(FailureKind::BytesLeft),
            Some(EarlyEnd::Overdue) | None => self.failure().as_deref().map(FailureKind::of),
        }
    }

    /// For an upload over a path that fell silent: the payload that the server had acknowledged, and the time until the
    /// silence. Both exclude the omitted part. Nothing else is known about such an upload, because the server cannot be
    /// asked. `None` if the path did not fall silent, if it fell silent in the omitted part, or if the output cannot be
    /// parsed.
    pub fn acknowledged(&self) -> Option<Count> {
        let Some(EarlyEnd::PathSilent { silent_for, acknowledged }) = self.ended_for else { return None };
        // Includes the readings during the silence: the last reading ends when the client was interrupted.
        let readings = &self.report.as_ref().ok()?.readings;
        let of = |omitted| {
            sum(readings.iter().filter(|reading| reading.direction == Direction::Upload && reading.omitted == omitted))
        };
        let elapsed = Duration::from_micros(of(false).elapsed_us).checked_sub(silent_for)?;
        let bytes = acknowledged.saturating_sub(of(true).bytes);
        Some(Count { bytes, elapsed_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX) })
    }
}

impl Client {
    /// Starts a client. Wakes `control` at each new reading and at the client's exit.
    pub fn start(program: &Program, order: &ClientOrder, control: Arc<SessionControl>) -> io::Result<Self> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        let (target, has_bytes) = (order.target, order.spec.direction_bytes.is_some());
        let shared = Arc::new(ClientShared { state, changed, control, target, has_bytes });
        let (sender, started) = mpsc::channel();
        {
            let (shared, program, order) = (Arc::clone(&shared), program.clone(), order.clone());
            let run = move || run(&program, &order, &shared, &sender);
            thread_limit::spawn("iperf3-client", run)?;
        }
        started.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))??;
        Ok(Self { shared })
    }

    /// Waits until the client has exited, and passes its readings to `on_reading`. If the path fell silent, leaves out
    /// the last readings, which have no bytes. Interrupts the client when the session is cancelled, `deadline` has
    /// passed, or nothing arrives from the server for `MAX_SILENCE`.
    pub fn follow(&self, deadline: Instant, on_reading: impl FnMut(ClientReading)) -> Arc<ClientExit> {
        let control = &self.shared.control;
        let mut watch = self.path_watch();
        let mut readings = ReadingQueue { held: Vec::new(), on_reading };
        let mut next_look = Instant::now();
        let mut silent_for = Duration::ZERO;
        loop {
            control.wait_until(deadline.min(next_look), || self.has_changed());
            if let Some(end) = self.end() {
                readings.pass(self.take_readings(), silent_for);
                if !matches!(end.ended_for, Some(EarlyEnd::PathSilent { .. })) {
                    readings.flush();
                }
                return end;
            }
            let now = Instant::now();
            let mut acknowledged = 0;
            if now >= next_look {
                next_look = now + LOOK_INTERVAL;
                if let Some(path) = watch.as_mut().and_then(PathWatch::look) {
                    (silent_for, acknowledged) = (path.silent_for, path.acknowledged);
                }
            }
            readings.pass(self.take_readings(), silent_for);
            let is_cancelled = control.is_cancelled();
            let ended_for = match () {
                () if is_cancelled => None,
                () if silent_for >= MAX_SILENCE => Some(EarlyEnd::PathSilent { silent_for, acknowledged }),
                () if now >= deadline && self.shared.has_bytes => Some(EarlyEnd::BytesLeft),
                () if now >= deadline => Some(EarlyEnd::Overdue),
                () => continue,
            };
            self.shared.state().ended_for = ended_for;
            self.interrupt();
        }
    }

    /// Starts to watch the path of a running client.
    fn path_watch(&self) -> Option<PathWatch> {
        // While the lock is held, the client is not reaped, so its pid cannot belong to another process.
        let state = self.shared.state();
        let watch = PathWatch::open(state.pid?, self.shared.target);
        watch.inspect_err(|errno| tracing::debug!(%errno, "the path of an iperf3 cannot be watched")).ok()
    }

    fn take_readings(&self) -> Vec<ClientReading> {
        std::mem::take(&mut self.shared.state().new_readings)
    }

    fn has_changed(&self) -> bool {
        let state = self.shared.state();
        !state.new_readings.is_empty() || state.end.is_some()
    }

    /// How the client exited, if it has.
    pub(super) fn end(&self) -> Option<Arc<ClientExit>> {
        self.shared.state().end.clone()
    }

    /// Interrupts the client, which may still print what it has measured. Kills it after [`INTERRUPT_GRACE`].
    fn interrupt(&self) -> Arc<ClientExit> {
        self.shared.signal(Signal::INT);
        let deadline = Instant::now() + INTERRUPT_GRACE;
        let mut state = self.shared.state();
        loop {
            if let Some(end) = &state.end {
                return Arc::clone(end);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // The thread that reads the client's output then sets `end`.
                drop(state);
                self.shared.signal(Signal::KILL);
                state = self.shared.state();
                while state.end.is_none() {
                    state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                continue;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Passes readings on. Holds back readings without bytes while the path is silent, because they do not measure the
/// path.
struct ReadingQueue<F> {
    held: Vec<ClientReading>,
    on_reading: F,
}

impl<F: FnMut(ClientReading)> ReadingQueue<F> {
    fn pass(&mut self, readings: Vec<ClientReading>, silent_for: Duration) {
        for reading in readings {
            if reading.bytes > 0 || silent_for < SILENT_AFTER {
                self.flush();
                (self.on_reading)(reading);
            } else {
                self.held.push(reading);
            }
        }
    }

    fn flush(&mut self) {
        self.held.drain(..).for_each(&mut self.on_reading);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.signal(Signal::KILL);
    }
}

impl ClientShared {
    fn state(&self) -> MutexGuard<'_, ClientState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: Signal) {
        let state = self.state();
        if let Some(pid) = state.pid {
            signal_group(pid, signal);
        }
    }

    fn notify(&self) {
        self.changed.notify_all();
        self.control.wake();
    }
}

/// The body of the thread that owns the client. The kernel kills the client when this thread ends.
fn run(program: &Program, order: &ClientOrder, shared: &ClientShared, started: &mpsc::Sender<io::Result<()>>) {
    let clock = CpuClock::start();
    let began = Instant::now();
    let (folder, mut process, complaints) = match spawn(program, order) {
        Ok(started) => started,
        Err(error) => {
            // `Client::start` waits for this message.
            return started.send(Err(error)).unwrap_or(());
        }
    };
    let pid = Pid::from_child(&process);
    shared.state().pid = Some(pid);
    started.send(Ok(())).unwrap_or(());
    let output = process
        .stdout
        .take()
        .map(|stdout| read_output(stdout, streams_json(program), order, shared))
        .unwrap_or_default();
    // A client that has closed its output exits at once.
    let used = await_exit(pid).unwrap_or_default();
    shared.state().pid = None;
    if let Err(error) = process.wait() {
        tracing::debug!(%error, "cannot reap an iperf3");
    }
    drop(folder);
    let complaint = complaints.join().ok().and_then(|text| output::error_line(&String::from_utf8_lossy(&text)));
    let lived = began.elapsed().as_secs_f64().max(f64::EPSILON);
    let end = ClientExit {
        report: output.report.unwrap_or(Err(Unreadable::Empty)),
        raw: output.raw,
        complaint,
        cpu: CpuUse {
            user_s: used.0,
            system_s: used.1,
            busiest_thread: program.share_of_a_thread(used.0 + used.1, lived, order.spec.streams),
            ..clock.host()
        },
        ended_for: None,
    };
    {
        let mut state = shared.state();
        let ended_for = state.ended_for;
        state.end = Some(Arc::new(ClientExit { ended_for, ..end }));
    }
    shared.notify();
}

/// Starts the client in a folder of its own, and starts the thread that reads its stderr.
fn spawn(program: &Program, order: &ClientOrder) -> io::Result<(TempDir, Child, JoinHandle<Vec<u8>>)> {
    let folder = folder_in(&order.scratch)?;
    let (complaints, theirs) = io::pipe()?;
    let mut command = Command::new(&program.path);
    command.args(order.arguments(program)).current_dir(folder.path()).env("TMPDIR", folder.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(theirs);
    if let Some(credentials) = &order.credentials {
        write_new(&folder.path().join(KEY_FILE), &credentials.public_key_pem)?;
        command.env("IPERF3_PASSWORD", &*credentials.password);
    }
    // Started before the client, whose stderr must not stay unread. If the client does not start, the pipe ends at
    // once.
    let reader = thread_limit::spawn("iperf3-stderr", move || read_complaints(complaints))?;
    Ok((folder, child::spawn(command)?, reader))
}

fn read_complaints(mut stderr: io::PipeReader) -> Vec<u8> {
    let mut text = Vec::new();
    let kept = stderr.by_ref().take(MAX_STDERR_BYTES).read_to_end(&mut text);
    // Discards the rest, so that the client does not block in a write.
    if let Err(error) = kept.and_then(|_| io::copy(&mut stderr, &mut io::sink())) {
        tracing::debug!(%error, "cannot read the errors of an iperf3");
    }
    text
}

#[derive(Default)]
struct ClientOutput {
    report: Option<Result<ClientReport, Unreadable>>,
    raw: Option<String>,
}

/// Reads the client's stdout to its end. If the client prints readings while it runs, passes them on at once.
fn read_output(stdout: impl Read, streams_json: bool, order: &ClientOrder, shared: &ClientShared) -> ClientOutput {
    let mut stdout = stdout.take(max_output_bytes(order));
    let mut text = Vec::new();
    let mut parser = StreamParser::new();
    // The end of the last parsed line, and how far the next line's end was searched.
    let (mut parsed, mut searched) = (0, 0);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stdout.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => text.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        }
        if streams_json {
            let mut fresh = Vec::new();
            while let Some(end) = text[searched..].iter().position(|byte| *byte == b'\n') {
                let end = searched + end;
                fresh.extend(parser.line(&String::from_utf8_lossy(&text[parsed..end])));
                (parsed, searched) = (end + 1, end + 1);
            }
            searched = text.len();
            if !fresh.is_empty() {
                shared.state().new_readings.extend(fresh);
                shared.notify();
            }
        }
    }
    // A client that prints more would block in its write, because no more is read.
    if stdout.limit() == 0 {
        shared.signal(Signal::KILL);
    }
    let text = String::from_utf8_lossy(&text);
    let report = output::parse(&text);
    if let Ok(report) = &report
        && !streams_json
    {
        shared.state().new_readings.clone_from(&report.readings);
    }
    let is_kept = order.keeps_raw && !text.trim().is_empty();
    let raw = is_kept.then(|| if streams_json { as_array(&text) } else { text.trim().to_owned() });
    ClientOutput { report: Some(report), raw }
}

/// The maximum number of bytes that a run of `order` may print.
fn max_output_bytes(order: &ClientOrder) -> u64 {
    let intervals = 10 * (u64::from(order.seconds) + u64::from(order.omit_seconds.unwrap_or(0)) + 1);
    let readings = intervals * (2 * u64::from(order.spec.streams) + 2);
    (MAX_BYTES_BESIDE_READINGS + readings * MAX_BYTES_PER_READING).min(MAX_OUTPUT_BYTES)
}

/// The lines of `--json-stream` as one JSON array.
fn as_array(lines: &str) -> String {
    let events = lines.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>();
    format!("[{}]", events.join(",\n"))
}

/// A reading as the progress of a phase. Received bytes count for the result; sent bytes serve for comparison.
pub fn progress(reading: &ClientReading) -> PhaseProgress {
    let sample = Sample { at_us: reading.end_us, bytes: reading.bytes };
    match reading.direction {
        Direction::Download => PhaseProgress::Received(reading.direction, sample),
        Direction::Upload => PhaseProgress::Sent(reading.direction, sample),
    }
}

/// The tally of what the client counted in a phase. One process serves both directions of a run, so its processor time
/// appears in the tallies of both.
pub fn tally(phase: &PhaseSpec, asked_streams: u16, end: &ClientExit, readings: &[ClientReading]) -> PhaseTally {
    let report = end.report.as_ref().ok();
    let of = |direction: Direction| {
        let totals = report.and_then(|report| report.totals(direction));
        let whole = totals.and_then(|totals| match direction {
            Direction::Download => totals.received,
            Direction::Upload => totals.sent,
        });
        let read = |omitted| {
            sum(readings.iter().filter(|reading| reading.direction == direction && reading.omitted == omitted))
        };
        let counted = whole.map(|whole| Count { bytes: whole.bytes, elapsed_us: whole.duration_us });
        let (counted, omitted) = (counted.unwrap_or_else(|| read(false)), read(true));
        // The congestion control and the retransmits, which only the sender knows.
        let sent = totals.filter(|_| direction == Direction::Upload);
        let streams = totals.map_or(0, |totals| totals.streams);
        DirectionTally {
            count: Count {
                bytes: counted.bytes.saturating_add(omitted.bytes),
                elapsed_us: counted.elapsed_us.saturating_add(omitted.elapsed_us),
            },
            cpu: end.cpu,
            congestion_control: sent.and_then(|totals| totals.congestion_control.as_deref()).map(Into::into),
            data_path: Some("plain".into()),
            mss: report.filter(|_| direction == Direction::Upload).and_then(|report| report.mss),
            path_mtu: None,
            retransmits: sent.and_then(|totals| totals.retransmits),
            // An incomplete test has no totals and so no number of streams.
            streams: if streams == 0 && counted.bytes > 0 { asked_streams } else { streams },
            datagrams: None,
            reduced_window_bytes: None,
            counted_by: Some(COUNTED_BY_IPERF3.into()),
            tcp_times: None,
        }
    };
    let moved = |direction| phase.load.moves(direction).then(|| of(direction));
    let why = end.failure();
    PhaseTally {
        download: moved(Direction::Download),
        upload: moved(Direction::Upload),
        cut_short: why.map(|why| why.as_str().into()),
        interface: None,
    }
}

/// The sum of readings. A failing client may print its last reading twice; the repetition is ignored.
fn sum<'a>(readings: impl Iterator<Item = &'a ClientReading>) -> Count {
    readings.fold(Count::default(), |sum, reading| {
        if reading.end_us <= sum.elapsed_us {
            return sum;
        }
        Count { bytes: sum.bytes.saturating_add(reading.bytes), elapsed_us: reading.end_us }
    })
}

#[cfg(test)]
mod tests {
    use paramedic_link::test_spec::{DataMode, EngineId};

    use super::*;

    fn reading(direction: Direction, end_us: u64, bytes: u64, omitted: bool) -> ClientReading {
        ClientReading { direction, begin_us: 0, end_us, bytes, omitted, retransmits: None, udp: None }
    }

    fn upload(end_us: u64, bytes: u64) -> ClientReading {
        reading(Direction::Upload, end_us, bytes, false)
    }

    #[test]
    fn a_reading_that_is_printed_twice_counts_once() {
        let readings = [upload(100, 5), upload(200, 7), upload(200, 7)];
        assert_eq!(sum(readings.iter()), Count { bytes: 12, elapsed_us: 200 });
    }

    #[test]
    fn readings_of_a_silent_path_are_passed_on_only_if_bytes_follow() {
        let mut passed = Vec::new();
        let mut queue =
            ReadingQueue { held: Vec::new(), on_reading: |reading: ClientReading| passed.push(reading.end_us) };
        queue.pass(vec![upload(1, 5), upload(2, 0)], Duration::ZERO);
        queue.pass(vec![upload(3, 0)], SILENT_AFTER);
        queue.pass(vec![upload(4, 0), upload(5, 9), upload(6, 0)], MAX_SILENCE);
        queue.pass(vec![upload(7, 0)], MAX_SILENCE);
        drop(queue);
        assert_eq!(passed, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn an_upload_over_a_path_that_fell_silent_counts_what_was_acknowledged_until_then() {
        let exit = |ended_for, readings: &[ClientReading]| ClientExit {
            report: Ok(ClientReport { readings: readings.to_vec(), ..ClientReport::default() }),
            raw: None,
            complaint: None,
            cpu: CpuUse::default(),
            ended_for,
        };
        let silent_for = Duration::from_secs(6);
        let silent = Some(EarlyEnd::PathSilent { silent_for, acknowledged: 1000 });
        let readings = [reading(Direction::Upload, 1_000_000, 300, true), upload(2_100_000, 900), upload(8_000_000, 0)];
        let counted = Some(Count { bytes: 700, elapsed_us: 2_000_000 });
        assert_eq!(exit(silent, &readings).acknowledged(), counted);
        assert_eq!(exit(silent, &[]).acknowledged(), None, "it fell silent before the first reading");
        assert_eq!(exit(silent, &readings).failure_kind(), Some(FailureKind::PathSilent));
        assert_eq!(exit(Some(EarlyEnd::Overdue), &readings).acknowledged(), None);
    }

    #[test]
    fn a_block_suits_the_rate_limit_and_the_bytes() {
        let bytes = |transport, spec: TestSpec| {
            let order = ClientOrder {
                target: ([127, 0, 0, 1], 5201).into(),
                load: Load::Upload,
                seconds: 1,
                omit_seconds: None,
                spec,
                transport,
                origin: Origin::default(),
                connect_timeout: Duration::from_secs(1),
                credentials: None,
                keeps_raw: false,
                scratch: PathBuf::new(),
            };
            order.block_bytes()
        };
        let spec = || {
            let engine = EngineId::try_from("iperf3").unwrap();
            TestSpec::new(engine, DataMode::DirectEphemeral, vec![], 1)
        };
        let limited = |bps| TestSpec { bitrate_bps: Some(bps), ..spec() };
        assert_eq!(bytes(PayloadProtocol::Tcp, spec()), None);
        assert_eq!(bytes(PayloadProtocol::Tcp, limited(0)), None);
        assert_eq!(bytes(PayloadProtocol::Tcp, limited(64_000)), Some(800));
        assert_eq!(bytes(PayloadProtocol::Tcp, limited(20_000_000)), Some(25_000));
        assert_eq!(bytes(PayloadProtocol::Tcp, limited(1_000_000_000)), None, "iperf3's own block lasts a millisecond");
        assert_eq!(bytes(PayloadProtocol::Udp, limited(64_000)), None, "a datagram is short");
        let asked = TestSpec { block_bytes: Some(65_536), ..limited(64_000) };
        assert_eq!(bytes(PayloadProtocol::Tcp, asked), Some(65_536));
    }
}
