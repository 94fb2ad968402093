//! The receiving end of a stream: verifies and counts datagrams, and sends feedback. The code is the same at both ends
//! of a session.

use std::io;
use std::time::Duration;

use paramedic_link::measurement::DatagramTally;

use super::ledger::{Counts, DatagramLedger};
use super::packet::{Feedback, SIGNAL, Seal, Signal, Word};
use super::ready::{ReadyStream, Received, StreamCounts, UdpRun};
use super::socket::BatchReceiver;
use super::{FEEDBACK_INTERVAL, opposite};

/// How long the receiver waits for missing datagrams after the sender's last signal, in nanoseconds, because the path
/// may reorder datagrams.
const REORDER_NS: u64 = 100_000_000;
/// How often a receiver stops waiting for datagrams to check whether feedback or the end is due.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// How many times the receiver confirms the end of the stream, because the path may lose some confirmations.
const CONFIRMATIONS: usize = 3;

/// Combines the counts of all streams that this end receives in one direction.
pub(super) fn tally<'a>(streams: impl Iterator<Item = &'a Received> + Clone) -> DatagramTally {
    let sum = |what: fn(&Counts) -> u64| Some(streams.clone().map(|received| what(&received.counts)).sum::<u64>());
    let measured = streams.clone().filter(|received| received.counts.received > 1);
    let jitter_ns = measured.clone().map(|received| received.jitter_ns).sum::<u64>();
    // A direction has settled once the last of its streams has settled.
    let settled_at = streams.clone().map(|received| received.counts.settled_at_ns);
    let settled_at = settled_at.reduce(|a, b| Some(a?.max(b?))).flatten();
    DatagramTally {
        received: sum(|counts| counts.received),
        duplicates: sum(|counts| counts.duplicates),
        out_of_order: sum(|counts| counts.out_of_order),
        jitter_us: (jitter_ns / 1000).checked_div(measured.count() as u64),
        settled: settled_at.and_then(|_| sum(|counts| counts.settled)),
        settled_at_us: settled_at.map(|at_ns| at_ns / 1000),
        ..DatagramTally::default()
    }
}

/// Receives until the sender's [`Word::Last`] signal and all datagrams that this signal counts have arrived, or until
/// [`REORDER_NS`] after the signal. `run.counter` and `counted` include what arrived before a failure.
pub(super) fn receive(stream: &ReadyStream, run: &UdpRun<'_>, counted: &mut StreamCounts) -> io::Result<()> {
    let ReadyStream { socket, stream_id, keys, .. } = stream;
    let (context, stream_id, direction) = (run.context, *stream_id, run.direction);
    let seal = Seal::of(stream_id, direction, keys);
    let mut receives = BatchReceiver::of(socket);
    let mut ledger = DatagramLedger::new();
    let mut bytes = 0;
    socket.set_read_timeout(Some(CHECK_INTERVAL))?;
    let every_ns = nanos(FEEDBACK_INTERVAL);
    let (mut number, mut next_ns) = (0, 0);
    // The number of all datagrams, from the sender's last signal, and when that signal arrived.
    let mut last: Option<(u64, u64)> = None;
    loop {
        let now_ns = context.now_ns();
        let counts = ledger.counts();
        let is_over = last.is_some_and(|(all, at_ns)| counts.received >= all || now_ns - at_ns > REORDER_NS);
        if now_ns >= next_ns || is_over {
            let feedback = Feedback {
                received: counts.received,
                through: counts.through,
                at_ns: now_ns,
                queue_us: ledger.queue_us(),
                is_over,
            };
            for _ in 0..if is_over { CONFIRMATIONS } else { 1 } {
                let signal = Signal { stream_id, number, word: Word::Feedback(feedback) };
                // A failed send is like a lost datagram.
                socket.send(&signal.seal(opposite(direction), keys)).ok();
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
            // A read of a socket that was shut down returns 0 bytes at once.
            Ok(([], _)) => continue,
            Ok(came) => came,
            // Nothing arrived in time, or the read returned the error of an earlier send, and thereby cleared it.
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
                && signal.stream_id == stream_id
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
