//! The receiving end of one stream: datagrams are checked, counted and forgotten, and the sender is told. The same at both
//! ends of a session.

use std::io;
use std::time::Duration;

use paramedic_link::measurement::DatagramTally;

use super::ledger::{Counts, Ledger};
use super::packet::{Feedback, SIGNAL, Seal, Signal, Word};
use super::ready::{ReadyStream, Received, StreamCounts, UdpRun};
use super::socket::Receives;
use super::{FEEDBACK_EVERY, against};

/// How long after that word what was overtaken by it may come.
const OVERTAKEN_NS: u64 = 100_000_000;
/// The longest wait after which is looked what else there is to do.
const GLANCE: Duration = Duration::from_millis(10);
/// How often the end is confirmed: one confirmation may be lost.
const CONFIRMATIONS: usize = 3;

/// What a direction's receivers tell together.
pub(super) fn tally<'a>(streams: impl Iterator<Item = &'a Received> + Clone) -> DatagramTally {
    let sum = |what: fn(&Counts) -> u64| Some(streams.clone().map(|received| what(&received.counts)).sum::<u64>());
    let heard = streams.clone().filter(|received| received.counts.received > 1);
    let jitter_ns = heard.clone().map(|received| received.jitter_ns).sum::<u64>();
    // Settled is a direction once its last stream is.
    let settled_at = streams.clone().map(|received| received.counts.settled_at_ns);
    let settled_at = settled_at.reduce(|a, b| Some(a?.max(b?))).flatten();
    DatagramTally {
        received: sum(|counts| counts.received),
        duplicates: sum(|counts| counts.duplicates),
        out_of_order: sum(|counts| counts.out_of_order),
        jitter_us: (jitter_ns / 1000).checked_div(heard.count() as u64),
        settled: settled_at.and_then(|_| sum(|counts| counts.settled)),
        settled_at_us: settled_at.map(|at_ns| at_ns / 1000),
        ..DatagramTally::default()
    }
}

/// Receives until the sender's last word, and all that it names, has come. What came before a failure stands in the
/// counter and in `counted` all the same.
pub(super) fn receive(stream: &ReadyStream, run: &UdpRun<'_>, counted: &mut StreamCounts) -> io::Result<()> {
    let ReadyStream { socket, place, keys, .. } = stream;
    let (context, place, direction) = (run.context, *place, run.direction);
    let seal = Seal::of(place, direction, keys);
    let mut receives = Receives::of(socket);
    let mut ledger = Ledger::new();
    let mut bytes = 0;
    socket.set_read_timeout(Some(GLANCE))?;
    let every_ns = nanos(FEEDBACK_EVERY);
    let (mut number, mut next_ns) = (0, 0);
    // How many there are in all, and when that was heard.
    let mut last: Option<(u64, u64)> = None;
    loop {
        let now_ns = context.now_ns();
        let counts = ledger.counts();
        let is_over = last.is_some_and(|(all, at_ns)| counts.received >= all || now_ns - at_ns > OVERTAKEN_NS);
        if now_ns >= next_ns || is_over {
            let feedback = Feedback {
                received: counts.received,
                through: counts.through,
                at_ns: now_ns,
                queue_us: ledger.queue_us(),
                is_over,
            };
            for _ in 0..if is_over { CONFIRMATIONS } else { 1 } {
                let signal = Signal { place, number, word: Word::Feedback(feedback) };
                // One that can't be sent is like one that is lost.
                let _ = socket.send(&signal.seal(against(direction), keys));
                number += 1;
            }
            next_ns = now_ns + every_ns;
        }
        counted.received.counts = counts;
        counted.received.jitter_ns = ledger.jitter_ns();
        if is_over || run.is_over() {
            return Ok(());
        }
        let (came, each) = match receives.receive(socket) {
            // A socket that was shut down has nothing, at once.
            Ok(([], _)) => continue,
            Ok(came) => came,
            // Nothing for now, or an error that an earlier send met, which is gone once read.
            Err(_) => continue,
        };
        let now_ns = context.now_ns();
        let mut ours = 0;
        for datagram in came.chunks(each) {
            if let Some(bulk) = seal.open(datagram) {
                ours += datagram.len() as u64;
                if ledger.enter(&bulk, now_ns) {
                    bytes += datagram.len() as u64;
                }
            } else if datagram.len() == SIGNAL
                && let Some(signal) = Signal::open(datagram, direction, keys)
                && signal.place == place
                && let Word::Last(all) = signal.word
            {
                last.get_or_insert((all, now_ns));
            }
        }
        if ours > 0 {
            counted.last_ns = now_ns;
            run.counter.set(bytes);
            context.control.charge_and_wait(ours).map_err(io::Error::other)?;
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
