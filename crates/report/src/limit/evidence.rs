//! Turns observations about what limited a rate into evidence, each with a name, a value and a text. Pure: no I/O, no
//! clock.

use paramedic_link::measurement::Duplex;

use super::{DatagramsLost, StreamShares};
use crate::document::{LimitEvidence, ObservedEnd, Quantity};
use crate::quantity;
use crate::stats::ProcessorLimit;

/// The name of the evidence about the queue.
pub(super) const QUEUE: &str = "queue_ms";

/// The words for `end` in the possessive form, for texts.
pub(super) fn whose(end: ObservedEnd) -> &'static str {
    match end {
        ObservedEnd::Appliance => "this device's",
        ObservedEnd::Reflector => "the reflector's",
    }
}

/// The text of a share (0 to 1) of the time, as a percentage.
pub(super) fn percent(share: f64) -> String {
    format!("{} % of the time", (share * 100.0).round())
}

pub(super) fn requested_rate(bps: u64) -> LimitEvidence {
    of("requested_bps", Quantity::Whole(bps), format!("{} was requested", quantity::rate(bps)))
}

pub(super) fn requested_bytes(bytes: u64) -> LimitEvidence {
    of("requested_bytes", Quantity::Whole(bytes), format!("it ended after the requested {}", quantity::bytes(bytes)))
}

pub(super) fn processor(end: ObservedEnd, limit: ProcessorLimit) -> LimitEvidence {
    let name = match limit {
        ProcessorLimit::HeldBack(_) => "throttled_share",
        ProcessorLimit::Waited(_) => "run_queue_wait_share",
        ProcessorLimit::OneThread(_) => "busiest_thread_share",
        ProcessorLimit::SoftInterrupts(_) => "core_softirq_share",
    };
    LimitEvidence { end: Some(end), ..of(name, fraction(limit.share()), limit.to_string()) }
}

pub(super) fn runnable(end: ObservedEnd, share: f64) -> LimitEvidence {
    let text = format!("{} busiest thread ran or waited for a processor for {}", whose(end), percent(share));
    LimitEvidence { end: Some(end), ..of("runnable_share", fraction(share), text) }
}

pub(super) fn receive_window(streams: StreamShares) -> LimitEvidence {
    let share = streams.receive_window;
    of(
        "receive_window_share",
        fraction(share),
        format!("the receiver's window stopped the sender for {}", percent(share)),
    )
}

pub(super) fn send_buffer(streams: StreamShares) -> LimitEvidence {
    let share = streams.send_buffer;
    of("send_buffer_share", fraction(share), format!("the send buffer stopped the sender for {}", percent(share)))
}

/// The evidence about the path: the share of the time in which the TCP streams had data in flight or unsent, and no
/// socket buffer stopped the streams.
pub(super) fn waited_for_path(streams: StreamShares) -> LimitEvidence {
    let share = (streams.busy - streams.stopped()).max(0.0);
    of("path_share", fraction(share), format!("the streams waited for the path for {}", percent(share)))
}

pub(super) fn queue(ms: f64) -> LimitEvidence {
    let text = format!("latency rose by {}", quantity::micros((ms * 1000.0) as u64));
    of(QUEUE, fraction(ms), text)
}

pub(super) fn retransmits(segments: u64) -> LimitEvidence {
    of("retransmitted_segments", Quantity::Whole(segments), format!("{segments} segments were retransmitted"))
}

pub(super) fn lost_datagrams(datagrams: DatagramsLost) -> LimitEvidence {
    let DatagramsLost { lost, sent } = datagrams;
    of("lost_datagrams", Quantity::Whole(lost), format!("{lost} of {sent} datagrams were lost"))
}

pub(super) fn interface_speed(end: ObservedEnd, bps: u64, duplex: Option<Duplex>) -> LimitEvidence {
    let duplex = match duplex {
        Some(Duplex::Half) => ", half duplex",
        Some(Duplex::Full) | None => "",
    };
    let text = format!("{} interface runs at {}{duplex}", whose(end), quantity::rate(bps));
    LimitEvidence { end: Some(end), ..of("interface_speed_bps", Quantity::Whole(bps), text) }
}

pub(super) fn wire_rate(bps: f64) -> LimitEvidence {
    let bps = bps as u64;
    of("wire_bps", Quantity::Whole(bps), format!("this test took about {} on the wire", quantity::rate(bps)))
}

pub(super) fn other(end: ObservedEnd, bps: f64, share: f64) -> LimitEvidence {
    let bps = bps as u64;
    let share = (share * 100.0).round();
    let text = format!("other traffic took {} of {} interface, {share} % of all", quantity::rate(bps), whose(end));
    LimitEvidence { end: Some(end), ..of("other_bps", Quantity::Whole(bps), text) }
}

pub(super) fn other_idle(end: ObservedEnd, bps: f64) -> LimitEvidence {
    let bps = bps as u64;
    let text = format!("{} before the load", quantity::rate(bps));
    LimitEvidence { end: Some(end), ..of("other_idle_bps", Quantity::Whole(bps), text) }
}

/// Rounds a share to four decimals, because no observation is more accurate.
fn fraction(number: f64) -> Quantity {
    Quantity::Fraction((number * 10_000.0).round() / 10_000.0)
}

fn of(name: &str, value: Quantity, text: String) -> LimitEvidence {
    LimitEvidence { name: name.to_owned(), end: None, value, text }
}
