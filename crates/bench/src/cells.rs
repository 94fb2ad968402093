//! The cells of the benchmark. A cell compares our programs with iperf3 for one kind of transfer, and builds the
//! command lines of both. Pure: this module runs no program.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The link between both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Link {
    /// The loopback interface, MTU 65536.
    Loopback,
    /// Two network namespaces, joined by a veth pair with MTU 1500.
    #[value(name = "veth-1500")]
    #[serde(rename = "veth-1500")]
    Veth1500,
    /// Two network namespaces, joined by a veth pair with MTU 9000.
    #[value(name = "veth-9000")]
    #[serde(rename = "veth-9000")]
    Veth9000,
}

impl Link {
    /// The MTU of the veth pair; `None` for loopback.
    pub(crate) fn veth_mtu(self) -> Option<u32> {
        match self {
            Self::Loopback => None,
            Self::Veth1500 => Some(1500),
            Self::Veth9000 => Some(9000),
        }
    }
}

/// The engine of this project's programs, which generates their load in a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Engine {
    /// Parallel TCP streams.
    Tcp,
    /// UDP datagrams.
    Udp,
    /// A real iperf3, which the reflector and the appliance run.
    Iperf3,
}

/// How test data travels between this project's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// In clear text, through temporary ports of the reflector's range.
    Direct,
    /// Inside TLS, through the control port.
    Tunneled,
}

/// The direction of the payload, from the client's view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    /// Towards the client.
    Download,
    /// Away from the client.
    Upload,
    /// Both directions at once; the rate is the sum.
    Both,
}

macro_rules! display_as_value {
    ($($kind:ty),*) => {$(
        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // The value always has a name, because no variant is hidden from the command line.
                f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
            }
        }
    )*};
}
display_as_value!(Link, Engine, Mode, Direction);

/// A group of cells (comparisons with iperf3) that the results page shows together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Group {
    /// Our TCP engine in direct mode on loopback, with cubic.
    Direct,
    /// Our TCP engine in direct mode on loopback, with bbr.
    DirectBbr,
    /// Our TCP engine in direct mode on loopback. Both ends copy every byte between program and kernel.
    Plain,
    /// Our TCP engine in tunneled mode, that is, through TLS.
    Tunneled,
    /// Our engine `iperf3` (iperf3 behind a reflector), compared with iperf3 alone.
    Lane,
    /// TCP on a veth pair with MTU 1500.
    Veth1500,
    /// TCP on a veth pair with MTU 9000.
    Veth9000,
    /// Our UDP engine.
    Udp,
    /// TCP, compared with a second iperf3 that runs with its fastest options.
    Other,
    /// The single comparison that `bench one` runs with the user's options.
    One,
}

impl Group {
    /// All groups, in the order in which the page shows them.
    pub(crate) const ALL: [Self; 10] = [
        Self::Direct,
        Self::DirectBbr,
        Self::Plain,
        Self::Tunneled,
        Self::Lane,
        Self::Veth1500,
        Self::Veth9000,
        Self::Udp,
        Self::Other,
        Self::One,
    ];

    /// The name of the group in file names.
    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::DirectBbr => "direct-bbr",
            Self::Plain => "plain",
            Self::Tunneled => "tunneled",
            Self::Lane => "lane",
            Self::Veth1500 => "veth-1500",
            Self::Veth9000 => "veth-9000",
            Self::Udp => "udp",
            Self::Other => "other",
            Self::One => "one",
        }
    }

    /// The heading of the group on the page.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Direct => "TCP, direct, loopback, cubic",
            Self::DirectBbr => "TCP, direct, loopback, bbr",
            Self::Plain => "TCP, direct, every byte copied",
            Self::Tunneled => "TCP, tunneled (TLS 1.3), beside iperf3 in clear text",
            Self::Lane => "The iperf3 lane beside plain iperf3, 4 streams",
            Self::Veth1500 => "TCP over a veth pair, MTU 1500",
            Self::Veth9000 => "TCP over a veth pair, MTU 9000",
            Self::Udp => "UDP, no rate asked for",
            Self::Other => "TCP, direct, beside another iperf3 at its best",
            Self::One => "One cell",
        }
    }

    /// The text on the page that explains the group.
    pub(crate) fn note(self) -> &'static str {
        match self {
            Self::Direct | Self::DirectBbr => {
                "Our fastest way: the sender gives pages to its kernel by reference, the receiver throws bytes away in \
                 its own, so no payload is copied at either end. iperf3 as it comes copies at both."
            }
            Self::Plain => {
                "`--data-path plain`: our sender copies from the program, our receiver copies to it, as iperf3 does."
            }
            Self::Tunneled => {
                "Ours encrypts and authenticates every byte; iperf3 has no such mode and runs in clear text."
            }
            Self::Lane => {
                "Both figures are iperf3's own sum of what was received: what the reflector's keys, door and sandbox cost. \
                 Where the scheduler puts the two ends decides more than that, and it decides anew in each run; pinned: \
                 both sides' servers are held to one processor and their clients to another, so that the sides are \
                 compared and not the scheduler. An iperf3 that receives on loopback keeps up, and copies from the cache, or \
                 has fallen behind, copies from memory, and can't catch up: with 60 to 80 Gbit/s or with 30. It changes \
                 between both by chance, so the interval of few pairs is wide: `--only pinned --pairs 40` says more."
            }
            Self::Veth1500 | Self::Veth9000 => {
                "Packets of a veth pair are not split into segments of the MTU unless something asks for it: a real \
                 card does more work a byte than this."
            }
            Self::Udp => {
                "Our rate is the highest whose loss stays at or below 1 %; iperf3 sends as fast as it can, and its rate \
                 is what it received, whatever was lost. Batches of datagrams are never split on loopback and veth: \
                 packets a second here say nothing of a card."
            }
            Self::Other => {
                "The other iperf3 with 2 streams, blocks of 256 KiB, and `--skip-rx-copy` where it knows it; ours with \
                 2, 3 and 4 streams."
            }
            Self::One => "Asked for by hand.",
        }
    }
}

/// The settings of our side of a cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ours {
    /// The engine that generates our load.
    pub(crate) engine: Engine,
    /// How the data of our side travels.
    pub(crate) mode: Mode,
    /// The number of streams in each direction.
    pub(crate) streams: u16,
    /// Whether this project's programs copy every byte. If false, they choose the fastest way, such as zero copy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) plain: bool,
}

/// The settings of iperf3's side of a cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Theirs {
    /// Whether the program is the iperf3 of the option `--iperf3` instead of the iperf3 in `PATH`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) other: bool,
    /// The number of streams in each direction.
    pub(crate) streams: u16,
    /// Further options of the iperf3 client.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) options: Vec<String>,
}

/// A cell: one comparison of our programs with iperf3.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cell {
    /// The unique name of the cell. The option `--only` searches in it.
    pub(crate) name: String,
    /// The group in which the page shows the cell.
    pub(crate) group: Group,
    /// The link between both ends of the cell.
    pub(crate) link: Link,
    /// The direction of the payload.
    pub(crate) direction: Direction,
    /// The TCP congestion control of both sides; absent: the kernel's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) congestion: Option<String>,
    /// The payload of each datagram in bytes; absent with TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) payload: Option<u32>,
    /// The settings of our side.
    pub(crate) ours: Ours,
    /// The settings of iperf3's side.
    pub(crate) theirs: Theirs,
    /// The duration of a phase in seconds.
    pub(crate) seconds: u32,
    /// Whether the servers of both sides are pinned to one processor, and their clients to another.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) pinned: bool,
}

impl Cell {
    fn new(group: Group, link: Link, ours: Ours, direction: Direction, load: Load, seconds: u32) -> Self {
        let plain = if ours.plain { "/plain" } else { "" };
        let (congestion, payload) = match load {
            Load::Tcp(congestion) => (congestion, None),
            Load::Udp(payload) => (None, Some(payload)),
        };
        let last = payload.map(|bytes| bytes.to_string()).or(congestion.clone()).unwrap_or_else(|| "default".into());
        let Ours { engine, mode, streams, .. } = ours;
        Self {
            name: format!("{link}/{engine}/{mode}/{streams}/{direction}/{last}{plain}"),
            theirs: Theirs { other: false, streams: ours.streams, options: vec![] },
            group,
            link,
            direction,
            congestion,
            payload,
            ours,
            seconds,
            pinned: false,
        }
    }

    /// Pins the servers of both sides to one processor, and their clients to another.
    pub(crate) fn pinned(mut self) -> Self {
        self.name.push_str("/pinned");
        self.pinned = true;
        self
    }

    /// Creates the cell that the user described on the command line.
    pub(crate) fn by_hand(link: Link, ours: Ours, direction: Direction, load: Load, seconds: u32) -> Self {
        Self::new(Group::One, link, ours, direction, load, seconds)
    }

    /// Makes the cell compare with the iperf3 of the option `--iperf3` instead of the iperf3 in `PATH`. That second
    /// iperf3 runs with these options and 2 streams.
    fn beside_other(mut self, options: Vec<String>) -> Self {
        self.name.push_str("/other");
        self.theirs = Theirs { other: true, streams: 2, options };
        self
    }

    /// Whether a datagram of the cell exceeds the MTU of the link.
    fn needs_fragments(&self) -> bool {
        // Add 20 bytes for the header of IPv4 and 8 for that of UDP.
        self.payload.zip(self.link.veth_mtu()).is_some_and(|(payload, mtu)| payload + 28 > mtu)
    }

    /// The arguments of `packetparamedic` for our side.
    pub(crate) fn our_arguments(&self) -> Vec<String> {
        let Ours { engine, mode, streams, plain } = &self.ours;
        let line = format!(
            "speed-test --json --data-mode {mode} -P {streams} -t {} --idle 0 --probe-interval 0",
            self.seconds
        );
        let mut arguments = line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        arguments.push(match self.direction {
            Direction::Download => "--download".to_owned(),
            Direction::Upload => "--upload".to_owned(),
            Direction::Both => "--bidir".to_owned(),
        });
        match (engine, self.payload) {
            (Engine::Udp, payload) => {
                arguments.extend(["-u", "-b", "0"].map(str::to_owned));
                arguments.extend(payload.iter().flat_map(|bytes| ["-l".to_owned(), bytes.to_string()]));
            }
            (engine, _) => arguments.extend(["--engine".to_owned(), engine.to_string()]),
        }
        if self.needs_fragments() {
            arguments.push("--fragments".to_owned());
        }
        arguments.extend(self.congestion.iter().flat_map(|name| ["-C".to_owned(), name.clone()]));
        if *plain {
            arguments.extend(["--data-path", "plain"].map(str::to_owned));
        }
        if *engine == Engine::Iperf3 {
            arguments.push("--raw".to_owned());
        }
        arguments
    }

    /// The arguments of the `iperf3` client for the other side, with a server at `address`.
    pub(crate) fn their_arguments(&self, address: &str, port: u16) -> Vec<String> {
        let Theirs { streams, options, .. } = &self.theirs;
        let line = format!("--client {address} --port {port} --json --parallel {streams} --time {}", self.seconds);
        let mut arguments = line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        arguments.extend(match self.direction {
            Direction::Download => Some("--reverse".to_owned()),
            Direction::Upload => None,
            Direction::Both => Some("--bidir".to_owned()),
        });
        if self.ours.engine == Engine::Udp {
            arguments.extend(["--udp", "--bitrate", "0"].map(str::to_owned));
            arguments.extend(self.payload.iter().flat_map(|bytes| ["--length".to_owned(), bytes.to_string()]));
        }
        arguments.extend(self.congestion.iter().flat_map(|name| ["--congestion".to_owned(), name.clone()]));
        arguments.extend(options.iter().cloned());
        arguments
    }

    /// A description of the cell for a table or a plot: only what differs within its group.
    pub(crate) fn label(&self) -> String {
        let streams = match self.ours.streams {
            1 => "1 stream".to_owned(),
            streams => format!("{streams} streams"),
        };
        let direction = self.direction;
        match self.group {
            Group::Udp => {
                let payload = self.payload.unwrap_or_default();
                format!("{payload} bytes, {direction}, {}", self.link)
            }
            Group::Direct | Group::DirectBbr | Group::Plain => format!("{streams}, {direction}"),
            Group::Lane => {
                let congestion = self.congestion.as_deref().unwrap_or("default");
                let pinned = if self.pinned { ", pinned" } else { "" };
                format!("{direction}, {congestion}{pinned}")
            }
            Group::One => self.name.clone(),
            _ => {
                let is_said = self.group == Group::Tunneled;
                let mode = if self.ours.mode == Mode::Tunneled && !is_said { ", TLS" } else { "" };
                let congestion = self.congestion.as_deref().unwrap_or("default");
                format!("{streams}, {direction}, {congestion}{mode}")
            }
        }
    }

    /// The approximate time that `pairs` pairs of runs of the cell take.
    pub(crate) fn expected(&self, pairs: u32) -> Duration {
        // With "both", our side has a phase of each direction before that of both.
        let phases = if self.direction == Direction::Both { 3 } else { 1 };
        // The time to start, connect and end, for both sides together.
        const BESIDE: Duration = Duration::from_millis(600);
        pairs * (BESIDE + Duration::from_secs(u64::from(self.seconds * (1 + phases))))
    }
}

/// The load of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// TCP streams with this congestion control; absent: the kernel's default.
    Tcp(Option<String>),
    /// Datagrams with this payload in bytes.
    Udp(u32),
}

/// All cells of a run, in the order in which they run. `other` holds the options of the second iperf3, if there is one.
pub(crate) fn plan(quick: bool, seconds: u32, other: Option<&[String]>) -> Vec<Cell> {
    use Direction::{Both, Download, Upload};
    use Engine::{Iperf3, Tcp, Udp};
    use Link::{Loopback, Veth1500, Veth9000};
    use Mode::{Direct, Tunneled};
    let mut cells = Vec::new();
    // Adds a cell for each direction and each number of streams. With `--quick`, only those marked `brief` are added.
    let mut tcp = |group,
                   link,
                   (engine, mode, plain),
                   streams: &[u16],
                   directions: &[Direction],
                   congestion: &str,
                   brief: bool| {
        if quick && !brief {
            return;
        }
        for direction in directions {
            for streams in streams {
                let ours = Ours { engine, mode, streams: *streams, plain };
                let load = Load::Tcp(Some(congestion.to_owned()));
                cells.push(Cell::new(group, link, ours, *direction, load, seconds));
            }
        }
    };
    let fast = (Tcp, Direct, false);
    let tunnel = (Tcp, Tunneled, false);
    if quick {
        tcp(Group::Direct, Loopback, fast, &[1, 4], &[Download, Upload], "cubic", true);
    } else {
        tcp(Group::Direct, Loopback, fast, &[1, 2, 4, 8], &[Download, Upload, Both], "cubic", false);
    }
    tcp(Group::DirectBbr, Loopback, fast, &[1, 4], &[Download, Upload], "bbr", false);
    tcp(Group::Plain, Loopback, (Tcp, Direct, true), &[4], &[Download], "cubic", true);
    tcp(Group::Plain, Loopback, (Tcp, Direct, true), &[4], &[Upload], "cubic", false);
    tcp(Group::Tunneled, Loopback, tunnel, &[4], &[Download], "bbr", true);
    tcp(Group::Tunneled, Loopback, tunnel, &[4], &[Upload, Both], "bbr", false);
    tcp(Group::Tunneled, Loopback, tunnel, &[1], &[Download, Upload], "bbr", false);
    tcp(Group::Tunneled, Loopback, tunnel, &[4], &[Download], "cubic", false);
    tcp(Group::Lane, Loopback, (Iperf3, Direct, false), &[4], &[Download, Upload], "cubic", false);
    for (group, link) in [(Group::Veth1500, Veth1500), (Group::Veth9000, Veth9000)] {
        tcp(group, link, fast, &[4], &[Download], "cubic", true);
        tcp(group, link, fast, &[1], &[Download, Upload], "cubic", false);
        tcp(group, link, fast, &[4], &[Upload, Both], "cubic", false);
        tcp(group, link, fast, &[4], &[Download], "bbr", false);
        tcp(group, link, tunnel, &[4], &[Download], "cubic", false);
    }
    for congestion in ["bbr", "cubic"] {
        for direction in [Download, Upload] {
            if quick && congestion == "bbr" {
                continue;
            }
            let ours = Ours { engine: Iperf3, mode: Direct, streams: 4, plain: false };
            let load = Load::Tcp(Some(congestion.to_owned()));
            let seconds = seconds.max(LANE_SECONDS);
            cells.push(Cell::new(Group::Lane, Loopback, ours, direction, load, seconds).pinned());
        }
    }
    let datagrams = [
        (Loopback, Download, 200, false),
        (Loopback, Download, 1400, true),
        (Loopback, Upload, 1400, false),
        (Loopback, Download, 8900, false),
        (Loopback, Download, 65_507, false),
        (Veth1500, Download, 200, false),
        (Veth1500, Download, 1400, false),
        (Veth9000, Download, 8900, false),
        (Veth9000, Download, 65_507, false),
    ];
    for (link, direction, payload, brief) in datagrams {
        if brief || !quick {
            let ours = Ours { engine: Udp, mode: Direct, streams: 1, plain: false };
            cells.push(Cell::new(Group::Udp, link, ours, direction, Load::Udp(payload), seconds.max(UDP_SECONDS)));
        }
    }
    if let Some(options) = other {
        let streams: &[u16] = if quick { &[2, 4] } else { &[2, 3, 4] };
        for streams in streams {
            let ours = Ours { engine: Tcp, mode: Direct, streams: *streams, plain: false };
            let load = Load::Tcp(Some("cubic".to_owned()));
            cells.push(Cell::new(Group::Other, Loopback, ours, Download, load, seconds).beside_other(options.to_vec()));
        }
    }
    cells
}

/// The minimum duration of a phase with datagrams, in seconds: the search for the highest rate with little loss must
/// end well within it.
const UDP_SECONDS: u32 = 3;

/// The minimum duration of a phase in pinned cells of the group [`Group::Lane`], in seconds: they are compared with a
/// precision of 1 %, which needs more time.
const LANE_SECONDS: u32 = 2;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(cells: &[Cell]) -> BTreeSet<&str> {
        cells.iter().map(|cell| cell.name.as_str()).collect()
    }

    fn cell(name: &str) -> Cell {
        let cells = plan(false, 1, Some(&["--skip-rx-copy".to_owned()]));
        cells.into_iter().find(|cell| cell.name == name).unwrap_or_else(|| panic!("no {name}"))
    }

    #[test]
    fn every_cell_has_a_name_of_its_own_and_the_quick_ones_are_among_them() {
        let options = ["-l".to_owned(), "256K".to_owned()];
        let all = plan(false, 1, Some(&options));
        assert_eq!(names(&all).len(), all.len());
        let quick = plan(true, 1, Some(&options));
        assert!(quick.len() < all.len() / 2);
        assert!(names(&quick).is_subset(&names(&all)));
    }

    #[test]
    fn a_full_run_takes_half_an_hour_and_a_quick_one_less_than_three_minutes() {
        let expected = |quick, pairs| plan(quick, 1, None).iter().map(|cell| cell.expected(pairs)).sum::<Duration>();
        assert!(expected(false, 10) < Duration::from_secs(33 * 60), "{:?}", expected(false, 10));
        assert!(expected(true, 3) < Duration::from_secs(130), "{:?}", expected(true, 3));
    }

    #[test]
    fn both_sides_are_asked_the_same() {
        let tcp = cell("loopback/tcp/direct/4/download/cubic");
        assert_eq!(
            tcp.our_arguments().join(" "),
            "speed-test --json --data-mode direct -P 4 -t 1 --idle 0 --probe-interval 0 --download --engine tcp -C cubic"
        );
        assert_eq!(
            tcp.their_arguments("127.0.0.1", 5201).join(" "),
            "--client 127.0.0.1 --port 5201 --json --parallel 4 --time 1 --reverse --congestion cubic"
        );
        let both = cell("loopback/tcp/tunneled/4/both/bbr");
        assert!(both.our_arguments().contains(&"--bidir".to_owned()));
        assert!(both.their_arguments("::1", 1).contains(&"--bidir".to_owned()));
    }

    #[test]
    fn datagrams_are_as_large_at_both_sides_and_fragments_are_asked_for_where_they_are_needed() {
        let udp = cell("loopback/udp/direct/1/download/65507");
        assert!(udp.our_arguments().join(" ").ends_with("--download -u -b 0 -l 65507"));
        assert!(udp.their_arguments("::1", 1).join(" ").ends_with("--reverse --udp --bitrate 0 --length 65507"));
        let large = cell("veth-9000/udp/direct/1/download/65507");
        assert_eq!(large.our_arguments().last().map(String::as_str), Some("--fragments"));
        assert!(!cell("veth-9000/udp/direct/1/download/8900").our_arguments().contains(&"--fragments".to_owned()));
    }

    #[test]
    fn labels_are_short_enough_for_a_plot() {
        for cell in plan(false, 1, Some(&[])) {
            assert!(cell.label().chars().count() <= 33, "{}", cell.label());
        }
    }

    #[test]
    fn the_other_iperf3_has_its_best_streams_and_options() {
        let other = cell("loopback/tcp/direct/4/download/cubic/other");
        assert!(other.theirs.other);
        let arguments = other.their_arguments("127.0.0.1", 5201).join(" ");
        assert!(arguments.contains("--parallel 2") && arguments.ends_with("--skip-rx-copy"), "{arguments}");
    }
}
