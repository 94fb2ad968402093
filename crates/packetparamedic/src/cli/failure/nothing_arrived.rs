//! The failure of a test in which, in some directions, almost no payload arrived or the payload stopped.

use paramedic_appliance::payload_transport::PayloadTransport;
use paramedic_link::test_spec::Load;
use paramedic_report::document::ErrorBody;
use paramedic_report::fold::EmptyDirection;
use paramedic_report::quantity;

use super::{CommandFailure, ExitStatus};

pub(super) fn failure(directions: &[EmptyDirection], transport: PayloadTransport) -> CommandFailure {
    let name = |empty: &EmptyDirection| match empty.load {
        Load::Bidir => format!("the {} of the bidirectional phase", empty.direction),
        _ => format!("the {}", empty.direction),
    };
    let listed = |names: Vec<String>| match names.split_last() {
        Some((last, [])) => Some(last.clone()),
        Some((last, others)) => Some(format!("{} and {last}", others.join(", "))),
        None => None,
    };
    let stopped = directions.iter().filter_map(|empty| {
        let after = u64::try_from(empty.stopped_after?.as_millis()).unwrap_or(u64::MAX);
        Some(format!("{} stopped after {}", name(empty), quantity::millis(after)))
    });
    let stopped = listed(stopped.collect());
    let never = listed(directions.iter().filter(|empty| empty.stopped_after.is_none()).map(name).collect());
    if let (None, Some(what)) = (&never, &stopped) {
        let because = "the connections stayed open, but the receiver counted no further payload";
        let try_ = "repeat the test: the path or a device on it may have failed for a time";
        return CommandFailure::new(ExitStatus::Failed, ErrorBody::NOTHING_ARRIVED, what.clone(), because, try_);
    }
    let names = never.unwrap_or_else(|| "the test".to_owned());
    let smaller = match transport {
        PayloadTransport::Tcp => "-M 1200",
        PayloadTransport::Udp => "-l 1200",
    };
    let try_ = format!(
        "the path may drop large packets: repeat with {smaller}; if that works, correct the MTU or the firewall that \
         drops ICMP"
    );
    let because = "the connections are open, but the receiver counted almost no payload";
    let stopped = stopped.map(|stopped| format!(", and {stopped}")).unwrap_or_default();
    let what = format!("almost no payload arrived in {names}{stopped}");
    CommandFailure::new(ExitStatus::Failed, ErrorBody::NOTHING_ARRIVED, what, because, try_)
}
