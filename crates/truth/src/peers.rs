//! Runs iperf3, ping and irtt over the links of a scenario, and compares their reports with what the links did. With
//! side effects: runs programs.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use emulator::{Family, LinkRecord, Namespace, Scenario, Topology, Transport, WatchRule, Way, accuracy};
use paramedic_link::test_spec::{Direction, Load};

use crate::checks::{self, LOST, REORDERED, word};
use crate::observed::{self, LinkRecords, RoundTrip, way};
use crate::peer_output::{self, RoundTrips};
use crate::reading::Reading;
use crate::run::{take_records, worst_lateness_ms};

/// The watch rule for requests and replies of irtt. Their header is a magic number, flags (0 in a request, 2 in a
/// reply), a token and the sequence number. Packets that open or close a session have other flags, and do not match.
const IRTT: WatchRule = WatchRule {
    transport: Transport::Udp,
    port: Some(2112),
    payload_len: None,
    prefixes: &[&[0x14, 0xa7, 0x5b, 0], &[0x14, 0xa7, 0x5b, 2]],
    id_at: 12,
    is_load: false,
};

/// The watch rules of the links while other programs run. [`PING_RULE`] and [`IRTT_RULE`] are indices of this array.
const RULES: [WatchRule; 2] = [WatchRule::PING, IRTT];
const PING_RULE: usize = 0;
const IRTT_RULE: usize = 1;

/// The programs that are compared with ours, each with the Debian package that provides it.
const PROGRAMS: [(&str, &str); 3] = [("iperf3", "iperf3"), ("ping", "iputils-ping"), ("irtt", "irtt")];

/// The duration of iperf3's TCP load in seconds. In the test matrix, the TCP runs of our programs take as long in each
/// direction.
const SECONDS: u64 = 5;

/// A server process that is killed on drop.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The result of running iperf3, ping and irtt in one cell of the test matrix.
#[derive(Debug)]
pub(crate) struct PeerRun {
    pub(crate) programs: Vec<String>,
    pub(crate) readings: Vec<Reading>,
    pub(crate) fault: Option<String>,
    pub(crate) worst_lateness_ms: f64,
}

/// Lists which of iperf3, ping and irtt are not installed, each with the Debian package that provides it.
pub(crate) fn missing() -> Vec<String> {
    let is_missing = |name: &&(&str, &str)| version(name.0).is_none();
    PROGRAMS.iter().filter(is_missing).map(|(name, package)| format!("{name} (Debian: {package})")).collect()
}

/// The first line that the program prints about its version; `None` if it is not installed.
fn version(program: &str) -> Option<String> {
    let flag = match program {
        "iperf3" => "--version",
        "ping" => "-V",
        _ => "version",
    };
    let output = Command::new(program).arg(flag).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(|line| line.replace("ping from ", ""))
}

/// Runs iperf3, ping and irtt, as far as they are installed, over the links of a scenario.
pub(crate) fn run(scenario: &Scenario, seed: u64) -> anyhow::Result<PeerRun> {
    let topology = Topology::new(&scenario.hops, seed, &RULES)?;
    let peers = Peers { topology: &topology, scenario, to: topology.reflector_address(scenario.family).to_string() };
    let mut done = PeerRun {
        programs: PROGRAMS.iter().filter_map(|(name, _)| version(name)).collect(),
        readings: vec![],
        fault: None,
        worst_lateness_ms: 0.0,
    };
    let overrun = topology.overrun()?;
    let _iperf3 = peers.server("iperf3", &["-s"])?;
    let _irtt = peers.server("irtt", &["server", "-i", "0"])?;
    let mut add = |(readings, links): (Vec<Reading>, LinkRecords)| {
        let fault = accuracy::fault(links.iter().flatten(), 0);
        done.fault = done.fault.take().or(fault);
        done.worst_lateness_ms = done.worst_lateness_ms.max(worst_lateness_ms(&links));
        done.readings.extend(readings);
    };
    let idle = peers.idle()?;
    let round_trip = idle_round_trip(&idle.1);
    add(idle);
    for direction in [Direction::Download, Direction::Upload] {
        add(peers.loaded(direction, round_trip)?);
        if let Some(mbit) = scenario.udp_mbit {
            add(peers.datagrams(direction, mbit)?);
        }
    }
    let overrun = topology.overrun()? - overrun;
    done.fault = done.fault.or_else(|| accuracy::fault([], overrun));
    Ok(done)
}

struct Peers<'a> {
    topology: &'a Topology,
    scenario: &'a Scenario,
    /// The address of the reflector's host.
    to: String,
}

impl Peers<'_> {
    /// Starts a server on the reflector's host; `None` if the program is not installed.
    fn server(&self, program: &str, args: &[&str]) -> anyhow::Result<Option<Server>> {
        if version(program).is_none() {
            return Ok(None);
        }
        let host = self.topology.reflector();
        let mut child = host.command(program, args);
        let child = child
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        let server = Server(child);
        match program {
            "irtt" => await_port(host, "-Huln", 2112)?,
            _ => await_port(host, "-Htln", 5201)?,
        }
        Ok(Some(server))
    }

    /// Starts ping and irtt, as far as they are installed, for this many seconds. Each child comes with the index of
    /// its watch rule and its name.
    fn probe(&self, seconds: f64) -> anyhow::Result<Vec<(usize, &'static str, Child)>> {
        let count = format!("{}", (seconds * 50.0) as u32);
        let wait = format!("{}", (self.scenario.round_trip_ms() / 1e3 + 2.0).ceil());
        let duration = format!("{}ms", (seconds * 1e3) as u32);
        let (family, irtt_server) = match self.scenario.family {
            Family::Ipv4 => ("-4", self.to.clone()),
            // irtt appends a port to the address.
            Family::Ipv6 => ("-6", format!("[{}]", self.to)),
        };
        let all: [(usize, &str, Vec<&str>); 2] = [
            (PING_RULE, "ping", vec![family, "-n", "-i", "0.02", "-W", &wait, "-c", &count, &self.to]),
            (IRTT_RULE, "irtt", vec!["client", family, "-i", "20ms", "-d", &duration, "-Q", "-o", "-", &irtt_server]),
        ];
        let mut started = Vec::new();
        for (rule, program, args) in all {
            if version(program).is_none() {
                continue;
            }
            let mut command = self.topology.appliance().command(program, &args);
            let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
            started.push((rule, program, child.with_context(|| format!("cannot run {program}"))?));
        }
        Ok(started)
    }

    fn idle(&self) -> anyhow::Result<(Vec<Reading>, LinkRecords)> {
        drop(take_records(self.topology));
        let said = round_trips(self.probe(3.0)?);
        settle();
        let links = take_records(self.topology);
        let mut readings = Vec::new();
        for (rule, by, said) in said {
            let truth = observed::latency(Load::Idle, &observed::round_trips(&links, rule));
            readings.extend(truth.p50_ms.map(|truth| checks::idle(by, said.median_ms, truth)));
            let share = 1.0 - said.received as f64 / said.sent.max(1) as f64;
            readings.push(checks::loss("both ways", by, share, truth.lost_up + truth.lost_down, truth.sent));
            if let Some([up, down]) = said.lost_ways {
                readings.push(checks::loss("upload", by, up / 100.0, truth.lost_up, truth.sent));
                let reached = truth.sent - truth.lost_up;
                readings.push(checks::loss("download", by, down / 100.0, truth.lost_down, reached));
            }
        }
        Ok((readings, links))
    }

    fn iperf3(&self, direction: Direction, args: &[&str]) -> anyhow::Result<Option<Child>> {
        if version("iperf3").is_none() {
            return Ok(None);
        }
        let reverse: &[&str] = if direction == Direction::Download { &["-R"] } else { &[] };
        let args = [&["-c", &self.to, "-J"], reverse, args].concat();
        let mut command = self.topology.appliance().command("iperf3", &args);
        Ok(Some(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("cannot run iperf3")?))
    }

    fn loaded(&self, direction: Direction, round_trip: Duration) -> anyhow::Result<(Vec<Reading>, LinkRecords)> {
        drop(take_records(self.topology));
        let seconds = SECONDS.to_string();
        let load = self.iperf3(direction, &["-t", &seconds, "-P", "4"])?;
        // Wait until the load has filled the queue.
        std::thread::sleep(Duration::from_millis(1500));
        let said = round_trips(self.probe(3.0)?);
        let load = load.map(output).transpose()?;
        settle();
        let links = take_records(self.topology);
        let mut readings = Vec::new();
        if let Some(load) = load {
            let said = peer_output::iperf3_tcp(&load)?;
            if let Some(truth) = delivered_bps(&links, direction, said.seconds, round_trip) {
                readings.push(checks::throughput(word(direction), "iperf3", said.received_bps, truth));
            }
        }
        for (rule, by, said) in said {
            let trips: Vec<RoundTrip> = observed::round_trips(&links, rule);
            let truth = observed::latency(Load::Download, &trips).p50_ms;
            readings.extend(truth.map(|truth| checks::loaded(word(direction), by, said.median_ms, truth)));
        }
        Ok((readings, links))
    }

    fn datagrams(&self, direction: Direction, mbit: f64) -> anyhow::Result<(Vec<Reading>, LinkRecords)> {
        drop(take_records(self.topology));
        let rate = format!("{mbit}M");
        let load = self.iperf3(direction, &["-u", "-b", &rate, "-l", "1400", "-t", "3"])?;
        let load = load.map(output).transpose()?;
        settle();
        let links = take_records(self.topology);
        let mut readings = Vec::new();
        if let (Some(load), Some(truth)) = (load, observed::datagrams_of_flows(&links, way(direction))) {
            let said = peer_output::iperf3_udp(&load)?;
            let what = word(direction);
            let exact =
                |check, said: u64, truth: u64| checks::reading(check, what, "iperf3", [said as f64, truth as f64], 0.0);
            readings.push(exact(LOST, said.lost, truth.dropped));
            readings.extend(said.out_of_order.map(|said| exact(REORDERED, said, truth.reordered)));
        }
        Ok((readings, links))
    }
}

/// The median time that the links of an idle path took for a probe of ping and its reply; zero without such probes.
fn idle_round_trip(links: &LinkRecords) -> Duration {
    let median = observed::latency(Load::Idle, &observed::round_trips(links, PING_RULE)).p50_ms;
    Duration::from_secs_f64(median.unwrap_or(0.0) / 1e3)
}

fn settle() {
    std::thread::sleep(Duration::from_millis(700));
}

/// Waits until a server listens on a port; fails after about 2 s. `sockets` are the flags of ss(8) that select the
/// protocol.
pub(crate) fn await_port(host: &Namespace, sockets: &str, port: u16) -> anyhow::Result<()> {
    let filter = format!("sport = :{port}");
    for _ in 0..100 {
        if !host.run(&["ss", sockets, &filter])?.trim().is_empty() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("no program listens on port {port} after 2 s")
}

fn output(child: Child) -> anyhow::Result<String> {
    Ok(String::from_utf8_lossy(&child.wait_with_output()?.stdout).into_owned())
}

/// Waits for ping and irtt to end, and parses the round trips that they report. Leaves out a program that reports none.
fn round_trips(started: Vec<(usize, &'static str, Child)>) -> Vec<(usize, &'static str, RoundTrips)> {
    let read = |(rule, program, child)| {
        let text = output(child).ok()?;
        let read = if program == "ping" { peer_output::ping(&text) } else { peer_output::irtt(&text) };
        read.inspect_err(|error| eprintln!("    {program}: {error:#}")).ok().map(|read| (rule, program, read))
    };
    started.into_iter().filter_map(read).collect()
}

/// The rate at which the last link delivered TCP payload, in bit/s, for this many seconds from the time at which iperf3
/// began to count. `round_trip` is the round trip of the idle path. `None` if no load was delivered.
fn delivered_bps(links: &LinkRecords, direction: Direction, seconds: f64, round_trip: Duration) -> Option<f64> {
    let last = match way(direction) {
        Way::Up => links.last()?,
        Way::Down => links.first()?,
    };
    let record: &LinkRecord = &last[way(direction) as usize];
    // The receiver counts its time. For an upload that is the server, which begins as it sends the message that lets the
    // client begin; the first payload arrives a round trip later.
    let from = match direction {
        Direction::Upload => begin_of_load(record)?.saturating_sub(round_trip),
        Direction::Download => begin_of_load(record)?,
    };
    let until = from + Duration::from_secs_f64(seconds);
    Some(record.between(from, until).tcp_payload as f64 * 8.0 / seconds)
}

/// When a link delivered the first payload of iperf3's load; `None` without load. Ignores flows that carry less than a
/// twentieth of the payload, such as iperf3's control connection.
fn begin_of_load(record: &LinkRecord) -> Option<Duration> {
    const LEAST_PART: u64 = 20;
    let flows = || record.flows.iter().filter(|(key, _)| key.transport == Transport::Tcp).map(|(_, flow)| flow);
    let all = flows().map(|flow| flow.payload_bytes).sum::<u64>();
    flows().filter(|flow| flow.payload_bytes >= all / LEAST_PART).filter_map(|flow| flow.load_began).min()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use emulator::{BIN, Bin, FlowKey, FlowRecord};

    use super::*;

    fn flow(port: u16, payload_bytes: u64, began_ms: u64) -> (FlowKey, FlowRecord) {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let key = FlowKey {
            transport: Transport::Tcp,
            source: address,
            destination: address,
            source_port: port,
            destination_port: 5201,
        };
        let mut record = FlowRecord::default();
        record.payload_bytes = payload_bytes;
        record.load_began = Some(Duration::from_millis(began_ms));
        (key, record)
    }

    #[test]
    fn an_upload_is_counted_from_a_round_trip_before_its_first_payload() {
        let mut record = LinkRecord::new(vec![]);
        // The control connection at 300 ms, then a second of load on two streams.
        record.flows = [flow(1, 900, 300), flow(2, 600_000, 1310), flow(3, 650_000, 1301)].into();
        record.bins.resize(1301, Bin::default());
        record.bins.resize(2301, Bin { tcp_payload: 1250, ..Bin::default() });
        assert_eq!(begin_of_load(&record), Some(BIN * 1301));
        let round_trip = Duration::from_millis(100);
        let other = LinkRecord::new(vec![]);
        let links = vec![[record.clone(), other.clone()]];
        assert_eq!(delivered_bps(&links, Direction::Upload, 1.0, round_trip), Some(0.9e7));
        let links = vec![[other, record]];
        assert_eq!(delivered_bps(&links, Direction::Download, 1.0, round_trip), Some(1e7));
    }
}
