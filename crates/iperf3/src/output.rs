//! Parses the output of an iperf3 client: a `--json` document, or the lines of `--json-stream`. Does no I/O.
//!
//! Versions differ in their fields, and a server influences the output of its client. So no field is required: a field
//! that is missing, of another type or not a number is absent in the [`ClientReport`], and unknown fields are ignored.
//! Tests parse the recordings in `crates/iperf3/fixtures`.

use std::fmt;

use paramedic_link::PeerText;
use paramedic_link::test_spec::Direction;
use serde_json::{Map, Value};

#[cfg(test)]
mod tests;

/// The maximum number of readings that are kept. They suffice for a day with one reading per second and direction.
/// Later readings are only in the totals.
pub const MAX_READINGS: usize = 2 * 24 * 3600;
/// The longest text that is kept, in characters. The longest recorded error, that of a host without an address, has 172
/// characters.
const MAX_TEXT_CHARS: usize = 200;

/// The report of one run of an iperf3 client.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClientReport {
    /// The error that ended the run, without the prefix `error - `. If it is absent, the run may still have failed,
    /// because iperf3 3.9 writes most errors only to stderr. In this case [`Self::is_complete`] is `false`.
    pub error: Option<String>,
    /// The client's version: `3.12` for iperf3. Other programs print their name, too, for example `riperf3 0.8.0`.
    pub version: Option<String>,
    /// The protocol of the payload.
    pub protocol: Option<PayloadProtocol>,
    /// The maximum segment size of the control connection, in bytes; only with TCP.
    pub mss: Option<u32>,
    /// Bytes per write of the sender; with UDP, the payload of a packet.
    pub block_bytes: Option<u32>,
    /// The readings of all intervals and both directions, ordered by time; at most [`MAX_READINGS`].
    pub readings: Vec<ClientReading>,
    /// The totals of the download (towards the client).
    pub download: Option<Totals>,
    /// The totals of the upload.
    pub upload: Option<Totals>,
    /// The processor use of both ends.
    pub cpu: Option<Cpu>,
    /// Whether the report has its last part, with the totals. An interrupted client prints this part, too. Then `error`
    /// is also set, and the totals contain only the client's own counts.
    pub is_complete: bool,
}

impl ClientReport {
    /// The kind of [`Self::error`], if there is an error.
    pub fn failure(&self) -> Option<FailureKind> {
        self.error.as_deref().map(FailureKind::of)
    }

    /// The totals of one direction.
    pub fn totals(&self, direction: Direction) -> Option<&Totals> {
        match direction {
            Direction::Download => self.download.as_ref(),
            Direction::Upload => self.upload.as_ref(),
        }
    }

    /// A measure of content: of two documents about one run, the one with the higher weight contains more.
    fn weight(&self) -> (bool, usize) {
        (self.is_complete, self.readings.len())
    }
}

/// The protocol of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// The client's counts of one direction in one interval, all streams together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientReading {
    /// The direction. For a download the bytes are those received, for an upload those sent.
    pub direction: Direction,
    /// The beginning of the interval, in microseconds since the counted part of the test began or, for an omitted
    /// reading, since the omitted part began.
    pub begin_us: u64,
    /// The end of the interval, on the same clock as [`Self::begin_us`]; never before the beginning.
    pub end_us: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// Whether the reading belongs to the omitted start-up (`--omit`).
    pub omitted: bool,
    /// Retransmitted segments; only the sender knows them.
    pub retransmits: Option<u64>,
    /// Counts of packets; only with UDP.
    pub udp: Option<UdpReading>,
}

impl ClientReading {
    /// Whether the client sent the bytes of this reading.
    pub fn is_sender(&self) -> bool {
        self.direction == Direction::Upload
    }
}

/// The packets of one [`ClientReading`] of a UDP test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpReading {
    /// Packets sent, including lost ones. A receiving client derives the number from sequence numbers.
    pub packets: u64,
    /// Lost packets; only the receiver knows them.
    pub lost: Option<u64>,
    /// The mean jitter of the streams (RFC 1889), in microseconds; only the receiver knows it.
    pub jitter_us: Option<u64>,
}

/// The counts of one direction over the whole test, without the omitted part.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// The number of streams; 0 if unknown.
    pub streams: u16,
    /// The sender's count. Absent if the server is the sender and its counts are missing.
    pub sent: Option<ClientCount>,
    /// The receiver's count. Absent if the server is the receiver and its counts are missing, and with UDP in iperf3
    /// 3.9.
    pub received: Option<ClientCount>,
    /// Retransmitted segments; only with TCP.
    pub retransmits: Option<u64>,
    /// The sender's congestion control. Absent in a bidirectional test whose ends use different algorithms, because the
    /// output does not say which end uses which algorithm.
    pub congestion_control: Option<String>,
    /// The round-trip times that the sender's kernel measured.
    pub rtt_us: Option<RttOfTcp>,
    /// Counts of packets; only with UDP.
    pub udp: Option<UdpTotals>,
}

/// Payload bytes and the time in which they moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientCount {
    /// Payload bytes.
    pub bytes: u64,
    /// The time in which the bytes moved, in microseconds.
    pub duration_us: u64,
}

/// The smoothed round-trip time of TCP in microseconds. iperf3 reads it once per interval and stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RttOfTcp {
    /// The lowest round-trip time of all streams.
    pub min: u64,
    /// Each stream has a mean round-trip time. This is the mean of these times.
    pub mean: u64,
    /// The highest round-trip time of all streams.
    pub max: u64,
}

/// The packets of one direction over the whole test, as the receiver counted them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpTotals {
    /// Packets sent.
    pub packets: u64,
    /// Lost packets.
    pub lost: Option<u64>,
    /// Packets that arrived after a packet with a higher sequence number.
    pub out_of_order: Option<u64>,
    /// The mean jitter of the streams (RFC 1889), in microseconds.
    pub jitter_us: Option<u64>,
}

/// The processor use of iperf3 at both ends, as a share of one core: 1.0 means one core all the time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cpu {
    /// The client's share of user time.
    pub local_user: Option<f64>,
    /// The client's share of system time.
    pub local_system: Option<f64>,
    /// The server's share of user time.
    pub remote_user: Option<f64>,
    /// The server's share of system time.
    pub remote_system: Option<f64>,
}

/// The kind of an error that a client reports. The texts differ between versions; the words that identify a kind do
/// not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The server runs another test. A riperf3 server that requires a password also reports this.
    Busy,
    /// The server requires a login, or rejected it. Not every client reports this: between an iperf3 3.22 client and
    /// server the kind is [`FailureKind::ControlLost`], and riperf3 prints `server error`.
    NotAuthorized,
    /// There is no server at the address, or no route to it.
    Unreachable,
    /// The connection ended during the test: the server exited, closed it, or refused the client without a message.
    ControlLost,
    /// The time limit of the test was over before all bytes had moved. iperf3 has no such limit, so no client prints
    /// this error.
    BytesLeft,
    /// Nothing arrived from the server for too long. No client prints this error; the client's kernel shows it.
    PathSilent,
    /// Any other error.
    Other,
}

impl FailureKind {
    /// The kind of an error text from a document or from stderr.
    pub fn of(error: &str) -> FailureKind {
        let error = error.to_lowercase();
        let contains = |words: &[&str]| words.iter().any(|word| error.contains(word));
        // For the same answer of the server, iperf3 prints "busy" and riperf3 "access denied".
        if contains(&["busy", "access denied"]) {
            FailureKind::Busy
        } else if contains(&["authorization failed", "not authorized", "authentication"]) {
            FailureKind::NotAuthorized
        } else if contains(&["stream socket"]) {
            // The test was running; with UDP the error for a server that has exited also contains "refused".
            FailureKind::ControlLost
        } else if contains(&[
            "unable to connect",
            "refused",
            "unreachable",
            "no route to host",
            "connection timed out",
            "name or service not known",
            "lookup",
            // iperf3 3.9 with --json continues without a connection, and its first write fails.
            "bad file descriptor",
        ]) {
            FailureKind::Unreachable
        } else if contains(&[
            "control socket",
            "control message",
            "server has terminated",
            "disconnected",
            "reset by peer",
            "broken pipe",
        ]) {
            FailureKind::ControlLost
        } else {
            FailureKind::Other
        }
    }
}

/// Why the output of a client could not be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The client printed nothing.
    #[error("iperf3 printed nothing")]
    Empty,
    /// The only JSON document is incomplete.
    #[error("iperf3's JSON output is incomplete")]
    Truncated,
    /// The text is not the output of iperf3.
    #[error("this is not the JSON output of iperf3: {detail}")]
    NotIperf3 {
        /// What is wrong, or the first line of the text.
        detail: String,
    },
}

impl Unreadable {
    fn not_iperf3(detail: &str) -> Self {
        Unreadable::NotIperf3 { detail: harmless(detail) }
    }
}

/// Finds the error in the plain text output of a client or server: the last line that contains "error", or else the
/// last line.
pub(super) fn error_line(text: &str) -> Option<String> {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().rfind(|line| line.contains("error")).or_else(|| lines().next_back())?;
    let line = line.strip_prefix("iperf3: ").unwrap_or(line);
    Some(harmless(line.strip_prefix("error - ").unwrap_or(line)))
}

/// A version of iperf3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The major version. It has always been 3.
    pub major: u16,
    /// The minor version.
    pub minor: u16,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Parses the output of `iperf3 --version`. `None` for other programs, such as iperf 2 and riperf3.
pub fn version_of(text: &str) -> Option<Version> {
    let number = text.lines().find_map(|line| line.trim().strip_prefix("iperf "))?;
    let (major, rest) = number.trim_start().split_once('.')?;
    let minor: &str = &rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())];
    Some(Version { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

/// Parses the whole output of a client: one or several `--json` documents, or the lines of `--json-stream`, possibly
/// followed by a document.
///
/// Returns the report with the most content. If that report has no error of its own, it gets the first error of the
/// other reports. Ignores an object that cannot be parsed, for example because it is cut off; if there is no other
/// report, parsing fails. If a stream lacks its end, `is_complete` of its report is false. The time is linear in the
/// length of the text, which the caller must limit.
pub fn parse(text: &str) -> Result<ClientReport, Unreadable> {
    let mut documents = JsonDocuments { rest: text };
    let mut stream = ReportBuilder::default();
    let mut best: Option<ClientReport> = None;
    let mut error: Option<String> = None;
    let mut problem: Option<Unreadable> = None;
    while let Some(document) = documents.next() {
        let report = match document.and_then(read) {
            Ok(OutputItem::Event(name, data)) => {
                stream.event(&name, &data);
                continue;
            }
            Ok(OutputItem::Document(document)) => ReportBuilder::document(&document),
            Err(why) => {
                problem = problem.or(Some(why));
                continue;
            }
        };
        error = error.or_else(|| report.error.clone());
        if best.as_ref().is_none_or(|best| best.weight() <= report.weight()) {
            best = Some(report);
        }
    }
    if stream.is_begun && best.as_ref().is_none_or(|best| best.weight() <= stream.report.weight()) {
        error = error.or_else(|| best.and_then(|best| best.error));
        best = Some(stream.report);
    } else {
        error = error.or(stream.report.error);
    }
    match best {
        Some(report) => Ok(ClientReport { error: report.error.clone().or(error), ..report }),
        None => Err(problem.unwrap_or_else(|| match text.trim() {
            "" => Unreadable::Empty,
            text => Unreadable::not_iperf3(&format!("it begins with \"{}\"", text.lines().next().unwrap_or_default())),
        })),
    }
}

/// Parses a `--json-stream` line by line while the test runs.
#[derive(Clone, Debug, Default)]
pub struct StreamParser {
    stream: ReportBuilder,
    /// The error of the first line that could not be parsed.
    problem: Option<Unreadable>,
}

impl StreamParser {
    /// A parser before the first line.
    pub fn new() -> Self {
        Self::default()
    }

    /// Parses the next line, with or without its line break, and returns its readings. Only lines with the event
    /// `interval` have readings.
    pub fn line(&mut self, line: &str) -> Vec<ClientReading> {
        let line = line.trim();
        let before = self.stream.report.readings.len();
        let whole = JsonDocuments { rest: line }.next();
        match whole.map(|document| document.and_then(read)) {
            Some(Ok(OutputItem::Event(name, data))) => self.stream.event(&name, &data),
            _ if self.problem.is_some() || line.is_empty() => {}
            Some(Err(why)) => self.problem = Some(why),
            Some(Ok(OutputItem::Document(_))) | None => {
                self.problem = Some(Unreadable::not_iperf3(&format!("not a line of --json-stream: {line}")));
            }
        }
        self.stream.report.readings[before..].to_vec()
    }

    /// The report of all lines. If the stream has no end, [`ClientReport::is_complete`] is `false`.
    pub fn finish(self) -> Result<ClientReport, Unreadable> {
        if self.stream.is_begun { Ok(self.stream.report) } else { Err(self.problem.unwrap_or(Unreadable::Empty)) }
    }
}

/// Splits a text into its JSON objects. Text between them is skipped.
struct JsonDocuments<'a> {
    rest: &'a str,
}

impl<'a> JsonDocuments<'a> {
    /// The next object, unparsed. An incomplete object is an error.
    fn next(&mut self) -> Option<Result<&'a str, Unreadable>> {
        let begin = self.rest.find('{')?;
        let text = &self.rest[begin..];
        let (mut depth, mut in_string, mut escaped) = (0_u32, false, false);
        // These bytes are ASCII, so none is part of a longer character.
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b'{' => depth = depth.saturating_add(1),
                b'}' if depth == 1 => {
                    let (document, rest) = text.split_at(at + 1);
                    self.rest = rest;
                    return Some(Ok(document));
                }
                b'}' => depth -= 1,
                _ => {}
            }
        }
        self.rest = "";
        Some(Err(Unreadable::Truncated))
    }
}

/// One JSON object of the client's output.
enum OutputItem {
    /// A line of a stream: the name and the data of the event.
    Event(String, Value),
    /// A whole document.
    Document(Map<String, Value>),
}

/// Parses one JSON object. Bare words that are not JSON, such as `nan`, become `null`.
fn read(document: &str) -> Result<OutputItem, Unreadable> {
    // Not a struct: iperf3 repeats keys (3.12 "sock_bufsize", 3.9 even "sum"), which serde refuses for structs.
    let mut fields = serde_json::from_str::<Map<String, Value>>(document)
        .or_else(|_| serde_json::from_str(&without_nan(document)))
        .map_err(|why| Unreadable::not_iperf3(&why.to_string()))?;
    if let Some(Value::String(name)) = fields.get("event") {
        let name = name.clone();
        return Ok(OutputItem::Event(name, fields.remove("data").unwrap_or_default()));
    }
    if ["start", "intervals", "end", "error"].iter().any(|part| fields.contains_key(*part)) {
        return Ok(OutputItem::Document(fields));
    }
    Err(Unreadable::not_iperf3("it has none of the parts start, intervals, end and error"))
}

/// Replaces every bare word that is not JSON (`nan`, `-inf`, a number beyond the range of `f64`) by `null`. C's printf
/// writes such words for numbers that are not finite.
fn without_nan(document: &str) -> String {
    let mut fixed = String::with_capacity(document.len());
    let (mut in_string, mut escaped) = (false, false);
    let mut word_from: Option<usize> = None;
    for (at, c) in document.char_indices() {
        let is_of_word = !in_string && !c.is_whitespace() && !matches!(c, '{' | '}' | '[' | ']' | ',' | ':' | '"');
        if is_of_word {
            word_from = word_from.or(Some(at));
            continue;
        }
        if let Some(from) = word_from.take() {
            let word = &document[from..at];
            fixed.push_str(if serde_json::from_str::<Value>(word).is_ok() { word } else { "null" });
        }
        match c {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            _ => {}
        }
        fixed.push(c);
    }
    // A document ends with a brace, so no word is left.
    fixed
}

/// Builds a report from the parts of the output. Also keeps those fields of the part `start` that it needs to read the
/// later parts.
#[derive(Clone, Debug, Default)]
struct ReportBuilder {
    report: ClientReport,
    /// Whether a known event of a stream was read.
    is_begun: bool,
    /// Whether the server sends and the client receives (`--reverse`).
    is_reverse: bool,
    /// The number of streams per direction.
    streams: Option<u64>,
}

impl ReportBuilder {
    /// The report of a whole document.
    fn document(document: &Map<String, Value>) -> ClientReport {
        let mut gathering = Self::default();
        if let Some(error) = document.get("error") {
            gathering.error(error);
        }
        gathering.start(document.get("start").unwrap_or(&Value::Null));
        for interval in array(document.get("intervals")) {
            gathering.interval(interval);
        }
        gathering.end(document.get("end").unwrap_or(&Value::Null));
        gathering.report
    }

    /// Adds an event of a `--json-stream` to the report.
    fn event(&mut self, name: &str, data: &Value) {
        match name {
            "start" => self.start(data),
            "interval" => self.interval(data),
            "end" => self.end(data),
            "error" => self.error(data),
            _ => return,
        }
        self.is_begun = true;
    }

    fn error(&mut self, error: &Value) {
        let Some(error) = error.as_str().map(str::trim) else { return };
        let error = error.strip_prefix("error - ").unwrap_or(error);
        self.report.error.get_or_insert_with(|| harmless(error));
        self.clear_missing_counts();
    }

    fn start(&mut self, start: &Value) {
        let report = &mut self.report;
        report.version =
            start["version"].as_str().map(|version| harmless(version.strip_prefix("iperf ").unwrap_or(version)));
        report.mss = narrow(whole(&start["tcp_mss_default"]).or_else(|| whole(&start["tcp_mss"])));
        let test = &start["test_start"];
        report.protocol = match test["protocol"].as_str() {
            Some("TCP") => Some(PayloadProtocol::Tcp),
            Some("UDP") => Some(PayloadProtocol::Udp),
            _ => None,
        };
        report.block_bytes = narrow(whole(&test["blksize"]));
        self.is_reverse = flag(&test["reverse"]).unwrap_or(false);
        self.streams = whole(&test["num_streams"]);
    }

    /// The direction that the client's options select. In a bidirectional test, the fields of the other direction have
    /// a suffix.
    fn main_direction(&self) -> Direction {
        if self.is_reverse { Direction::Download } else { Direction::Upload }
    }

    /// The direction of the payload that the object `counted` counts. Its field `sender` is true if the client is the
    /// sender.
    fn direction_of(&self, counted: &Value) -> Direction {
        match flag(&counted["sender"]) {
            Some(true) => Direction::Upload,
            Some(false) => Direction::Download,
            None => self.main_direction(),
        }
    }

    fn interval(&mut self, interval: &Value) {
        let main = self.main_direction();
        for direction in [main, other(main)] {
            let sum = &interval[if direction == main { "sum" } else { "sum_bidir_reverse" }];
            // 3.9 writes "sum" twice in a bidirectional test, and parsing keeps the last. The other direction is summed
            // up from its streams.
            let counted = if sum.is_object() && self.direction_of(sum) == direction {
                CountFields::of(sum)
            } else {
                let streams = array(interval.get("streams"));
                CountFields::all(streams.filter(|stream| self.direction_of(stream) == direction))
            };
            if let Some(reading) = counted.and_then(|counted| counted.reading(direction)) {
                self.keep(reading);
            }
        }
    }

    fn keep(&mut self, mut reading: ClientReading) {
        let readings = &mut self.report.readings;
        // The clock restarts after the omitted part, but the first interval after it still has its beginning on the old
        // clock.
        let before = readings.iter().rev().take(2).find(|before| before.direction == reading.direction);
        if before.is_some_and(|before| before.omitted && !reading.omitted) {
            reading.begin_us = 0;
        }
        if readings.len() < MAX_READINGS {
            readings.push(reading);
        }
    }

    fn end(&mut self, end: &Value) {
        // After an error the part `end` exists but is empty.
        if end.as_object().is_none_or(Map::is_empty) {
            return;
        }
        self.report.is_complete = true;
        let main = self.main_direction();
        for direction in Direction::BOTH {
            let streams: Vec<&Value> = array(end.get("streams"))
                .filter(|stream| {
                    let part = ["sender", "receiver", "udp"].iter().map(|part| &stream[*part]).find(|p| p.is_object());
                    part.is_some_and(|part| self.direction_of(part) == direction)
                })
                .collect();
            let totals = self.totals(end, direction == main, &streams);
            match direction {
                Direction::Download => self.report.download = totals,
                Direction::Upload => self.report.upload = totals,
            }
        }
        let cpu = &end["cpu_utilization_percent"];
        let share = |part: &str| number(&cpu[part]).map(|percent| percent / 100.0);
        self.report.cpu = cpu.is_object().then(|| Cpu {
            local_user: share("host_user"),
            local_system: share("host_system"),
            remote_user: share("remote_user"),
            remote_system: share("remote_system"),
        });
        self.clear_missing_counts();
    }

    /// The totals of the direction to which `streams` belong.
    fn totals(&self, end: &Value, is_main: bool, streams: &[&Value]) -> Option<Totals> {
        let has_both = array(end.get("streams")).count() > streams.len() && !streams.is_empty();
        let is_named = end.as_object().is_some_and(|end| end.keys().any(|key| key.ends_with("_bidir_reverse")));
        // In a bidirectional test of 3.9 the sums of both directions have the same names, so the sums are computed from
        // the streams.
        let suffix = match is_main {
            _ if has_both && !is_named => None,
            true => Some(""),
            false => Some("_bidir_reverse"),
        };
        let sum = |name: &str, part: &str| {
            let named = suffix.and_then(|suffix| CountFields::of(&end[format!("{name}{suffix}")]));
            named.or_else(|| CountFields::all(streams.iter().map(|stream| &stream[part])))
        };
        let udp = sum("sum", "udp").filter(|_| self.report.protocol != Some(PayloadProtocol::Tcp));
        let (sent, received) = (sum("sum_sent", "sender"), sum("sum_received", "receiver"));
        // 3.9 has one sum with UDP: the bytes of the sender and the packets of the receiver.
        let sent = sent.or(udp);
        if sent.is_none() && received.is_none() {
            return None;
        }
        let packets = received.filter(|received| received.packets.is_some()).or(udp);
        let congestion = |end_of_it: &str| end[end_of_it].as_str().map(harmless);
        let congestion_control = congestion("sender_tcp_congestion")
            .filter(|senders| !has_both || Some(senders) == congestion("receiver_tcp_congestion").as_ref());
        Some(Totals {
            streams: narrow(self.streams.or(u64::try_from(streams.len()).ok())).unwrap_or(0),
            sent: sent.and_then(|sent| sent.count()),
            received: received.and_then(|received| received.count()),
            retransmits: sent.and_then(|sent| sent.retransmits),
            congestion_control,
            rtt_us: rtt_of(streams),
            udp: packets.and_then(|counted| {
                Some(UdpTotals {
                    packets: counted.packets?,
                    lost: counted.lost,
                    out_of_order: added(streams.iter().map(|stream| whole(&stream["udp"]["out_of_order"]))),
                    jitter_us: counted.jitter_us,
                })
            }),
        })
    }

    /// Clears counts of 0 after an error, because the client prints 0 for each count that it did not get from the other
    /// end.
    fn clear_missing_counts(&mut self) {
        if self.report.error.is_none() {
            return;
        }
        for totals in [&mut self.report.download, &mut self.report.upload].into_iter().flatten() {
            totals.sent = totals.sent.filter(|count| count.bytes > 0);
            totals.received = totals.received.filter(|count| count.bytes > 0);
        }
    }
}

/// The fields of one object with counts: those of a stream, or of all streams together.
#[derive(Clone, Copy, Debug)]
struct CountFields {
    begin_us: Option<u64>,
    end_us: Option<u64>,
    lasted_us: Option<u64>,
    bytes: Option<u64>,
    omitted: bool,
    retransmits: Option<u64>,
    packets: Option<u64>,
    lost: Option<u64>,
    jitter_us: Option<u64>,
}

impl CountFields {
    fn of(counted: &Value) -> Option<Self> {
        counted.is_object().then(|| Self {
            begin_us: micros(&counted["start"], 1e6),
            end_us: micros(&counted["end"], 1e6),
            lasted_us: micros(&counted["seconds"], 1e6),
            bytes: whole(&counted["bytes"]),
            omitted: flag(&counted["omitted"]).unwrap_or(false),
            retransmits: whole(&counted["retransmits"]),
            packets: whole(&counted["packets"]),
            lost: whole(&counted["lost_packets"]),
            jitter_us: micros(&counted["jitter_ms"], 1e3),
        })
    }

    /// Combines the fields of several streams: adds their counts, takes the mean of their jitters, and covers the time
    /// of all of them. `None` without streams.
    fn all<'a>(streams: impl Iterator<Item = &'a Value>) -> Option<Self> {
        let streams: Vec<Self> = streams.filter_map(Self::of).collect();
        let jitters: Vec<u64> = streams.iter().filter_map(|stream| stream.jitter_us).collect();
        Some(Self {
            begin_us: streams.iter().filter_map(|stream| stream.begin_us).min(),
            end_us: streams.iter().filter_map(|stream| stream.end_us).max(),
            lasted_us: streams.iter().filter_map(|stream| stream.lasted_us).max(),
            bytes: added(streams.iter().map(|stream| stream.bytes)),
            omitted: streams.first()?.omitted,
            retransmits: added(streams.iter().map(|stream| stream.retransmits)),
            packets: added(streams.iter().map(|stream| stream.packets)),
            lost: added(streams.iter().map(|stream| stream.lost)),
            jitter_us: mean(&jitters),
        })
    }

    /// Makes a reading of the fields; `None` if the bytes or the times are missing.
    fn reading(&self, direction: Direction) -> Option<ClientReading> {
        let end_us = self.end_us?;
        let begin_us = self.begin_us.or_else(|| self.lasted_us.map(|lasted| end_us.saturating_sub(lasted)))?;
        Some(ClientReading {
            direction,
            begin_us: begin_us.min(end_us),
            end_us,
            bytes: self.bytes?,
            omitted: self.omitted,
            retransmits: self.retransmits,
            udp: self.packets.map(|packets| UdpReading { packets, lost: self.lost, jitter_us: self.jitter_us }),
        })
    }

    fn count(&self) -> Option<ClientCount> {
        let from_to = || Some(self.end_us?.saturating_sub(self.begin_us.unwrap_or(0)));
        Some(ClientCount { bytes: self.bytes?, duration_us: self.lasted_us.or_else(from_to)? })
    }
}

fn other(direction: Direction) -> Direction {
    match direction {
        Direction::Download => Direction::Upload,
        Direction::Upload => Direction::Download,
    }
}

/// The round-trip times over all streams that have them. A stream that the other end sends has the value 0 and is
/// skipped.
fn rtt_of(streams: &[&Value]) -> Option<RttOfTcp> {
    let all = |key: &str| -> Vec<u64> {
        streams.iter().filter_map(|stream| whole(&stream["sender"][key])).filter(|rtt| *rtt > 0).collect()
    };
    Some(RttOfTcp {
        min: all("min_rtt").into_iter().min()?,
        mean: mean(&all("mean_rtt"))?,
        max: all("max_rtt").into_iter().max()?,
    })
}

/// The sum of the known numbers, which saturates; `None` if no number is known.
fn added(numbers: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    numbers.flatten().reduce(u64::saturating_add)
}

fn mean(numbers: &[u64]) -> Option<u64> {
    let sum: u128 = numbers.iter().map(|number| u128::from(*number)).sum();
    // A mean of `u64` numbers fits in a `u64`.
    u64::try_from(sum.checked_div(numbers.len() as u128)?).ok()
}

fn array(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

/// The number in `value`, if it is finite and not negative.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite() && *number >= 0.0)
}

/// The number in `value`, cut to a whole number. A number that is too large saturates, and a negative one gives `None`.
fn whole(value: &Value) -> Option<u64> {
    // Casts from f64 saturate.
    value.as_u64().or_else(|| number(value).map(|number| number as u64))
}

/// Converts a time, whose unit is `unit_us` microseconds, to microseconds.
fn micros(value: &Value, unit_us: f64) -> Option<u64> {
    number(value).map(|time| (time * unit_us).round() as u64)
}

/// The flag in `value`, which may be a boolean or a number.
fn flag(value: &Value) -> Option<bool> {
    value.as_bool().or_else(|| whole(value).map(|number| number != 0))
}

/// Converts a number to a smaller type. `None` if it does not fit.
fn narrow<T: TryFrom<u64>>(number: Option<u64>) -> Option<T> {
    number.and_then(|number| T::try_from(number).ok())
}

fn harmless(text: &str) -> String {
    PeerText::harmless(text, MAX_TEXT_CHARS)
}
