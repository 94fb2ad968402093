//! Turns the findings of a self-test into rows of the report, each with a label and a text. If a fact could not be
//! read, its row states this. Pure: no I/O, no clock.

use paramedic_link::measurement::Duplex;
use paramedic_link::test_spec::Direction;

use super::facts::{Descriptors, Facts, Interface, InterfaceKind};
use super::verdict::line_rate;
use super::{DirectionRate, LoopbackRate, SelfTest, mode_word};
use crate::quantity;

/// One row of the report on a self-test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FactRow {
    /// The label of the row, in the left column.
    pub label: String,
    /// The text of the row, beside the label.
    pub text: String,
}

impl FactRow {
    fn new(label: impl Into<String>, text: impl Into<String>) -> Self {
        Self { label: label.into(), text: text.into() }
    }
}

/// The text of a row whose fact cannot be read on this host.
const UNKNOWN: &str = "can't be read here";

/// The rows about rates: one for each engine's rate over loopback, and one for each rate that was not measured.
pub fn rate_rows(test: &SelfTest) -> Vec<FactRow> {
    let carried = test.rates.iter().map(|rate| {
        let both = Direction::BOTH.into_iter().filter_map(|direction| {
            let word = if direction == Direction::Download { "down" } else { "up" };
            Some(format!("{} {word}", quantity::rate(rate.direction(direction)?.goodput_bps)))
        });
        let text = format!("{}{}", both.collect::<Vec<_>>().join(", "), moved(rate));
        FactRow::new(format!("{} {}", rate.engine, mode_word(rate.data_mode)), text)
    });
    let missed = test.not_measured.iter().map(|missed| {
        let direction = missed.direction.map_or_else(String::new, |direction| format!(" {direction}"));
        let label = format!("{} {}", missed.engine, mode_word(missed.data_mode));
        FactRow::new(label, format!("no{direction} rate: {}", missed.because))
    });
    carried.chain(missed).collect()
}

/// The note that explains the rates of a self-test, below their rows; `None` if there are no rates.
pub fn rate_note(test: &SelfTest) -> Option<String> {
    let streams = test.rates.first()?.streams;
    let streams = if streams == 1 { "one stream".to_owned() } else { format!("{streams} streams") };
    let untouched = if test.rates.iter().any(LoopbackRate::is_by_reference) {
        " Loopback moves bytes that are not copied (splice, trunc) at no cost: such a rate shows nothing about a \
         real interface."
    } else {
        ""
    };
    Some(format!(
        "These are payload rates over loopback with {streams}. Both ends ran on this host, so one end alone carries \
         more. A real interface costs processor time that loopback does not cost.{untouched}"
    ))
}

/// The rows with the facts about the host.
pub fn fact_rows(test: &SelfTest) -> Vec<FactRow> {
    let facts = &test.facts;
    let system = facts.host.system.as_ref().map_or(UNKNOWN, |system| system.as_str());
    let mut rows = vec![
        FactRow::new("System", system),
        FactRow::new("Processor", processor(facts)),
        FactRow::new("Memory", memory(facts)),
    ];
    rows.extend(interfaces(&facts.interfaces));
    rows.extend([
        FactRow::new("Clock", clock(facts)),
        FactRow::new("Timers", timers(facts)),
        FactRow::new("Time stamps", timestamps(facts)),
        FactRow::new("Descriptors", descriptors(facts)),
        FactRow::new("Buffers", buffers(facts)),
        FactRow::new("Congestion", congestion(facts)),
    ]);
    rows
}

/// The methods by which both ends moved the payload, without repetitions, in parentheses.
fn moved(rate: &LoopbackRate) -> String {
    let path = |rate: &DirectionRate| {
        let both = [&rate.data_path.sender, &rate.data_path.receiver];
        let mut words = both.into_iter().flatten().map(ToString::to_string).collect::<Vec<_>>();
        words.dedup();
        words.join(" to ")
    };
    let mut paths = [&rate.download, &rate.upload].into_iter().flatten().map(path).collect::<Vec<_>>();
    paths.retain(|path| !path.is_empty());
    paths.dedup();
    if paths.is_empty() { String::new() } else { format!(" ({})", paths.join("; ")) }
}

fn processor(facts: &Facts) -> String {
    let model = facts.host.cpu_model.as_ref().map(ToString::to_string);
    let cores = facts.host.cpus.map(|cores| format!("{cores} core{}", if cores == 1 { "" } else { "s" }));
    let ciphers = facts.processor.aes_gcm_in_hardware.map(|has| {
        let names = facts.processor.instructions.join(", ");
        if has { format!("AES-GCM in hardware ({names})") } else { "no AES-GCM in hardware".to_owned() }
    });
    let mut governors = facts.processor.governors.iter().map(|of| of.name.to_string()).collect::<Vec<_>>();
    governors.dedup();
    let governors = (!governors.is_empty()).then(|| format!("frequency by {}", governors.join(", ")));
    let quota = facts.processor.quota_cores.map(|quota| format!("a quota of {quota:.2} cores"));
    joined([model, cores, quota, governors, ciphers], ", ")
}

fn memory(facts: &Facts) -> String {
    let total = facts.host.memory_total_bytes.map(quantity::bytes);
    let free = facts.host.memory_available_bytes.map(|bytes| format!("{} available", quantity::bytes(bytes)));
    let huge = facts.huge_pages.as_ref().map(|mode| format!("huge pages: {mode}"));
    joined([total, free, huge], ", ")
}

/// One row for each hardware interface, and one for all virtual interfaces together.
fn interfaces(interfaces: &[Interface]) -> Vec<FactRow> {
    let (made, real) = interfaces.iter().partition::<Vec<_>, _>(|interface| interface.kind == InterfaceKind::Virtual);
    let row = |interface: &&Interface| {
        let radio = (interface.kind == InterfaceKind::Wireless).then(|| "wireless".to_owned());
        let speed = Some(interface.speed_bps.map_or_else(|| "unknown speed".to_owned(), line_rate));
        let duplex = interface.duplex.map(|duplex| match duplex {
            Duplex::Full => "full duplex".to_owned(),
            Duplex::Half => "half duplex".to_owned(),
        });
        let mtu = interface.mtu_bytes.map(|mtu| format!("MTU {mtu}"));
        FactRow::new("Interface", format!("{}: {}", interface.name, joined([radio, speed, duplex, mtu], ", ")))
    };
    let mut rows = real.iter().map(row).collect::<Vec<_>>();
    if !made.is_empty() {
        let names = made.iter().map(|interface| interface.name.as_str()).collect::<Vec<_>>().join(", ");
        rows.push(FactRow::new("Interface", format!("virtual: {names}")));
    }
    if rows.is_empty() {
        rows.push(FactRow::new("Interface", "only loopback is up"));
    }
    rows
}

fn clock(facts: &Facts) -> String {
    match (facts.host.clock_synchronised, facts.host.clock_error_us) {
        (Some(true), Some(error)) => format!("synchronised, off by {} at most", quantity::micros(error)),
        (Some(true), None) => "synchronised".to_owned(),
        (Some(false), _) => "not synchronised".to_owned(),
        (None, _) => UNKNOWN.to_owned(),
    }
}

fn timers(facts: &Facts) -> String {
    facts.timers.map_or_else(
        || "can't be measured here".to_owned(),
        |timers| {
            let [half, most, all] = [timers.late_p50_us, timers.late_p99_us, timers.late_max_us].map(quantity::micros);
            format!("{half} late (median), {most} (99 %), {all} at worst")
        },
    )
}

fn timestamps(facts: &Facts) -> String {
    let stamps = facts.timestamps;
    match (stamps.software_receive, stamps.software_send) {
        (Some(true), Some(true)) => "by the kernel, on arrival and departure".to_owned(),
        (Some(true), Some(false)) => "by the kernel, on arrival only".to_owned(),
        (Some(false), Some(true)) => "by the kernel, on departure only".to_owned(),
        (Some(false), Some(false)) => "none by the kernel".to_owned(),
        _ => "could not be tested".to_owned(),
    }
}

fn descriptors(facts: &Facts) -> String {
    facts.descriptors.map_or_else(
        || UNKNOWN.to_owned(),
        |limit| match limit {
            Descriptors { soft, hard } if soft == hard => soft.to_string(),
            Descriptors { soft, hard } => format!("{soft}, and {hard} on request"),
        },
    )
}

fn buffers(facts: &Facts) -> String {
    let pair = |receive: Option<u64>, send: Option<u64>| {
        Some(format!("{} to receive, {} to send", quantity::bytes(receive?), quantity::bytes(send?)))
    };
    let buffers = &facts.buffers;
    let tcp = pair(buffers.tcp_receive_max_bytes, buffers.tcp_send_max_bytes).map(|pair| format!("TCP's own: {pair}"));
    let on_request = pair(buffers.receive_max_bytes, buffers.send_max_bytes).map(|pair| format!("on request: {pair}"));
    joined([tcp, on_request], "; ")
}

fn congestion(facts: &Facts) -> String {
    let controls = &facts.congestion;
    let default = controls.default.clone();
    let allowed =
        (!controls.allowed.is_empty()).then(|| format!("available to all users: {}", controls.allowed.join(", ")));
    let more = controls.available.iter().filter(|name| !controls.allowed.contains(name)).cloned().collect::<Vec<_>>();
    let more = (!more.is_empty()).then(|| format!("for root only: {}", more.join(", ")));
    joined([default, allowed, more], "; ")
}

fn joined<const N: usize>(parts: [Option<String>; N], separator: &str) -> String {
    let parts = parts.into_iter().flatten().collect::<Vec<_>>();
    if parts.is_empty() { UNKNOWN.to_owned() } else { parts.join(separator) }
}

#[cfg(test)]
mod tests {
    use paramedic_link::PeerText;

    use super::super::example;
    use super::*;

    #[test]
    fn each_rate_is_a_row_and_so_is_each_one_that_is_missing() {
        let rows = rate_rows(&example::measured());
        assert_eq!(
            rows,
            [
                FactRow::new("tcp direct", "9.43 Gbit/s down, 941 Mbit/s up (splice to trunc)"),
                FactRow::new("iperf3 direct", "no upload rate: iperf3 is not installed"),
            ]
        );
        assert!(rate_note(&example::measured()).unwrap().contains("with 2 streams. Both ends ran on this host"));
        assert_eq!(rate_note(&SelfTest { rates: vec![], ..example::measured() }), None);
    }

    #[test]
    fn a_fact_that_could_not_be_read_has_a_row() {
        let rows = fact_rows(&example::measured());
        let labels = rows.iter().map(|row| row.label.as_str()).collect::<Vec<_>>();
        assert_eq!(
            labels,
            [
                "System",
                "Processor",
                "Memory",
                "Interface",
                "Clock",
                "Timers",
                "Time stamps",
                "Descriptors",
                "Buffers",
                "Congestion"
            ]
        );
        let silent = rows.iter().filter(|row| !row.text.contains("can't") && !row.text.contains("could not"));
        assert_eq!(silent.collect::<Vec<_>>(), [&FactRow::new("Interface", "only loopback is up")]);
    }

    #[test]
    fn each_kind_of_interface_has_its_own_row() {
        let interface = |name: &str, kind, speed_bps, duplex| Interface {
            name: PeerText::new(name),
            kind,
            mtu_bytes: Some(1500),
            speed_bps,
            duplex,
        };
        let rows = interfaces(&[
            interface("br0", InterfaceKind::Virtual, None, None),
            interface("eth0", InterfaceKind::Wired, Some(2_500_000_000), Some(Duplex::Full)),
            interface("tun0", InterfaceKind::Virtual, None, None),
            interface("wlan0", InterfaceKind::Wireless, None, None),
        ]);
        let texts = rows.iter().map(|row| row.text.as_str()).collect::<Vec<_>>();
        assert_eq!(
            texts,
            [
                "eth0: 2.5 Gbit/s, full duplex, MTU 1500",
                "wlan0: wireless, unknown speed, MTU 1500",
                "virtual: br0, tun0"
            ]
        );
    }
}
