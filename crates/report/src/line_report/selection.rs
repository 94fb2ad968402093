//! Selects the runs that count in the comparison with the contract, and names why other runs do not count. The
//! selection never depends on the measured rate.

use std::collections::BTreeMap;

use paramedic_link::test_spec::Direction;

use super::input::{InterfaceSeen, LinkMedium, ReportRun};
use crate::document::LimitCause;

/// Why one direction of a run is left out of the comparison with the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOut {
    /// Not every phase of the run was measured to its end.
    Incomplete,
    /// The other end is in the same network as the appliance, so the payload did not cross the line.
    Local,
    /// The run used another uplink than most runs.
    OtherUplink,
    /// The appliance was connected by a wireless or mobile network, which may be slower than the line.
    Wireless,
    /// The run went through a virtual private network.
    Tunnel,
    /// The payload was sent as datagrams, whose rate is not compared with the contract.
    Datagrams,
    /// An earlier version of the program measured the run, and the result does not name what limited the rate.
    NotJudged,
    /// The processor of the appliance limited the rate.
    OwnProcessor,
    /// The processor of the other end limited the rate.
    OtherProcessor,
    /// A socket buffer limited the rate.
    SocketBuffer,
    /// The speed of an interface at one end limited the rate.
    Interface,
    /// The request for the test limited the rate or the number of bytes.
    Request,
    /// Other traffic used the interface of one end.
    OtherTraffic,
}

impl LeftOut {
    /// The reason as a clause that completes "left out because …".
    pub fn as_words(self) -> &'static str {
        match self {
            Self::Incomplete => "not every phase was measured to its end",
            Self::Local => "the other end is in the same network, not beyond the line",
            Self::OtherUplink => "this device used another uplink than in most runs",
            Self::Wireless => "this device was connected by a wireless network, which may be slower than the line",
            Self::Tunnel => "the test went through a virtual private network",
            Self::Datagrams => "the payload was sent as datagrams, whose rate is not compared with the contract",
            Self::NotJudged => "it was measured by an earlier version, which does not name what limited the rate",
            Self::OwnProcessor => "the processor of this device limited the rate",
            Self::OtherProcessor => "the processor of the other end limited the rate",
            Self::SocketBuffer => "a socket buffer limited the rate",
            Self::Interface => "the interface of one end limited the rate",
            Self::Request => "the request limited the rate or the number of bytes",
            Self::OtherTraffic => "other traffic used the interface of one end at the same time",
        }
    }

    /// The reason in one word, for the CSV tables that other programs read.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Incomplete => "incomplete",
            Self::Local => "local_target",
            Self::OtherUplink => "other_uplink",
            Self::Wireless => "wireless",
            Self::Tunnel => "vpn",
            Self::Datagrams => "datagrams",
            Self::NotJudged => "not_judged",
            Self::OwnProcessor => "appliance_cpu",
            Self::OtherProcessor => "reflector_cpu",
            Self::SocketBuffer => "socket_buffer",
            Self::Interface => "link_rate",
            Self::Request => "policy",
            Self::OtherTraffic => "other_traffic",
        }
    }
}

/// The codes of the reasons that make a run suspect and may exclude it from the comparison, each with its [`LeftOut`].
/// If a run has several of the codes, the first entry that matches decides.
const SUSPECT: [(&str, LeftOut); 6] = [
    ("appliance_cpu", LeftOut::OwnProcessor),
    ("reflector_cpu", LeftOut::OtherProcessor),
    ("receive_window", LeftOut::SocketBuffer),
    ("send_buffer", LeftOut::SocketBuffer),
    ("other_traffic", LeftOut::OtherTraffic),
    ("incomplete", LeftOut::Incomplete),
];

/// The name of the interface that the largest number of `runs` used as uplink.
pub(super) fn main_uplink(runs: &[ReportRun]) -> Option<String> {
    let mut counts = BTreeMap::<&str, u64>::new();
    for uplink in runs.iter().filter_map(|run| run.uplink.as_deref()) {
        *counts.entry(uplink).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name.to_owned())
}

/// Why the results of `run` do not describe the line; `None` if they do.
pub(super) fn left_out_of_path(run: &ReportRun, main_uplink: Option<&str>) -> Option<LeftOut> {
    if !run.is_complete {
        return Some(LeftOut::Incomplete);
    }
    if run.is_local() {
        return Some(LeftOut::Local);
    }
    if run.uplink.is_some() && run.uplink.as_deref() != main_uplink {
        return Some(LeftOut::OtherUplink);
    }
    match run.interface.as_ref().map(InterfaceSeen::kind) {
        Some(LinkMedium::Wireless) => Some(LeftOut::Wireless),
        Some(LinkMedium::Tunnel) => Some(LeftOut::Tunnel),
        Some(LinkMedium::Wired | LinkMedium::Unknown) | None => None,
    }
}

/// Why `direction` of `run` is left out of the comparison with the contract. `None` if the direction counts or was not
/// measured.
pub(super) fn left_out(run: &ReportRun, direction: Direction, main_uplink: Option<&str>) -> Option<LeftOut> {
    let rate = run.rate(direction)?;
    if let Some(why) = left_out_of_path(run, main_uplink) {
        return Some(why);
    }
    if rate.is_datagrams {
        return Some(LeftOut::Datagrams);
    }
    let (Some(cause), Some(suspect)) = (rate.cause, &run.suspect) else { return Some(LeftOut::NotJudged) };
    let by_cause = match cause {
        LimitCause::Network | LimitCause::Unknown => None,
        LimitCause::ApplianceCpu => Some(LeftOut::OwnProcessor),
        LimitCause::ReflectorCpu => Some(LeftOut::OtherProcessor),
        LimitCause::ReceiveWindow | LimitCause::SendBuffer => Some(LeftOut::SocketBuffer),
        LimitCause::LinkRate => Some(LeftOut::Interface),
        LimitCause::Policy => Some(LeftOut::Request),
        LimitCause::OtherTraffic => Some(LeftOut::OtherTraffic),
    };
    // A reason that makes the run suspect may be about either direction. So these reasons decide only if the limit of
    // this direction is unknown.
    let by_warning = || SUSPECT.iter().find(|(code, _)| suspect.iter().any(|own| own == code)).map(|(_, why)| *why);
    by_cause.or_else(|| if cause == LimitCause::Unknown { by_warning() } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::example;

    fn good() -> ReportRun {
        let mut run = ReportRun::of(&example::full());
        run.suspect = Some(vec![]);
        for rate in [&mut run.download, &mut run.upload].into_iter().flatten() {
            rate.is_datagrams = false;
        }
        run
    }

    fn why(change: impl FnOnce(&mut ReportRun)) -> Option<LeftOut> {
        let mut run = good();
        change(&mut run);
        left_out(&run, Direction::Download, Some("eth0"))
    }

    #[test]
    fn a_run_counts_unless_something_else_than_the_line_may_have_limited_it() {
        assert_eq!(why(|_| {}), None);
        assert_eq!(why(|run| run.is_complete = false), Some(LeftOut::Incomplete));
        assert_eq!(why(|run| run.address = Some("10.0.0.2:4000".to_owned())), Some(LeftOut::Local));
        assert_eq!(why(|run| run.uplink = Some("wwan0".to_owned())), Some(LeftOut::OtherUplink));
        assert_eq!(why(|run| run.uplink = None), None);
        let named = |name: &str| {
            let name = name.to_owned();
            why(|run| {
                let seen = InterfaceSeen { name, speed_bps: None, is_half_duplex: None };
                run.interface = Some(seen);
            })
        };
        assert_eq!((named("wlan0"), named("wg0")), (Some(LeftOut::Wireless), Some(LeftOut::Tunnel)));
        assert_eq!(named("eth0"), None);
        assert_eq!(why(|run| run.suspect = None), Some(LeftOut::NotJudged));
        for (cause, expected) in [
            (LimitCause::Network, None),
            (LimitCause::Unknown, None),
            (LimitCause::ApplianceCpu, Some(LeftOut::OwnProcessor)),
            (LimitCause::LinkRate, Some(LeftOut::Interface)),
            (LimitCause::Policy, Some(LeftOut::Request)),
            (LimitCause::OtherTraffic, Some(LeftOut::OtherTraffic)),
        ] {
            assert_eq!(why(|run| run.download.as_mut().unwrap().cause = Some(cause)), expected, "{cause:?}");
        }
        assert_eq!(why(|run| run.download.as_mut().unwrap().cause = None), Some(LeftOut::NotJudged));
        assert_eq!(why(|run| run.download.as_mut().unwrap().is_datagrams = true), Some(LeftOut::Datagrams));
    }

    #[test]
    fn an_unsteady_or_slow_run_counts() {
        assert_eq!(why(|run| run.suspect = Some(vec!["not_steady".to_owned(), "probes_lost".to_owned()])), None);
        assert_eq!(why(|run| run.download.as_mut().unwrap().bps = 1), None);
        let busy = |run: &mut ReportRun| run.suspect = Some(vec!["other_traffic".to_owned()]);
        assert_eq!(why(busy), None, "the warning is of the other direction");
        let unknown = |run: &mut ReportRun| {
            busy(run);
            run.download.as_mut().unwrap().cause = Some(LimitCause::Unknown);
        };
        assert_eq!(why(unknown), Some(LeftOut::OtherTraffic));
    }

    #[test]
    fn the_main_uplink_is_that_of_most_runs() {
        let on = |name: Option<&str>| ReportRun { uplink: name.map(str::to_owned), ..good() };
        let runs = [on(Some("wwan0")), on(Some("eth0")), on(None), on(Some("eth0"))];
        assert_eq!(main_uplink(&runs).as_deref(), Some("eth0"));
        assert_eq!(main_uplink(&[on(None)]), None);
    }
}
