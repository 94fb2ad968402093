//! Runs both real programs over the links of a scenario. With side effects: starts processes, waits and reads clocks.

use std::time::Duration;

use anyhow::{Context, bail};
use emulator::{Family, LinkRecord, Scenario, Topology, Way, accuracy};
use lab::{Appliance, Reflector, event};
use paramedic_link::test_spec::Load;
use paramedic_report::document::{Event, ResultDocument};

use crate::observed::{LinkRecords, Observed};
use crate::record::Run;
use crate::watched::{REFLECTOR_PORT, RULES};

/// How long a running speed test may take to print its next line.
const LINE_TIMEOUT: Duration = Duration::from_secs(90);

/// How long to wait after a run, so that the links also record the packets that are still in a queue.
const SETTLING: Duration = Duration::from_millis(1500);

/// A paired appliance and reflector, which run at the ends of a path of emulated links.
#[derive(Debug)]
pub struct Bed {
    /// The hosts and links of the path between appliance and reflector.
    pub topology: Topology,
    appliance: Appliance,
    reflector: Reflector,
    scenario: Scenario,
}

/// A completed run with the records of its links, and the reason to discard it, if there is one.
#[derive(Debug)]
pub struct Finished {
    /// The result of the run, and what the links did.
    pub run: Run,
    /// The records of the links during the run.
    pub links: LinkRecords,
    /// Why the run must be discarded, such as a link that was late or a test that did not complete; `None` if the run
    /// is valid.
    pub fault: Option<String>,
}

impl Bed {
    /// Starts an appliance and a reflector at the ends of the scenario's path, and pairs them.
    pub fn new(scenario: &Scenario, seed: u64) -> anyhow::Result<Self> {
        let topology = Topology::new(&scenario.hops, seed, &RULES)?;
        let any = if scenario.family == Family::Ipv4 { "0.0.0.0" } else { "[::]" };
        let environment = [("MODE", "direct_ephemeral")];
        let listen = format!("{any}:{REFLECTOR_PORT}");
        let reflector = Reflector::serve_on(&[&listen], Some(topology.reflector().name()), &environment);
        let address = std::net::SocketAddr::new(topology.reflector_address(scenario.family), REFLECTOR_PORT);
        let appliance = Appliance::in_netns(topology.appliance().name()).pair(&reflector, &address.to_string());
        Ok(Self { topology, appliance, reflector, scenario: scenario.clone() })
    }

    /// Runs a speed test in direct mode with these additional arguments, and takes the records of the links.
    pub fn speed_test(&self, args: &[&str]) -> anyhow::Result<Finished> {
        let (overrun, unread) = (self.topology.overrun()?, self.unread()?);
        self.forget();
        let mut phases = Vec::new();
        let mut running =
            self.appliance.start(&[&["speed-test", "--json-stream", "--data-mode", "direct"], args].concat());
        let document = loop {
            let line = running.line(LINE_TIMEOUT).with_context(|| format!("{args:?}\n{}", self.reflector.log()))?;
            match event(&line) {
                Event::Phase(begun) => {
                    let now = self.topology.links.first().map(emulator::Link::now).unwrap_or_default();
                    phases.push((begun.phase, now, Duration::from_millis(begun.duration_ms)));
                    self.change(begun.phase);
                }
                Event::Result(result) => break *result,
                Event::Error(error) => bail!("{args:?}: {}: {}", error.error.what, error.error.because),
                Event::Queued(_) | Event::Start(_) | Event::Interval(_) | Event::Latency(_) => {}
            }
        };
        running.wait(LINE_TIMEOUT)?;
        // Wait: the packets that are still in a queue belong to the record.
        std::thread::sleep(SETTLING);
        let links = self.take_records();
        let new_overrun = self.topology.overrun()? - overrun;
        let new_unread = self.unread()? - unread;
        let unread = (new_unread > 0).then(|| format!("a program did not read {new_unread} datagrams in time"));
        let fault = accuracy::fault(links.iter().flatten(), new_overrun).or(unread).or_else(|| incomplete(&document));
        let observed = Observed::of(&document, &phases, &links);
        Ok(Finished { run: Run { document, observed }, links, fault })
    }

    /// The number of datagrams that arrived at either host and were dropped, because the receiving socket's buffer was
    /// full.
    fn unread(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for host in [self.topology.appliance(), self.topology.reflector()] {
            sum += unread_datagrams(&host.run(&["cat", "/proc/net/snmp", "/proc/net/snmp6"])?);
        }
        Ok(sum)
    }

    /// Schedules the changes of the links that the scenario describes for a phase, when that phase begins.
    fn change(&self, phase: Load) {
        let name = match phase {
            Load::Idle => "idle",
            Load::Download => "download",
            Load::Upload => "upload",
            Load::Bidir | Load::Unknown => return,
        };
        for change in self.scenario.changes.iter().filter(|change| change.phase == name) {
            let before = self.scenario.hops.iter().take(change.hop - 1).filter(|hop| hop.is_emulated()).count();
            let Some(link) = self.topology.links.get(before) else { continue };
            let at = link.now() + Duration::from_secs_f64(change.after_s);
            for (way, settings) in [(Way::Up, &change.up), (Way::Down, &change.down)] {
                if let Some(settings) = settings {
                    link.change_at(way, at, settings.clone());
                }
            }
        }
    }

    /// Discards what the links have recorded so far.
    fn forget(&self) {
        drop(self.take_records());
    }

    /// Takes the records of all links of the path.
    fn take_records(&self) -> LinkRecords {
        take_records(&self.topology)
    }
}

/// Takes the records of all links of a path. Each link then begins a new record.
pub(crate) fn take_records(topology: &Topology) -> LinkRecords {
    topology.links.iter().map(|link| Way::BOTH.map(|way| link.take_record(way))).collect()
}

/// The longest time for which a link was late, in milliseconds: a packet left after it was due, or the link did not
/// look for new packets.
pub(crate) fn worst_lateness_ms(links: &LinkRecords) -> f64 {
    let worst = |record: &LinkRecord| record.lateness.worst.max(record.longest_turn).as_secs_f64() * 1e3;
    links.iter().flatten().map(worst).fold(0.0, f64::max)
}

/// Sums the kernel's counters of datagrams that were dropped because a receive buffer was full. `counters` is the
/// content of /proc/net/snmp and /proc/net/snmp6.
fn unread_datagrams(counters: &str) -> u64 {
    let mut udp = counters.lines().filter_map(|line| line.strip_prefix("Udp: ")).map(|line| line.split(' '));
    let v4 = udp.next().zip(udp.next()).into_iter().flat_map(|(names, values)| names.zip(values));
    let v4 = v4.filter(|(name, _)| *name == "RcvbufErrors").map(|(_, value)| value);
    let v6 = counters.lines().filter_map(|line| line.strip_prefix("Udp6RcvbufErrors")).map(str::trim);
    v4.chain(v6).filter_map(|value| value.parse::<u64>().ok()).sum()
}

fn incomplete(document: &ResultDocument) -> Option<String> {
    (!document.complete).then(|| "the test did not complete".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_receive_buffers_of_both_families_are_counted() {
        let counters = "Tcp: InErrs\nTcp: 9\nUdp: InDatagrams NoPorts RcvbufErrors\nUdp: 5 6 7\n\
            UdpLite: InDatagrams RcvbufErrors\nUdpLite: 0 4\nUdp6InErrors                    	2\n\
            Udp6RcvbufErrors                	3\n";
        assert_eq!(unread_datagrams(counters), 10);
    }
}
