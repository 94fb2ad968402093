//! The sending end of a stream: sends datagrams of equal size on an absolute schedule while the receiver sends
//! feedback. The rate is requested, or found by the search. The code is the same at both ends of a session.

#![expect(clippy::disallowed_methods, reason = "sends in wall time")]

use std::io;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use nix::libc;
use paramedic_link::admission::SessionKeys;
use paramedic_link::measurement::DatagramTally;
use paramedic_link::test_spec::{Direction, TestSpec};

use super::packet::{Bulk, Feedback, SIGNAL, Seal, Signal, StreamId, Word};
use super::ready::{ReadyStream, Sent, UdpReport, UdpRun};
use super::search::Search;
use super::size::PayloadSize;
use super::socket::{self, BatchSender, await_readable, take_waiting};
use super::{DEFAULT_LOSS_PPM, FEEDBACK_INTERVAL, PAUSE_AFTER, opposite};

/// How long a sender waits for the receiver's first feedback.
pub(super) const FEEDBACK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a sender waits until the receiver confirms the end of the stream.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(2);
/// One send call has at most the datagrams that are due in this time at the current rate, because a longer burst could
/// overflow a small queue.
const MAX_BURST: Duration = Duration::from_micros(500);
/// The longest delay that a late sender makes up for. Of a longer delay, the sender makes up for only this much.
const MAX_CATCH_UP: Duration = Duration::from_millis(20);
/// Like [`MAX_CATCH_UP`], but during a search, in which a burst could look like a full path.
const MAX_SEARCH_CATCH_UP: Duration = Duration::from_millis(1);
/// How often a waiting sender checks whether its phase is over.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// The time in nanoseconds between two reads of signals while the sender is busy sending. A sender that waits until its
/// next datagram is due reads a signal as soon as the signal arrives.
const LISTEN_INTERVAL_NS: u64 = 1_000_000;
/// The maximum number of signals that the sender reads at once.
const MAX_READS_IN_A_ROW: usize = 64;

/// Combines the counts of all streams that this end sends in one direction.
pub(super) fn tally<'a>(streams: impl Iterator<Item = &'a Sent> + Clone) -> DatagramTally {
    let first = streams.clone().next().copied().unwrap_or_default();
    let settled = streams.clone().map(|sent| sent.settled).try_fold(0, |sum, one| Some(sum + one?));
    let paused = streams.clone().map(|sent| sent.paused).max().filter(|paused| !paused.is_zero());
    DatagramTally {
        payload_bytes: u32::try_from(first.payload).ok().filter(|bytes| *bytes > 0),
        sent: Some(streams.clone().map(|sent| sent.datagrams - sent.vanished).sum()),
        settled: settled.filter(|_| first.settled.is_some()),
        paused_ms: paused.map(|paused| u64::try_from(paused.as_millis()).unwrap_or(u64::MAX).max(1)),
        vanished: Some(streams.clone().map(|sent| sent.vanished).sum()).filter(|vanished| *vanished > 0),
        is_black_hole: streams.clone().any(|sent| sent.is_black_hole),
        ..DatagramTally::default()
    }
}

/// Reads the feedback that the receiver of a stream sends to its sender.
struct FeedbackReader<'a> {
    socket: &'a UdpSocket,
    keys: &'a SessionKeys,
    run: &'a UdpRun<'a>,
    stream_id: StreamId,
    flow: Direction,
    /// The highest signal number of any feedback so far. A feedback whose number is not higher may be a replay.
    newest: Option<u64>,
    heard: Instant,
}

impl FeedbackReader<'_> {
    /// Reads the next new feedback that has arrived at the socket. Does not wait.
    fn next(&mut self) -> Option<Feedback> {
        let mut bytes = [0; SIGNAL + 1];
        for _ in 0..MAX_READS_IN_A_ROW {
            let len = take_waiting(self.socket, &mut bytes)?;
            let signal = Signal::open(bytes.get(..len)?, self.flow, self.keys);
            let Some(Signal { stream_id, number, word: Word::Feedback(feedback) }) = signal else { continue };
            if stream_id == self.stream_id && self.newest.is_none_or(|newest| number > newest) {
                self.newest = Some(number);
                self.heard = Instant::now();
                self.run.context.control.heard();
                return Some(feedback);
            }
        }
        None
    }

    /// Waits for the next new feedback. Returns `None` if none arrives before `until`, or if the stream must stop.
    fn await_next(&mut self, until: Instant) -> io::Result<Option<Feedback>> {
        loop {
            if let Some(feedback) = self.next() {
                return Ok(Some(feedback));
            }
            let now = Instant::now();
            if now >= until || self.run.is_over() {
                return Ok(None);
            }
            await_readable(self.socket, until.min(now + CHECK_INTERVAL))?;
        }
    }
}

/// The rate at which a stream sends: fixed, or found by a search.
enum Pace {
    Fixed(f64),
    Searched(Box<Search>),
}

impl Pace {
    fn bps(&self) -> f64 {
        match self {
            Pace::Fixed(bps) => *bps,
            Pace::Searched(search) => search.rate_bps(),
        }
    }

    fn is_settled(&self) -> bool {
        match self {
            Pace::Fixed(_) => true,
            Pace::Searched(search) => search.is_settled(),
        }
    }

    fn max_catch_up(&self) -> Duration {
        if matches!(self, Pace::Fixed(_)) { MAX_CATCH_UP } else { MAX_SEARCH_CATCH_UP }
    }
}

/// A buffer of prepared datagrams for the next sends.
struct Outgoing {
    payload: usize,
    sends: BatchSender,
    datagrams: Vec<u8>,
}

impl Outgoing {
    fn new(socket: &UdpSocket, payload: usize, seal: &Seal) -> Self {
        let sends = BatchSender::new(socket, payload);
        let mut datagrams = vec![0; payload * sends.most()];
        datagrams.chunks_exact_mut(payload).for_each(|datagram| seal.prepare(datagram));
        Self { payload, sends, datagrams }
    }
}

/// Passes a feedback to the rate search in `pace` and to the choice of the payload in `size`. `next` is the sequence
/// number of the next datagram. Returns the new payload size in bytes if the size changes.
fn react(feedback: Feedback, pace: &mut Pace, size: Option<&mut PayloadSize>, next: u64, now_ns: u64) -> Option<usize> {
    let (changed, is_proven) = match size {
        Some(size) => (size.on_feedback(&feedback, next, now_ns), size.is_proven()),
        None => (None, true),
    };
    if let Pace::Searched(search) = pace {
        match changed {
            Some(payload) => search.resize(payload, next, now_ns),
            None if is_proven => search.on_feedback(feedback, next, now_ns),
            None => {}
        }
    }
    changed
}

/// Sends datagrams until the phase's time is over. Then repeats a [`Word::Last`] signal with the number of sent
/// datagrams until the receiver confirms this signal. `run.counter` and `report` include what was sent before a
/// failure.
pub(super) fn send(stream: &ReadyStream, run: &UdpRun<'_>, report: &mut UdpReport) -> io::Result<()> {
    let ReadyStream { socket, stream_id, keys, .. } = stream;
    let (context, stream_id, direction) = (run.context, *stream_id, run.direction);
    // Sets the latest possible end, which holds until the first feedback has arrived.
    report.until = context.until() + FEEDBACK_TIMEOUT;
    let sent = &mut report.own.sent;
    sent.payload = socket::payload(socket, context.ask)?;
    let seal = Seal::of(stream_id, direction, keys);
    let mut outgoing = Outgoing::new(socket, sent.payload, &seal);
    let mut pace = match context.ask.bitrate_bps {
        Some(0) => {
            let bound = context.ask.loss_bound_ppm.unwrap_or(DEFAULT_LOSS_PPM);
            Pace::Searched(Box::new(Search::new(sent.payload, bound)))
        }
        bps => Pace::Fixed(bps.unwrap_or(TestSpec::DEFAULT_DATAGRAM_BPS) as f64),
    };
    let (flow, heard) = (opposite(direction), context.begin);
    let mut reader = FeedbackReader { socket, keys, run, stream_id, flow, newest: None, heard };
    // Nothing is sent before the receiver's first feedback.
    if reader.await_next(context.begin + FEEDBACK_TIMEOUT)?.is_none() {
        if run.is_over() {
            return Ok(());
        }
        return Err(io::Error::new(io::ErrorKind::TimedOut, "the receiver of the datagrams sent no feedback over UDP"));
    }
    let until_ns = context.now_ns().saturating_add(nanos(context.until() - context.begin));
    report.until = context.begin + Duration::from_nanos(until_ns);
    let adapts = context.ask.block_bytes.is_none() && !context.ask.fragments;
    let mut size = adapts.then(|| PayloadSize::new(sent.payload, context.now_ns()));
    let mut settled_from = None;
    let mut bytes = 0;
    let mut taken = 0;
    let mut due_ns = context.now_ns() as f64;
    let mut listen_ns = 0;
    loop {
        let now_ns = context.now_ns();
        if now_ns >= until_ns || run.is_over() {
            break;
        }
        if now_ns >= listen_ns {
            listen_ns = now_ns + LISTEN_INTERVAL_NS;
            while let Some(feedback) = reader.next() {
                if let Some(payload) = react(feedback, &mut pace, size.as_mut(), sent.datagrams, now_ns) {
                    outgoing = Outgoing::new(socket, payload, &seal);
                }
            }
            if reader.heard.elapsed() > PAUSE_AFTER {
                let since = Instant::now();
                let feedback = reader.await_next(context.begin + Duration::from_nanos(until_ns))?;
                sent.paused += since.elapsed();
                let now_ns = context.now_ns();
                if let Some(feedback) = feedback
                    && let Some(payload) = react(feedback, &mut pace, size.as_mut(), sent.datagrams, now_ns)
                {
                    outgoing = Outgoing::new(socket, payload, &seal);
                }
                due_ns = now_ns as f64;
                continue;
            }
            if pace.is_settled() {
                settled_from.get_or_insert(sent.datagrams);
            } else {
                settled_from = None;
            }
        }
        let bps = pace.bps();
        if due_ns > now_ns as f64 {
            let next = context.begin + Duration::from_nanos((due_ns as u64).min(until_ns));
            if await_readable(socket, next.min(Instant::now() + CHECK_INTERVAL))? {
                listen_ns = 0;
            }
            continue;
        }
        due_ns = due_ns.max(now_ns as f64 - pace.max_catch_up().as_nanos() as f64);
        let Outgoing { payload, sends, datagrams } = &mut outgoing;
        let payload = *payload;
        let bits = (payload * 8) as f64;
        let burst = (bps * MAX_BURST.as_secs_f64() / bits) as usize;
        let most = run.take_bytes(&mut taken, burst.clamp(1, sends.most()) * payload);
        if most == 0 {
            break;
        }
        // The last datagram is as long as all others, even if fewer bytes are left to send.
        let batch = datagrams.get_mut(..most.div_ceil(payload) * payload).unwrap_or_default();
        for (seq, datagram) in (sent.datagrams..).zip(batch.chunks_exact_mut(payload)) {
            Seal::stamp(Bulk { seq, sent_ns: now_ns, is_settled: settled_from.is_some() }, datagram);
        }
        match sends.send(socket, batch) {
            Ok(left) => {
                sent.datagrams += left as u64;
                sent.payload = payload;
                bytes += (left * payload) as u64;
                taken = taken.saturating_sub((left * payload) as u64);
                report.own.last_ns = now_ns;
                run.counter.set(bytes);
                due_ns += left as f64 * bits * 1e9 / bps;
                context.control.charge_and_wait((left * payload) as u64).map_err(io::Error::other)?;
            }
            Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => {
                let (room, _) = socket::room(socket)?;
                match size.as_mut().and_then(|size| size.limit(room, sent.datagrams)) {
                    Some(payload) => {
                        if let Pace::Searched(search) = &mut pace {
                            search.resize(payload, sent.datagrams, now_ns);
                        }
                        outgoing = Outgoing::new(socket, payload, &seal);
                    }
                    None if room < payload => return Err(socket::mtu_decreased(socket, payload)),
                    // The error was caused by an earlier, larger datagram.
                    None => due_ns = now_ns as f64 + 1e6,
                }
            }
            // Nothing was sent: the interface is down, a firewall forbids it, or the buffer is full. If the failure
            // persists, the feedback stops.
            Err(_) => due_ns = now_ns as f64 + 1e6,
        }
    }
    let is_searched = matches!(pace, Pace::Searched(_));
    sent.settled = settled_from.filter(|_| is_searched).map(|from| sent.datagrams - from);
    let last = confirm_end(&mut reader, direction, sent.datagrams)?;
    if let Some(size) = size {
        // Datagrams that the receiver has counted by the end have not vanished.
        let missing = sent.datagrams - last.map_or(0, |last| last.received).min(sent.datagrams);
        sent.vanished = size.vanished().min(missing);
        sent.is_black_hole = size.is_black_hole();
    }
    Ok(())
}

/// Repeats a [`Word::Last`] signal with `sent`, the number of all sent datagrams, until the receiver confirms this
/// signal. Returns the confirmation, or `None` if none arrived in time.
fn confirm_end(reader: &mut FeedbackReader<'_>, direction: Direction, sent: u64) -> io::Result<Option<Feedback>> {
    let end = Instant::now() + CONFIRMATION_TIMEOUT;
    let mut number = 0;
    while Instant::now() < end && !reader.run.is_over() {
        let last = Signal { stream_id: reader.stream_id, number, word: Word::Last(sent) };
        // A failed send is like a lost datagram.
        reader.socket.send(&last.seal(direction, reader.keys)).ok();
        number += 1;
        let again = Instant::now() + FEEDBACK_INTERVAL;
        while let Some(feedback) = reader.await_next(again)? {
            if feedback.is_over {
                return Ok(Some(feedback));
            }
        }
    }
    Ok(None)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
