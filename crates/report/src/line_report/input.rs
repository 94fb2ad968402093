//! The input of a report on an Internet line: the contract, the runs, the probes of each monitor by hour, the outages.
//! Pure: no I/O, no clock.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use paramedic_link::measurement::Duplex;
use paramedic_link::test_spec::{DataMode, Direction, Load};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::document::{LatencyResult, LimitCause, QueueSide, ResultDocument, ThroughputResult, ValidityVerdict};
use crate::stats::{Grade, Statement};

/// What the contract of a line promises for one direction, in bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContractRate {
    /// The rate that the contract promises.
    pub promised_bps: u64,
    /// The rate that is usually available, if the contract names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normal_bps: Option<u64>,
    /// The rate below which the line never falls, if the contract names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_bps: Option<u64>,
}

/// What the contract of a line promises. A direction without a promise is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contract {
    /// The promise for the direction towards the appliance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<ContractRate>,
    /// The promise for the direction away from the appliance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<ContractRate>,
}

impl Contract {
    /// The promise for `direction`; `None` without a promise, and for a promised rate of zero.
    pub fn of(&self, direction: Direction) -> Option<ContractRate> {
        let promise = match direction {
            Direction::Download => self.download,
            Direction::Upload => self.upload,
        };
        promise.filter(|promise| promise.promised_bps > 0)
    }
}

/// Everything from which a report on a line is made.
#[derive(Clone, Debug)]
pub struct ReportInput {
    /// The start of the period that the report covers.
    pub since: Timestamp,
    /// The end of the period that the report covers.
    pub until: Timestamp,
    /// When the report is made.
    pub made_at: Timestamp,
    /// The time zone of local times. It decides which hours are evening and night.
    pub zone: TimeZone,
    /// The contract of the line; absent if no contract is known.
    pub plan: Option<Contract>,
    /// The runs of the period, in order of time.
    pub runs: Vec<ReportRun>,
    /// The number of saved results of the period that could not be read.
    pub unreadable: usize,
    /// The probes of all monitors in the period, by hour.
    pub hours: Vec<MonitorHour>,
    /// The outages that overlap the period, in order of time.
    pub outages: Vec<ReportOutage>,
    /// Whether the report leaves out names, addresses and Endpoint IDs.
    pub is_redacted: bool,
}

/// What a report on a line takes from the result document of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportRun {
    /// The id of the run.
    pub id: Uuid,
    /// When the run began.
    pub started_at: Timestamp,
    /// The name of the reflector or server at the other end; absent if no name is known.
    pub other_end: Option<String>,
    /// The address of the other end; absent if the run did not reach it.
    pub address: Option<String>,
    /// The Endpoint ID of the reflector at the other end; absent if the run reached no reflector.
    pub endpoint_id: Option<String>,
    /// The Endpoint ID of the appliance that made the run.
    pub appliance: String,
    /// The version of the program on the appliance that made the run.
    pub version: String,
    /// The engine that moved the payload, such as `tcp` or `iperf3`.
    pub engine: String,
    /// How the payload travelled: direct or through the tunnel. Absent if the result does not record it.
    pub data_mode: Option<DataMode>,
    /// The appliance's network interface that carried the connection to the other end; absent if unknown.
    pub interface: Option<InterfaceSeen>,
    /// The name of the appliance's interface that had the IPv4 default route; absent if there was no such route.
    pub uplink: Option<String>,
    /// The /24 (IPv4) or /48 (IPv6) prefix of the appliance's address as the reflector sees it, after every NAT. Absent
    /// if the reflector did not report the address.
    pub public_prefix: Option<String>,
    /// Whether the appliance's clock was synchronised; absent if unknown.
    pub is_clock_synchronised: Option<bool>,
    /// The rate of the phase that only downloads; absent if it was not measured.
    pub download: Option<RunRate>,
    /// The rate of the phase that only uploads; absent if it was not measured.
    pub upload: Option<RunRate>,
    /// The latency without load.
    pub idle: Option<RunLatency>,
    /// The latency during the download.
    pub under_download: Option<RunLatency>,
    /// The latency during the upload.
    pub under_upload: Option<RunLatency>,
    /// Whether every phase was measured to its end.
    pub is_complete: bool,
    /// The code of the error that ended the run; absent if no error ended it.
    pub error: Option<String>,
    /// The codes of the reasons that make the run suspect; `None` if the document does not judge the run.
    pub suspect: Option<Vec<String>>,
    /// The codes of the run's warnings.
    pub warnings: Vec<String>,
}

/// The network interface of the appliance that carried a run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceSeen {
    /// The name of the interface.
    pub name: String,
    /// The speed that the driver reports, in bits per second; absent if the driver reports no speed.
    pub speed_bps: Option<u64>,
    /// Whether the interface runs in half duplex; absent if the driver reports no duplex mode.
    pub is_half_duplex: Option<bool>,
}

/// How a network interface is connected, as far as its name and its driver show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkMedium {
    /// The driver reports a speed and a duplex mode, and the name does not fit another kind of interface.
    Wired,
    /// The name is that of an interface to a wireless network (`wl…`) or to a mobile network (`ww…`).
    Wireless,
    /// The name is that of an interface to a virtual private network (`tun…`, `tap…`, `wg…`, `tailscale…`).
    Tunnel,
    /// Neither the driver nor the name shows the kind.
    Unknown,
}

impl LinkMedium {
    /// The kind of the interface in one word, for the CSV tables that other programs read.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wired => "wired",
            Self::Wireless => "wireless",
            Self::Tunnel => "vpn",
            Self::Unknown => "unknown",
        }
    }

    /// The kind of the interface in words, for readers.
    pub fn as_words(self) -> &'static str {
        match self {
            Self::Wired => "wired",
            Self::Wireless => "wireless",
            Self::Tunnel => "a virtual private network",
            Self::Unknown => "not known",
        }
    }
}

impl InterfaceSeen {
    /// Determines the kind of the interface from its name and from what its driver reports. Linux distributions give
    /// names that show the kind (systemd.net-naming-scheme(7)).
    pub fn kind(&self) -> LinkMedium {
        let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| self.name.starts_with(prefix));
        if begins(&["wl", "ww"]) {
            LinkMedium::Wireless
        } else if begins(&["tun", "tap", "wg", "tailscale"]) {
            LinkMedium::Tunnel
        } else if self.speed_bps.is_some() && self.is_half_duplex.is_some() {
            LinkMedium::Wired
        } else {
            LinkMedium::Unknown
        }
    }
}

/// The rate of one direction of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunRate {
    /// The rate at which the receiver got payload, in bits per second.
    pub bps: u64,
    /// The estimated rate on an Ethernet link, payload and headers together, in bits per second; absent without an
    /// estimate.
    pub wire_bps: Option<u64>,
    /// What limited the rate; absent if the result does not name a cause.
    pub cause: Option<LimitCause>,
    /// Whether the rate was steady.
    pub is_steady: bool,
    /// Whether datagrams carried the payload.
    pub is_datagrams: bool,
    /// The number of streams.
    pub streams: u16,
    /// The duration of the steady part, from which the rate was computed, in milliseconds.
    pub duration_ms: u64,
}

/// The latency of one phase of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunLatency {
    /// The median round trip in microseconds, if enough probes were answered.
    pub p50_us: Option<u64>,
    /// The 95th percentile of the round trips in microseconds, if enough probes were answered.
    pub p95_us: Option<u64>,
    /// How much the median round trip under load exceeded the median without load, in milliseconds, and the bufferbloat
    /// grade of this increase. Absent in the phase without load, and if the result has no grade.
    pub increase: Option<(f64, Grade)>,
    /// The direction in which the load built up a queue of packets. Absent in the phase without load, and if too few
    /// probes were answered.
    pub queue: Option<QueueSide>,
    /// Whether more than half of the queue that the load built up was in the appliance itself.
    pub is_own_queue: bool,
    /// The loss share (0 to 1) of the direction that lost more probes. If the directions are unknown, the share of
    /// probes without a reply. Absent if neither is known.
    pub loss: Option<f64>,
}

/// The probes of one monitor in one hour. A monitor is a continuous probing of one target.
#[derive(Clone, Debug, PartialEq)]
pub struct MonitorHour {
    /// The name of the monitor.
    pub monitor: String,
    /// The target that the monitor probes, as text.
    pub target: String,
    /// Whether the target is the gateway of the appliance's network.
    pub is_gateway: bool,
    /// When the hour begins.
    pub begins_at: Timestamp,
    /// The number of probes of the hour that were answered or lost.
    pub count: u64,
    /// The number of probes of the hour that were lost.
    pub lost: u64,
    /// The median round trip in microseconds, not counting replies that arrived while a test loaded the reflector.
    /// Absent if there was no other reply.
    pub p50_us: Option<u64>,
    /// The 95th percentile of the same round trips as in `p50_us`, in microseconds; absent without such a round trip.
    pub p95_us: Option<u64>,
}

/// What was unreachable during an outage, as far as the monitors show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutageExtent {
    /// The gateway was reachable, but nothing beyond the gateway.
    BeyondGateway,
    /// Nothing was reachable, not even the gateway.
    Everything,
    /// One target was not reachable, but other targets beyond the gateway were.
    Target,
    /// The gateway did not answer, but targets beyond the gateway did.
    Gateway,
    /// No other target was probed, so the extent of the outage is not known.
    Unknown,
}

/// An outage that overlaps the period of the report.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportOutage {
    /// When the outage began.
    pub began_at: Timestamp,
    /// When the outage ended; absent while the outage lasts.
    pub ended_at: Option<Timestamp>,
    /// Whether the outage ended at `ended_at`. If not, `ended_at` is when the outage was last observed.
    pub is_end_known: bool,
    /// What was unreachable during the outage.
    pub extent: OutageExtent,
    /// The monitors whose target was not reachable.
    pub failed: BTreeSet<String>,
    /// The monitors whose target was reachable throughout the outage.
    pub reachable: BTreeSet<String>,
}

impl ReportRun {
    /// What a report takes from `document`.
    pub fn of(document: &ResultDocument) -> Self {
        let reflector = document.reflector.as_ref();
        let address = reflector.map(|end| &end.address).or(document.server.as_ref().map(|end| &end.address));
        let facts = document.appliance.facts_before.as_ref();
        let interface = facts.and_then(|facts| {
            Some(InterfaceSeen {
                name: facts.interface.as_ref()?.to_string(),
                speed_bps: facts.interface_speed_bps,
                is_half_duplex: facts.interface_duplex.map(|duplex| duplex == Duplex::Half),
            })
        });
        let suspect = document.validity.as_ref().map(|validity| match validity.verdict {
            ValidityVerdict::Valid => Vec::new(),
            ValidityVerdict::Suspect => validity.reasons.iter().map(|reason| reason.code.clone()).collect(),
        });
        let latency = |load| document.latency.of(load).map(|measured| RunLatency::of(document, load, measured));
        Self {
            id: document.id,
            started_at: document.started_at,
            other_end: document.other_end().map(str::to_owned),
            address: address.cloned(),
            endpoint_id: reflector.map(|end| end.endpoint_id.to_string()),
            appliance: document.appliance.endpoint_id.to_string(),
            version: document.appliance.version.clone(),
            engine: document.engine.to_string(),
            data_mode: document.data_mode,
            interface,
            uplink: document.uplink.interface.clone(),
            public_prefix: document.uplink.public_prefix.clone(),
            is_clock_synchronised: facts.and_then(|facts| facts.clock_synchronised),
            download: document.download.as_ref().map(RunRate::of),
            upload: document.upload.as_ref().map(RunRate::of),
            idle: latency(Load::Idle),
            under_download: latency(Load::Download),
            under_upload: latency(Load::Upload),
            is_complete: document.complete && !document.interrupted,
            error: document.error.as_ref().map(|error| error.code.clone()),
            suspect,
            warnings: document.warnings.iter().map(|warning| warning.code.clone()).collect(),
        }
    }

    /// The same run without the names, addresses, Endpoint IDs and texts that a redacted report must not contain.
    pub(super) fn without_names(self) -> Self {
        Self {
            other_end: None,
            address: None,
            endpoint_id: None,
            appliance: String::new(),
            version: String::new(),
            interface: None,
            uplink: None,
            public_prefix: None,
            error: None,
            suspect: None,
            warnings: Vec::new(),
            ..self
        }
    }

    /// The rate of `direction`; `None` if the run did not measure this direction in a phase of its own.
    pub fn rate(&self, direction: Direction) -> Option<&RunRate> {
        match direction {
            Direction::Download => self.download.as_ref(),
            Direction::Upload => self.upload.as_ref(),
        }
    }

    /// Whether the other end is in the same network as the appliance: true if the address of the other end is not
    /// public, or if the other end sees the appliance at an address that is not public.
    pub fn is_local(&self) -> bool {
        let address = self.address.as_deref().and_then(address_of);
        let prefix = self.public_prefix.as_deref().and_then(|prefix| prefix.split('/').next()?.parse().ok());
        [address, prefix].into_iter().flatten().any(|address: IpAddr| !is_public(address))
    }
}

impl RunRate {
    fn of(measured: &ThroughputResult) -> Self {
        Self {
            bps: measured.goodput_bps,
            wire_bps: measured.line_rate_estimate.map(|estimate| estimate.rate_bps),
            cause: measured.limited_by.as_ref().map(|limited| limited.cause),
            is_steady: measured.is_steady(),
            is_datagrams: measured.udp.is_some(),
            streams: measured.streams,
            duration_ms: measured.duration_ms,
        }
    }
}

impl RunLatency {
    fn of(document: &ResultDocument, load: Load, measured: &LatencyResult) -> Self {
        Self {
            p50_us: measured.median_us(),
            p95_us: measured.round_trip_us(Statement::P95),
            increase: document.bufferbloat.of(load).map(|bloat| (bloat.increase_ms, bloat.grade)),
            queue: measured.queue.map(|queue| queue.stands),
            is_own_queue: measured.queue.is_some_and(|queue| queue.is_own()),
            loss: measured.worst_loss(),
        }
    }
}

/// Parses the IP address in `ADDRESS:PORT` or `ADDRESS`; `None` for a host name.
fn address_of(text: &str) -> Option<IpAddr> {
    let with_port = text.parse::<SocketAddr>().ok().map(|address| address.ip());
    with_port.or_else(|| text.trim_matches(['[', ']']).parse().ok()).map(|address| address.to_canonical())
}

/// Whether `address` is outside the ranges that a site or a provider uses internally (RFC 1918, RFC 6598, RFC 4193,
/// link-local, loopback, unspecified).
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            let is_shared = first == 100 && (64..128).contains(&second);
            !(address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || is_shared)
        }
        IpAddr::V6(address) => {
            !(address.is_unique_local()
                || address.is_unicast_link_local()
                || address.is_loopback()
                || address.is_unspecified())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::example;

    #[test]
    fn an_other_end_in_the_same_network_is_recognised() {
        let mut run = ReportRun::of(&example::full());
        run.public_prefix = None;
        for (address, is_local) in [
            ("203.0.113.7:4000", false),
            ("192.168.1.5:4000", true),
            ("[fd00::1]:4000", true),
            ("[::ffff:10.0.0.1]:4000", true),
            ("100.64.0.1:4000", true),
            ("[2001:db8::1]:4000", false),
            ("127.0.0.1", true),
            ("attic.example:4000", false),
        ] {
            run.address = Some(address.to_owned());
            assert_eq!(run.is_local(), is_local, "{address}");
        }
        run.public_prefix = Some("192.168.1.0/24".to_owned());
        assert!(run.is_local(), "the reflector saw the link from a private address");
    }

    #[test]
    fn the_kind_of_an_interface_is_claimed_only_if_something_shows_it() {
        let seen =
            |name: &str, speed_bps, is_half_duplex| InterfaceSeen { name: name.into(), speed_bps, is_half_duplex };
        for (interface, kind) in [
            (seen("eth0", Some(1_000_000_000), Some(false)), LinkMedium::Wired),
            (seen("eth0", None, None), LinkMedium::Unknown),
            (seen("wlan0", Some(866_000_000), Some(false)), LinkMedium::Wireless),
            (seen("wwp0s20", None, None), LinkMedium::Wireless),
            (seen("wg0", None, None), LinkMedium::Tunnel),
            (seen("tun0", Some(10_000_000), Some(false)), LinkMedium::Tunnel),
        ] {
            assert_eq!(interface.kind(), kind, "{interface:?}");
        }
    }

    #[test]
    fn a_run_takes_what_its_document_has() {
        let run = ReportRun::of(&example::full());
        assert_eq!((run.is_complete, run.suspect.as_deref()), (true, Some(&["not_steady".to_owned()][..])));
        let download = run.download.unwrap();
        assert_eq!((download.bps, download.cause), (941_000_000, Some(LimitCause::Network)));
        assert_eq!(run.under_upload.unwrap().queue, Some(QueueSide::Upload));
        let bare = ReportRun::of(&example::bare());
        assert_eq!((bare.suspect, bare.upload, bare.interface), (None, None, None));
    }
}
