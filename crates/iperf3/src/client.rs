//! One run of an iperf3 client: what it is told, and how it is started, heard, and ended. What it says is read elsewhere.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use paramedic_engines::engine::PhaseProgress;
use paramedic_engines::host_facts::{self, CpuClock};
use paramedic_engines::origin::Origin;
use paramedic_engines::session_control::SessionControl;
use paramedic_engines::sys::child;
use paramedic_link::measurement::{Count, CpuUse, DirectionTally, PhaseTally, Sample};
use paramedic_link::test_spec::{Direction, Load, PhaseSpec, TestSpec};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tempfile::TempDir;
use zeroize::Zeroizing;

use super::login::LoginPadding;
use super::output::{self, ClientReading, ClientReport, PayloadProtocol, StreamParser, Unreadable};
use super::program::Program;
use super::{COUNTED_BY_IPERF3, folder_in, write_new};

/// The interval of its readings: the shortest that iperf3 has, and ours.
const INTERVAL_S: &str = "0.1";
/// The most that a client may print of one stream in one interval, both directions: thrice what it prints.
const MAX_BYTES_PER_READING: u64 = 2048;
/// And beside that.
const MAX_BYTES_BESIDE_READINGS: u64 = 1 << 20;
/// And in all: an hour of four streams.
const MAX_OUTPUT_BYTES: u64 = 256 << 20;
/// What is kept of what it says beside.
const MAX_STDERR_BYTES: u64 = 16 << 10;
/// How long one that was interrupted may take to print what it has measured. Who waits for it waits longer.
const INTERRUPT_GRACE: Duration = Duration::from_secs(3);

/// Who the client says it is.
#[derive(Clone)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// The password; it goes through the environment, where other users can't read it.
    pub password: Zeroizing<String>,
    /// The server's public key, PEM: what they are encrypted with.
    pub public_key_pem: String,
    /// How they are padded.
    pub padding: LoginPadding,
}

/// What one run is to do.
#[derive(Clone)]
pub struct ClientOrder {
    /// The server.
    pub target: SocketAddr,
    /// The directions.
    pub load: Load,
    /// How long, in whole seconds.
    pub seconds: u32,
    /// A start-up before that, which is not counted, in whole seconds.
    pub omit_seconds: Option<u32>,
    /// What is asked beside that: streams, rate (absent: iperf3's default, which is 1 Mbit/s for UDP and no limit for TCP),
    /// what the kernels are asked for. Its phases and mode don't matter.
    pub spec: TestSpec,
    /// What carries the payload.
    pub transport: PayloadProtocol,
    /// Where it leaves from.
    pub origin: Origin,
    /// How long it may take to connect.
    pub connect_timeout: Duration,
    /// Where the server wants them.
    pub credentials: Option<Credentials>,
    /// Whether its own words are to be kept.
    pub keeps_raw: bool,
    /// A folder to work in, which is there and ours alone.
    pub scratch: PathBuf,
}

/// The name of the key's file in a client's folder.
const KEY_FILE: &str = "server.pem";

impl ClientOrder {
    /// The command line, for this version of the program.
    fn arguments(&self, program: &Program) -> Vec<String> {
        // A scope has to stay with an address, which the address alone does not print.
        let host = match self.target {
            SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
            _ => self.target.ip().to_canonical().to_string(),
        };
        let mut arguments = vec!["-c".to_owned(), host, "-p".to_owned(), self.target.port().to_string()];
        let mut say = |option: &str, value: Option<String>| {
            arguments.push(option.to_owned());
            arguments.extend(value);
        };
        say(if streams_json(program) { "--json-stream" } else { "--json" }, None);
        say("-i", Some(INTERVAL_S.to_owned()));
        say("-t", Some(self.seconds.to_string()));
        if let Some(seconds) = self.omit_seconds {
            say("-O", Some(seconds.to_string()));
        }
        say("-P", Some(self.spec.streams.to_string()));
        say("--connect-timeout", Some(self.connect_timeout.as_millis().to_string()));
        match self.load {
            Load::Download => say("-R", None),
            Load::Bidir => say("--bidir", None),
            Load::Upload | Load::Idle | Load::Unknown => {}
        }
        if self.transport == PayloadProtocol::Udp {
            say("-u", None);
        }
        if let Some(bps) = self.spec.bitrate_bps {
            say("-b", Some(bps.to_string()));
        }
        if let Some(name) = &self.spec.congestion_control {
            say("-C", Some(name.clone()));
        }
        if let Some(bytes) = self.spec.window_bytes {
            say("-w", Some(bytes.to_string()));
        }
        if let Some(bytes) = self.spec.block_bytes {
            say("-l", Some(bytes.to_string()));
        }
        if let Some(bytes) = self.spec.mss_bytes {
            say("-M", Some(bytes.to_string()));
        }
        if let Some(code_point) = self.spec.dscp {
            say("--dscp", Some(code_point.to_string()));
        }
        if let Some(address) = self.origin.address {
            say("-B", Some(address.to_string()));
        }
        if let Some(interface) = &self.origin.interface {
            say("--bind-dev", Some(interface.clone()));
        }
        if let Some(credentials) = &self.credentials {
            say("--username", Some(credentials.user.clone()));
            say("--rsa-public-key-path", Some(KEY_FILE.to_owned()));
            arguments.extend(program.padding_option(credentials.padding).map(str::to_owned));
        }
        arguments
    }
}

/// Whether this version tells its readings as they come.
fn streams_json(program: &Program) -> bool {
    program.knows("--json-stream")
}

/// A client that runs, or ran. Dropping it kills it.
pub struct Client {
    shared: Arc<ClientShared>,
}

struct ClientShared {
    state: Mutex<ClientState>,
    changed: Condvar,
    control: Arc<SessionControl>,
}

#[derive(Default)]
struct ClientState {
    /// While it can be signalled.
    pid: Option<Pid>,
    fresh: Vec<ClientReading>,
    /// It was ended because it took too long.
    is_late: bool,
    end: Option<Arc<ClientExit>>,
}

/// What a client leaves behind.
#[derive(Clone, Debug)]
pub struct ClientExit {
    /// What it said, as far as it could be read.
    pub report: Result<ClientReport, Unreadable>,
    /// The same in its own words: a JSON document, or an array of its stream's.
    pub raw: Option<String>,
    /// Its last words beside, if it had any.
    pub complaint: Option<String>,
    /// What it cost this host.
    pub cpu: CpuUse,
    /// It did not end in time, and was ended.
    pub is_late: bool,
}

impl ClientExit {
    /// Why the run is not whole, if it is not: in iperf3's words, or ours.
    pub fn failure(&self) -> Option<String> {
        if self.is_late {
            return Some("iperf3 did not end in time, and was ended here".to_owned());
        }
        let complaint = || self.complaint.clone();
        let why = match &self.report {
            Ok(ClientReport { error: Some(error), .. }) => error.clone(),
            Ok(report) if report.is_complete => return None,
            Ok(_) => complaint().unwrap_or_else(|| "nothing; it ended in the middle of the test".to_owned()),
            Err(unreadable) => complaint().unwrap_or_else(|| unreadable.to_string()),
        };
        Some(format!("iperf3 says: {why}"))
    }
}

impl Client {
    /// Starts a client; the error says why it could not be. It is ended by a drop, and tells the control of all news.
    pub fn start(program: &Program, order: &ClientOrder, control: Arc<SessionControl>) -> io::Result<Self> {
        let shared = Arc::new(ClientShared { state: Mutex::default(), changed: Condvar::new(), control });
        let (told, started) = mpsc::channel();
        {
            let (shared, program, order) = (Arc::clone(&shared), program.clone(), order.clone());
            let run = move || run(&program, &order, &shared, &told);
            std::thread::Builder::new().name("iperf3-client".into()).spawn(run)?;
        }
        started.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))??;
        Ok(Self { shared })
    }

    /// Hears it out: its readings go to `tell` as they come. It is ended when the control is cut, or when it has not ended
    /// itself by the deadline.
    pub fn follow(&self, deadline: Instant, mut tell: impl FnMut(ClientReading)) -> Arc<ClientExit> {
        let end = loop {
            let in_time = self.shared.control.wait_until(deadline, || self.has_news());
            self.news().into_iter().for_each(&mut tell);
            if let Some(end) = self.end() {
                break end;
            }
            if !in_time {
                self.shared.state().is_late = !self.shared.control.is_cancelled();
                break self.interrupt();
            }
        };
        self.news().into_iter().for_each(tell);
        end
    }

    fn news(&self) -> Vec<ClientReading> {
        std::mem::take(&mut self.shared.state().fresh)
    }

    fn has_news(&self) -> bool {
        let state = self.shared.state();
        !state.fresh.is_empty() || state.end.is_some()
    }

    /// What it left behind, once it has ended.
    pub(super) fn end(&self) -> Option<Arc<ClientExit>> {
        self.shared.state().end.clone()
    }

    /// Ends it: it may still say what it has measured, for three seconds at most.
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
                // Its output ends with it, and so does the wait.
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
            // It may have ended just now; its number is still its own.
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    fn tell(&self) {
        self.changed.notify_all();
        self.control.wake();
    }
}

/// The thread that the client is tied to.
fn run(program: &Program, order: &ClientOrder, shared: &ClientShared, told: &mpsc::Sender<io::Result<()>>) {
    let clock = CpuClock::start();
    let began = Instant::now();
    let (folder, mut process) = match spawn(program, order) {
        Ok(started) => started,
        Err(error) => {
            let _ = told.send(Err(error));
            return;
        }
    };
    let pid = Pid::from_child(&process);
    shared.state().pid = Some(pid);
    let _ = told.send(Ok(()));
    let complaints = process.stderr.take().map(|stderr| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let mut stderr = stderr;
            let _ = stderr.by_ref().take(MAX_STDERR_BYTES).read_to_end(&mut text);
            // What is too much is read on: a client must not stand in a write to us.
            let _ = io::copy(&mut stderr, &mut io::sink());
            text
        })
    });
    let heard =
        process.stdout.take().map(|stdout| listen(stdout, streams_json(program), order, shared)).unwrap_or_default();
    // One that closed its output has nothing more to say.
    let _ = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    let used = host_facts::cpu_of(pid).unwrap_or_default();
    shared.state().pid = None;
    let _ = process.wait();
    drop(folder);
    let complaint = complaints.and_then(|thread| thread.join().ok());
    let complaint = complaint.and_then(|text| output::trouble(&String::from_utf8_lossy(&text)));
    let lived = began.elapsed().as_secs_f64().max(f64::EPSILON);
    let end = ClientExit {
        report: heard.report.unwrap_or(Err(Unreadable::Empty)),
        raw: heard.raw,
        complaint,
        cpu: CpuUse {
            user_s: used.0,
            system_s: used.1,
            busiest_thread: program.share_of_a_thread(used.0 + used.1, lived, order.spec.streams),
            ..clock.host()
        },
        is_late: false,
    };
    {
        let mut state = shared.state();
        let is_late = state.is_late;
        state.end = Some(Arc::new(ClientExit { is_late, ..end }));
    }
    shared.tell();
}

fn spawn(program: &Program, order: &ClientOrder) -> io::Result<(TempDir, std::process::Child)> {
    let folder = folder_in(&order.scratch)?;
    let mut command = Command::new(&program.path);
    command.args(order.arguments(program)).current_dir(folder.path()).env("TMPDIR", folder.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(credentials) = &order.credentials {
        write_new(&folder.path().join(KEY_FILE), &credentials.public_key_pem)?;
        command.env("IPERF3_PASSWORD", &*credentials.password);
    }
    Ok((folder, child::spawn(command)?))
}

#[derive(Default)]
struct ClientOutput {
    report: Option<Result<ClientReport, Unreadable>>,
    raw: Option<String>,
}

/// Reads what the client prints to its end; what a live one says is told at once.
fn listen(stdout: impl Read, streams_json: bool, order: &ClientOrder, shared: &ClientShared) -> ClientOutput {
    let mut stdout = stdout.take(max_output_bytes(order));
    let mut text = Vec::new();
    let mut live = StreamParser::new();
    // Up to where lines were told, and up to where no further end of a line stands.
    let (mut told, mut searched) = (0, 0);
    let mut words = vec![0; 64 << 10];
    loop {
        match stdout.read(&mut words) {
            Ok(0) => break,
            Ok(read) => text.extend_from_slice(&words[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        }
        if streams_json {
            let mut fresh = Vec::new();
            while let Some(end) = text[searched..].iter().position(|byte| *byte == b'\n') {
                let end = searched + end;
                fresh.extend(live.line(&String::from_utf8_lossy(&text[told..end])));
                (told, searched) = (end + 1, end + 1);
            }
            searched = text.len();
            if !fresh.is_empty() {
                shared.state().fresh.extend(fresh);
                shared.tell();
            }
        }
    }
    // Nobody reads on: a client that prints without end stands in its write until it is killed.
    if stdout.limit() == 0 {
        shared.signal(Signal::KILL);
    }
    let text = String::from_utf8_lossy(&text);
    let report = output::parse(&text);
    if let Ok(report) = &report
        && !streams_json
    {
        shared.state().fresh.clone_from(&report.readings);
    }
    let has_words = order.keeps_raw && !text.trim().is_empty();
    let raw = has_words.then(|| if streams_json { as_array(&text) } else { text.trim().to_owned() });
    ClientOutput { report: Some(report), raw }
}

/// What a run as long and wide as this one can have to say, and some to spare.
fn max_output_bytes(order: &ClientOrder) -> u64 {
    let intervals = 10 * (u64::from(order.seconds) + u64::from(order.omit_seconds.unwrap_or(0)) + 1);
    let readings = intervals * (2 * u64::from(order.spec.streams) + 2);
    (MAX_BYTES_BESIDE_READINGS + readings * MAX_BYTES_PER_READING).min(MAX_OUTPUT_BYTES)
}

/// The documents of a stream, as one.
fn as_array(lines: &str) -> String {
    let events = lines.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>();
    format!("[{}]", events.join(",\n"))
}

/// What a client receives counts; what it sends is held beside.
pub fn progress(reading: &ClientReading) -> PhaseProgress {
    let sample = Sample { at_us: reading.end_us, bytes: reading.bytes };
    match reading.direction {
        Direction::Download => PhaseProgress::Received(reading.direction, sample),
        Direction::Upload => PhaseProgress::Sent(reading.direction, sample),
    }
}

/// What the client counted in a phase. Both directions of one run are one process: what it cost stands with both.
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
        // What only the sender knows.
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
            retransmits: sent.and_then(|totals| totals.retransmits),
            // A test that broke off has no totals, which say how many there were.
            streams: if streams == 0 && counted.bytes > 0 { asked_streams } else { streams },
            datagrams: None,
            counted_by: Some(COUNTED_BY_IPERF3.into()),
        }
    };
    let moved = |direction| phase.load.moves(direction).then(|| of(direction));
    let why = end.failure();
    PhaseTally {
        download: moved(Direction::Download),
        upload: moved(Direction::Upload),
        cut_short: why.map(|why| why.as_str().into()),
    }
}

/// Readings as one. A client that fails may tell its last one twice.
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
    use super::*;

    #[test]
    fn a_reading_that_is_told_twice_counts_once() {
        let reading = |end_us, bytes| ClientReading {
            direction: Direction::Download,
            begin_us: 0,
            end_us,
            bytes,
            omitted: false,
            retransmits: None,
            udp: None,
        };
        let readings = [reading(100, 5), reading(200, 7), reading(200, 7)];
        assert_eq!(sum(readings.iter()), Count { bytes: 12, elapsed_us: 200 });
    }
}
