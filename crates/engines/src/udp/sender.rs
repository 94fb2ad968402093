//! The sending end of one stream: equal datagrams on an absolute schedule, at the rate that was asked for or that the
//! search finds, as long as the receiver says that it gets them. The same at both ends of a session.

use std::io;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use nix::libc;
use paramedic_link::admission::SessionKeys;
use paramedic_link::measurement::DatagramTally;
use paramedic_link::test_spec::{Direction, TestSpec};

use super::packet::{Bulk, Feedback, Place, SIGNAL, Seal, Signal, Word};
use super::ready::{ReadyStream, Sent, UdpReport, UdpRun};
use super::search::Search;
use super::socket::{self, Sends, await_readable, take_waiting};
use super::{DEFAULT_LOSS_PPM, FEEDBACK_EVERY, HOLD_STILL_AFTER, against};

/// How long the first word of the receiver may take.
pub(super) const FEEDBACK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last word may take until it is confirmed.
const FAREWELL: Duration = Duration::from_secs(2);
/// One send holds what the rate makes in this time at most: more at once could flood a small queue alone.
const BURST: Duration = Duration::from_micros(500);
/// A schedule that could not be kept for longer than this is left behind.
const CATCH_UP: Duration = Duration::from_millis(20);
/// The same while the rate is searched: what would be sent too fast would pass for what the path does not carry.
const SEARCH_CATCH_UP: Duration = Duration::from_millis(1);
/// The longest wait after which it is looked whether the session lasts.
const GLANCE: Duration = Duration::from_millis(50);
/// How often signals are looked for while there is always something to send.
const LISTEN_EVERY_NS: u64 = 1_000_000;
/// Signals that are looked at before anything else is done.
const ROUND: usize = 64;

/// What a direction's senders tell together.
pub(super) fn tally<'a>(streams: impl Iterator<Item = &'a Sent> + Clone) -> DatagramTally {
    let first = streams.clone().next().copied().unwrap_or_default();
    let settled = streams.clone().map(|sent| sent.settled).try_fold(0, |sum, one| Some(sum + one?));
    let paused = streams.clone().map(|sent| sent.paused).max().filter(|paused| !paused.is_zero());
    DatagramTally {
        payload_bytes: u32::try_from(first.payload).ok().filter(|bytes| *bytes > 0),
        sent: Some(streams.map(|sent| sent.datagrams).sum()),
        settled: settled.filter(|_| first.settled.is_some()),
        paused_ms: paused.map(|paused| u64::try_from(paused.as_millis()).unwrap_or(u64::MAX).max(1)),
        ..DatagramTally::default()
    }
}

/// What is heard of the receiver.
struct Ears<'a> {
    socket: &'a UdpSocket,
    keys: &'a SessionKeys,
    run: &'a UdpRun<'a>,
    place: Place,
    flow: Direction,
    /// The highest number of its words: older ones may be replayed by another host.
    newest: Option<u64>,
    heard: Instant,
}

impl Ears<'_> {
    /// The next word of the receiver that lies in the socket.
    fn next(&mut self) -> Option<Feedback> {
        let mut bytes = [0; SIGNAL + 1];
        for _ in 0..ROUND {
            let len = take_waiting(self.socket, &mut bytes)?;
            let signal = Signal::open(bytes.get(..len)?, self.flow, self.keys);
            let Some(Signal { place, number, word: Word::Feedback(feedback) }) = signal else { continue };
            if place == self.place && self.newest.is_none_or(|newest| number > newest) {
                self.newest = Some(number);
                self.heard = Instant::now();
                self.run.context.control.heard();
                return Some(feedback);
            }
        }
        None
    }

    /// Waits for the next word until `until`; ends early with the session.
    fn await_next(&mut self, until: Instant) -> io::Result<Option<Feedback>> {
        loop {
            if let Some(feedback) = self.next() {
                return Ok(Some(feedback));
            }
            let now = Instant::now();
            if now >= until || self.run.is_over() {
                return Ok(None);
            }
            await_readable(self.socket, until.min(now + GLANCE))?;
        }
    }
}

/// How fast.
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

    fn catches_up(&self) -> Duration {
        if matches!(self, Pace::Fixed(_)) { CATCH_UP } else { SEARCH_CATCH_UP }
    }
}

/// Sends until the phase's time is over, then says how many those were until the receiver confirms it. What was sent
/// before a failure stands in the counter and in `report` all the same.
pub(super) fn send(stream: &ReadyStream, run: &UdpRun<'_>, report: &mut UdpReport) -> io::Result<()> {
    let ReadyStream { socket, place, keys, .. } = stream;
    let (context, place, direction) = (run.context, *place, run.direction);
    // At the latest.
    report.until = context.until + FEEDBACK_TIMEOUT;
    let sent = &mut report.own.sent;
    let payload = socket::payload(socket, context.ask)?;
    sent.payload = payload;
    let mut sends = Sends::new(socket, payload);
    let seal = Seal::of(place, direction, keys);
    let mut datagrams = vec![0; payload * sends.most()];
    datagrams.chunks_exact_mut(payload).for_each(|datagram| seal.prepare(datagram));
    let mut pace = match context.ask.bitrate_bps {
        Some(0) => {
            let bound = context.ask.loss_bound_ppm.unwrap_or(DEFAULT_LOSS_PPM);
            Pace::Searched(Box::new(Search::new(payload, bound)))
        }
        bps => Pace::Fixed(bps.unwrap_or(TestSpec::DEFAULT_DATAGRAM_BPS) as f64),
    };
    let (flow, heard) = (against(direction), context.begin);
    let mut ears = Ears { socket, keys, run, place, flow, newest: None, heard };
    // Nothing leaves before the receiver says that it listens.
    if ears.await_next(context.begin + FEEDBACK_TIMEOUT)?.is_none() {
        if run.is_over() {
            return Ok(());
        }
        return Err(io::Error::new(io::ErrorKind::TimedOut, "the receiver of datagrams does not answer over UDP"));
    }
    let until_ns = context.now_ns().saturating_add(nanos(context.until - context.begin));
    report.until = context.begin + Duration::from_nanos(until_ns);
    let bits = (payload * 8) as f64;
    let mut settled_from = None;
    let mut due_ns = context.now_ns() as f64;
    let mut listen_ns = 0;
    loop {
        let now_ns = context.now_ns();
        if now_ns >= until_ns || run.is_over() {
            break;
        }
        if now_ns >= listen_ns {
            listen_ns = now_ns + LISTEN_EVERY_NS;
            while let Some(told) = ears.next() {
                if let Pace::Searched(search) = &mut pace {
                    search.hear(told, sent.datagrams, now_ns);
                }
            }
            if ears.heard.elapsed() > HOLD_STILL_AFTER {
                let since = Instant::now();
                let told = ears.await_next(context.begin + Duration::from_nanos(until_ns))?;
                sent.paused += since.elapsed();
                if let (Pace::Searched(search), Some(told)) = (&mut pace, told) {
                    search.hear(told, sent.datagrams, context.now_ns());
                }
                due_ns = context.now_ns() as f64;
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
            if await_readable(socket, next.min(Instant::now() + GLANCE))? {
                listen_ns = 0;
            }
            continue;
        }
        due_ns = due_ns.max(now_ns as f64 - pace.catches_up().as_nanos() as f64);
        let burst = (bps * BURST.as_secs_f64() / bits) as usize;
        let batch = datagrams.get_mut(..burst.clamp(1, sends.most()) * payload).unwrap_or_default();
        for (seq, datagram) in (sent.datagrams..).zip(batch.chunks_exact_mut(payload)) {
            Seal::stamp(Bulk { seq, sent_ns: now_ns, is_settled: settled_from.is_some() }, datagram);
        }
        match sends.send(socket, batch) {
            Ok(left) => {
                sent.datagrams += left as u64;
                report.own.last_ns = now_ns;
                run.counter.set(sent.datagrams * payload as u64);
                due_ns += left as f64 * bits * 1e9 / bps;
                context.control.charge_and_wait((left * payload) as u64).map_err(io::Error::other)?;
            }
            Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => return Err(socket::narrowed(socket, payload)),
            // Nothing left, and it is not known for how long: an interface is down, a filter forbids it, the buffer is
            // full. The receiver's silence will tell if it stays so.
            Err(_) => due_ns = now_ns as f64 + 1e6,
        }
    }
    let is_searched = matches!(pace, Pace::Searched(_));
    sent.settled = settled_from.filter(|_| is_searched).map(|from| sent.datagrams - from);
    take_leave(&mut ears, direction, sent.datagrams)
}

/// Says the last word until it is confirmed.
fn take_leave(ears: &mut Ears<'_>, direction: Direction, sent: u64) -> io::Result<()> {
    let end = Instant::now() + FAREWELL;
    let mut number = 0;
    while Instant::now() < end && !ears.run.is_over() {
        let last = Signal { place: ears.place, number, word: Word::Last(sent) };
        // One that can't be sent is like one that is lost.
        let _ = ears.socket.send(&last.seal(direction, ears.keys));
        number += 1;
        let again = Instant::now() + FEEDBACK_EVERY;
        while let Some(told) = ears.await_next(again)? {
            if told.is_over {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
