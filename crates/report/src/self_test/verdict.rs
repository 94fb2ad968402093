//! Judges a host by its facts and rates: the line rates that it can test, and its weak points with a remedy for each.
//! Pure: no I/O, no clock.

use paramedic_link::measurement::Duplex;
use paramedic_link::test_spec::{DataMode, Direction};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::facts::{Facts, Interface, InterfaceKind};
use super::{LoopbackRate, Role};
use crate::quantity;

/// The nominal rates of common lines, in bits per second. A measured rate between two nominal rates counts as the lower
/// one.
const STEPS_BPS: [u64; 10] = [
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    25_000_000_000,
    40_000_000_000,
    100_000_000_000,
];

/// An interface of at most this speed, in bits per second, is slower than most lines. It is often a gigabit interface
/// with a bad cable.
const SLOW_INTERFACE_BPS: u64 = 100_000_000;

/// A host needs at least this limit of file descriptors. A session with 64 streams in both directions may use more than
/// 600 descriptors at the reflector. The reflector itself warns below a higher limit, which also leaves room for other
/// connections.
const ENOUGH_DESCRIPTORS: u64 = 1024;

/// If the 99th percentile of the timer lateness reaches this many microseconds, latency probes are noticeably late,
/// because a probe is due every 10 ms.
const LATE_TIMER_US: u64 = 1_000;

/// If other programs use at least this share of all cores, they noticeably lower the measured rates.
const BUSY: f64 = 0.25;

/// The longest round trip for which the socket buffers should suffice, in milliseconds. Round trips between continents
/// take about as long.
const LONG_RTT_MS: u64 = 100;

/// Socket buffers are judged for rates up to this rate, in bits per second. Faster lines have short round trips.
const LONG_PATH_MOST_BPS: u64 = 10_000_000_000;

/// The number of streams that a test has by default.
const STREAMS: u64 = 4;

/// About half of a socket buffer holds payload; the rest holds the kernel's metadata of each packet (tcp(7),
/// `tcp_adv_win_scale` 1).
const BUFFER_PER_PAYLOAD: u64 = 2;

/// The frequency drivers whose governor `powersave` adapts the frequency to the load. With other drivers, `powersave`
/// selects the lowest frequency.
const ADAPTIVE_POWERSAVE: [&str; 2] = ["intel_pstate", "amd-pstate-epp"];

/// The lines that the host can test in both directions: for each data mode, the highest nominal line rate that is not
/// above the measured rate. The line rate of a mode is absent if no rate was measured in this mode, or if the measured
/// rate is below the lowest nominal rate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// The highest line rate that the host can test in tunneled mode, in bits per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunneled_bps: Option<u64>,
    /// The highest line rate that the host can test in direct mode, in bits per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_ephemeral_bps: Option<u64>,
    /// The verdict as a sentence.
    pub text: String,
}

/// Something that limits a host, or makes its results less accurate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WeakPoint {
    /// A stable identifier for scripts, in lower case. It stays the same when the text changes.
    pub code: String,
    /// The weak point as a statement for the reader.
    pub what: String,
    /// The cause or the effect of the weak point.
    pub because: String,
    /// How to remove the weak point.
    #[serde(rename = "try")]
    pub try_: String,
}

impl WeakPoint {
    fn new(code: &str, what: impl Into<String>, because: impl Into<String>, try_: impl Into<String>) -> Self {
        Self { code: code.to_owned(), what: what.into(), because: because.into(), try_: try_.into() }
    }
}

/// Judges the host of the program `role`: returns the verdict and the weak points.
pub fn judge(role: Role, facts: &Facts, rates: &[LoopbackRate]) -> (Verdict, Vec<WeakPoint>) {
    let verdict = verdict(facts, rates);
    let weak_points = [
        busy(facts),
        one_core(facts),
        cpu_quota(facts),
        powersave(facts),
        no_aes(facts),
        late_timers(facts),
        few_descriptors(role, facts),
        small_buffers(facts, rates),
        clock(facts),
    ];
    let interfaces = facts.interfaces.iter().flat_map(|interface| [slow(interface), half_duplex(interface)]);
    let weak_points = interfaces.chain(weak_points).flatten().collect();
    (verdict, weak_points)
}

/// The rate that the fastest engine reached in both directions in `mode`: that of its slower direction. `None` if no
/// engine was measured in both. Zero-copy rates count only if no rate with every byte copied was measured, because
/// zero-copy is free on loopback, but not on a real interface.
fn carried(rates: &[LoopbackRate], mode: DataMode) -> Option<u64> {
    best(rates.iter().filter(|rate| rate.data_mode == mode && !rate.is_by_reference()))
        .or_else(|| best(rates.iter().filter(|rate| rate.data_mode == mode)))
}

fn best<'a>(rates: impl Iterator<Item = &'a LoopbackRate>) -> Option<u64> {
    let each_way = |rate: &LoopbackRate| {
        let of = |direction| Some(rate.direction(direction)?.goodput_bps);
        Some(of(Direction::Download)?.min(of(Direction::Upload)?))
    };
    rates.filter_map(each_way).max()
}

fn step(bps: u64) -> Option<u64> {
    STEPS_BPS.into_iter().rev().find(|step| *step <= bps)
}

/// Prints the nominal rate of a line: `2.5 Gbit/s`, `100 Mbit/s`.
pub(super) fn line_rate(bps: u64) -> String {
    if bps >= 1_000_000_000 { format!("{} Gbit/s", bps as f64 / 1e9) } else { format!("{} Mbit/s", bps as f64 / 1e6) }
}

fn verdict(facts: &Facts, rates: &[LoopbackRate]) -> Verdict {
    let modes = [(DataMode::Tunneled, "tunneled"), (DataMode::DirectEphemeral, "direct")];
    let measured = modes.map(|(mode, word)| (carried(rates, mode), word));
    let carried_in_mode = |(bps, word): &(Option<u64>, &str)| {
        let rate = match step((*bps)?) {
            Some(step) => line_rate(step),
            None => format!("less than {}", line_rate(STEPS_BPS[0])),
        };
        Some(format!("{rate} {word}"))
    };
    let parts = measured.iter().filter_map(carried_in_mode).collect::<Vec<_>>();
    let mut text = match parts.as_slice() {
        [] => "The rate that this host can carry could not be measured.".to_owned(),
        parts => format!("This host can carry {} each way.", parts.join(" and ")),
    };
    let [tunneled_bps, direct_ephemeral_bps] = measured.map(|(bps, _)| bps.and_then(step));
    if let Some((speed, interface)) = fastest_interface(facts)
        && tunneled_bps.max(direct_ephemeral_bps).is_some_and(|host| speed < host)
    {
        text.push_str(&format!(" Its fastest interface, {}, carries {}.", interface.name, line_rate(speed)));
    }
    Verdict { tunneled_bps, direct_ephemeral_bps, text }
}

/// The fastest network interface of the host and its speed. `None` if an interface that may be faster does not report
/// its speed, or if only virtual interfaces are up.
fn fastest_interface(facts: &Facts) -> Option<(u64, &Interface)> {
    let mut real = facts.interfaces.iter().filter(|interface| interface.kind != InterfaceKind::Virtual).peekable();
    real.peek()?;
    let known = real.map(|interface| Some((interface.speed_bps?, interface))).collect::<Option<Vec<_>>>()?;
    known.into_iter().max_by_key(|(speed, _)| *speed)
}

fn slow(interface: &Interface) -> Option<WeakPoint> {
    let speed = interface.speed_bps.filter(|speed| *speed <= SLOW_INTERFACE_BPS)?;
    let name = &interface.name;
    Some(WeakPoint::new(
        "slow_interface",
        format!("{name} carries no more than {}", line_rate(speed)),
        "it negotiated this speed with the other end of its cable",
        format!(
            "use a cable with all eight wires, or another port of the switch; `ethtool {name}` shows what both ends offer"
        ),
    ))
}

fn half_duplex(interface: &Interface) -> Option<WeakPoint> {
    let name = &interface.name;
    interface.duplex.filter(|duplex| *duplex == Duplex::Half)?;
    Some(WeakPoint::new(
        "half_duplex",
        format!("{name} runs in half duplex: it never sends and receives at once"),
        "usually one end of the cable has a fixed setting and the other negotiates",
        format!("run `ethtool -s {name} autoneg on`, and turn on autonegotiation at the switch"),
    ))
}

fn busy(facts: &Facts) -> Option<WeakPoint> {
    let busy = facts.processor.other_work?;
    (busy >= BUSY).then(|| {
        WeakPoint::new(
            "busy",
            "other work runs on this host",
            format!("{} of the processor time was in use before the measurements", quantity::share(busy)),
            "stop the other programs and run the self-test again: the host may carry more than this",
        )
    })
}

fn one_core(facts: &Facts) -> Option<WeakPoint> {
    // Counts only the cores. A CPU quota is a separate weak point.
    facts.processor.cores.filter(|cores| *cores == 1)?;
    Some(WeakPoint::new(
        "one_core",
        "the host has one core",
        "moving bytes, encrypting them and answering latency probes share it",
        "use a host with at least two cores for fast lines; `-P 1` costs the least processor time",
    ))
}

fn cpu_quota(facts: &Facts) -> Option<WeakPoint> {
    let quota = facts.processor.quota_cores?;
    // A quota of all cores or more limits nothing.
    if facts.processor.cores.is_some_and(|cores| quota >= f64::from(cores)) {
        return None;
    }
    Some(WeakPoint::new(
        "cpu_quota",
        format!("this program may use at most {quota:.2} cores"),
        "a control group sets this quota (cpu.max); once the quota is used up, the program is suspended, which adds \
         latency",
        "remove CPUQuota= from the program's unit, or --cpus from its container",
    ))
}

fn powersave(facts: &Facts) -> Option<WeakPoint> {
    let governor = facts.processor.governors.iter().find(|governor| {
        governor.name.as_str() == "powersave" && !ADAPTIVE_POWERSAVE.contains(&governor.driver.as_str())
    })?;
    Some(WeakPoint::new(
        "powersave",
        "the processor stays at its lowest frequency",
        format!("its frequency governor is {}", governor.name),
        "run `cpupower frequency-set -g schedutil` before a test",
    ))
}

fn no_aes(facts: &Facts) -> Option<WeakPoint> {
    facts.processor.aes_gcm_in_hardware.filter(|has| !has)?;
    Some(WeakPoint::new(
        "no_aes",
        "tunneled data needs much processor time",
        "the processor has no instructions for AES-GCM",
        "use `--data-mode direct` on lines that are faster than the processor can encrypt",
    ))
}

fn late_timers(facts: &Facts) -> Option<WeakPoint> {
    let timers = facts.timers.filter(|timers| timers.late_p99_us >= LATE_TIMER_US)?;
    Some(WeakPoint::new(
        "late_timers",
        format!("one timer in a hundred is {} late or more", quantity::micros(timers.late_p99_us)),
        "other programs, a hypervisor or a quota delay the timers",
        "run fewer programs on this host, or use a host with dedicated cores; late probes can miss short latency \
         spikes",
    ))
}

fn few_descriptors(role: Role, facts: &Facts) -> Option<WeakPoint> {
    let limit = facts.descriptors?;
    let (allowed, raised) = match role {
        Role::Reflector => (limit.hard, "hard limit, up to which the reflector raises its soft limit"),
        Role::Appliance => (limit.soft, "soft limit"),
    };
    let try_ = if limit.hard >= ENOUGH_DESCRIPTORS {
        format!(
            "run `ulimit -n {ENOUGH_DESCRIPTORS}` in the shell that starts the program, or set \
             LimitNOFILE={ENOUGH_DESCRIPTORS} in its unit"
        )
    } else {
        format!(
            "set LimitNOFILE={ENOUGH_DESCRIPTORS} in the program's unit, or a higher `hard nofile` in \
             /etc/security/limits.conf"
        )
    };
    (allowed < ENOUGH_DESCRIPTORS).then(|| {
        WeakPoint::new(
            "few_descriptors",
            format!("this program may open {}; it needs {ENOUGH_DESCRIPTORS}", counted(allowed, "descriptor")),
            format!("that is its {raised}; a test of 64 streams in both directions opens several hundred"),
            try_,
        )
    })
}

/// The weak point of socket buffers that are too small: four streams cannot fill a long path at the rate that the host
/// and its interfaces carry. `None` if the buffers suffice.
fn small_buffers(facts: &Facts, rates: &[LoopbackRate]) -> Option<WeakPoint> {
    let host = carried(rates, DataMode::Tunneled).max(carried(rates, DataMode::DirectEphemeral)).and_then(step)?;
    let wanted = fastest_interface(facts).map_or(host, |(speed, _)| speed.min(host)).min(LONG_PATH_MOST_BPS);
    let (receive, send) = (facts.buffers.tcp_receive_max_bytes?, facts.buffers.tcp_send_max_bytes?);
    let payload = receive.min(send).saturating_mul(STREAMS) / BUFFER_PER_PAYLOAD;
    let possible = payload.saturating_mul(8 * 1000) / LONG_RTT_MS;
    // The buffer that each stream needs for the rate of the line, in whole MiB.
    let needed = (wanted * LONG_RTT_MS / (8 * 1000) * BUFFER_PER_PAYLOAD / STREAMS).div_ceil(1 << 20) << 20;
    let settings = [("tcp_rmem=\"4096 131072", receive), ("tcp_wmem=\"4096 16384", send)];
    let larger = settings.iter().filter(|(_, now)| *now < needed);
    let larger = larger.map(|(name, _)| format!("net.ipv4.{name} {needed}\"")).collect::<Vec<_>>().join(" ");
    (possible < wanted && !larger.is_empty()).then(|| {
        WeakPoint::new(
            "small_buffers",
            format!("over a round trip of {LONG_RTT_MS} ms this host carries less than {}", line_rate(wanted)),
            format!(
                "TCP's buffers limit {STREAMS} streams to about {} in flight, which is at most {} on that path",
                quantity::bytes(payload),
                quantity::rate(possible)
            ),
            format!("run `sysctl -w {larger}` if paths are that long, or use more streams"),
        )
    })
}

fn clock(facts: &Facts) -> Option<WeakPoint> {
    facts.host.clock_synchronised.filter(|is_synchronised| !is_synchronised)?;
    Some(WeakPoint::new(
        "clock_unsynchronised",
        "the system clock is not synchronised",
        "the kernel reports it as unsynchronised (adjtimex)",
        "run systemd-timesyncd or chrony: results carry this time, and iperf3 servers refuse a login that is 10 s off",
    ))
}

fn counted(count: impl Into<u64>, what: &str) -> String {
    let count = count.into();
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use paramedic_link::PeerText;
    use paramedic_link::measurement::HostFacts;

    use super::super::facts::{Buffers, Descriptors, Governor, Processor, Timers};
    use super::super::{DirectionRate, MovedBy};
    use super::*;

    const GBIT: u64 = 1_000_000_000;

    fn interface(speed_bps: Option<u64>) -> Interface {
        let name = PeerText::new("eth0");
        let duplex = Some(Duplex::Full);
        Interface { name, kind: InterfaceKind::Wired, mtu_bytes: Some(1500), speed_bps, duplex }
    }

    /// The facts of a host without weak points.
    fn sound() -> Facts {
        Facts {
            host: HostFacts { cpus: Some(4), clock_synchronised: Some(true), ..HostFacts::default() },
            processor: Processor {
                aes_gcm_in_hardware: Some(true),
                cores: Some(4),
                other_work: Some(0.02),
                governors: vec![Governor { name: PeerText::new("schedutil"), driver: PeerText::new("acpi-cpufreq") }],
                ..Processor::default()
            },
            interfaces: vec![interface(Some(GBIT))],
            descriptors: Some(Descriptors { soft: 1024, hard: 4096 }),
            buffers: Buffers {
                tcp_receive_max_bytes: Some(8 << 20),
                tcp_send_max_bytes: Some(8 << 20),
                ..Buffers::default()
            },
            timers: Some(Timers { rings: 1000, late_p50_us: 50, late_p99_us: 200, late_max_us: 5000 }),
            ..Facts::default()
        }
    }

    fn rate(data_mode: DataMode, down_bps: u64, up_bps: u64) -> LoopbackRate {
        let direction = |goodput_bps| {
            Some(DirectionRate { goodput_bps, bytes_received: 1, duration_ms: 1, data_path: MovedBy::default() })
        };
        let (download, upload) = (direction(down_bps), direction(up_bps));
        LoopbackRate { engine: "tcp".to_owned(), data_mode, streams: 4, download, upload }
    }

    fn rates(tunneled: u64, direct: u64) -> Vec<LoopbackRate> {
        vec![rate(DataMode::Tunneled, tunneled, tunneled * 2), rate(DataMode::DirectEphemeral, direct * 2, direct)]
    }

    fn codes(facts: &Facts) -> Vec<String> {
        let (_, weak_points) = judge(Role::Appliance, facts, &rates(3 * GBIT, 12 * GBIT));
        weak_points.into_iter().map(|weak| weak.code).collect()
    }

    #[test]
    fn a_rate_is_rounded_down_to_a_common_one() {
        let table = [
            (99_999_999, None, "less than 100 Mbit/s"),
            (100_000_000, Some(100_000_000), "100 Mbit/s"),
            (941_000_000, Some(500_000_000), "500 Mbit/s"),
            (GBIT, Some(GBIT), "1 Gbit/s"),
            (4_999_999_999, Some(2_500_000_000), "2.5 Gbit/s"),
            (39 * GBIT, Some(25 * GBIT), "25 Gbit/s"),
            (700 * GBIT, Some(100 * GBIT), "100 Gbit/s"),
        ];
        for (bps, tunneled_bps, word) in table {
            let (verdict, _) = judge(Role::Appliance, &Facts::default(), &rates(bps, 12 * GBIT));
            assert_eq!((verdict.tunneled_bps, verdict.direct_ephemeral_bps), (tunneled_bps, Some(10 * GBIT)));
            assert_eq!(verdict.text, format!("This host can carry {word} tunneled and 10 Gbit/s direct each way."));
        }
    }

    #[test]
    fn the_slower_direction_counts_and_the_better_engine() {
        let mut rates = rates(3 * GBIT, 12 * GBIT);
        rates.push(rate(DataMode::DirectEphemeral, 30 * GBIT, 1));
        let verdict = verdict(&Facts::default(), &rates);
        assert_eq!(verdict.direct_ephemeral_bps, Some(10 * GBIT));
        // The rate of one direction does not show the rate of the other direction.
        let half = LoopbackRate { upload: None, ..rate(DataMode::Tunneled, GBIT, GBIT) };
        let verdict = super::verdict(&Facts::default(), &[half]);
        assert_eq!(verdict.text, "The rate that this host can carry could not be measured.");
    }

    #[test]
    fn uncopied_bytes_count_only_if_no_other_rate_was_measured() {
        let path = |word: &str| MovedBy { sender: Some(PeerText::new(word)), receiver: Some(PeerText::new("trunc")) };
        let mut by_reference = rate(DataMode::DirectEphemeral, 80 * GBIT, 80 * GBIT);
        for direction in [&mut by_reference.download, &mut by_reference.upload].into_iter().flatten() {
            direction.data_path = path("splice");
        }
        let alone = [by_reference.clone()];
        assert_eq!(carried(&alone, DataMode::DirectEphemeral), Some(80 * GBIT));
        let both = [by_reference, rate(DataMode::DirectEphemeral, 30 * GBIT, 20 * GBIT)];
        assert_eq!(carried(&both, DataMode::DirectEphemeral), Some(20 * GBIT));
    }

    #[test]
    fn a_slower_interface_is_named_only_if_every_speed_is_known() {
        let text_of = |facts: &Facts| verdict(facts, &rates(3 * GBIT, 12 * GBIT)).text;
        assert!(
            text_of(&sound()).ends_with(" Its fastest interface, eth0, carries 1 Gbit/s."),
            "{}",
            text_of(&sound())
        );
        let fast = Facts { interfaces: vec![interface(Some(GBIT)), interface(Some(25 * GBIT))], ..sound() };
        assert!(text_of(&fast).ends_with("each way."), "{}", text_of(&fast));
        // The second interface, whose speed is unknown, may be faster.
        let unsure = Facts { interfaces: vec![interface(Some(GBIT)), interface(None)], ..sound() };
        assert!(text_of(&unsure).ends_with("each way."), "{}", text_of(&unsure));
        let bridge = Interface { kind: InterfaceKind::Virtual, ..interface(None) };
        let beside = Facts { interfaces: vec![interface(Some(GBIT)), bridge], ..sound() };
        assert!(text_of(&beside).ends_with("carries 1 Gbit/s."), "{}", text_of(&beside));
    }

    #[test]
    fn a_sound_host_and_an_unknown_one_have_no_weak_point() {
        assert_eq!(codes(&sound()), [""; 0]);
        assert_eq!(codes(&Facts::default()), [""; 0]);
    }

    #[test]
    fn each_weak_point_is_found_alone() {
        let governor = |name: &str, driver: &str| Governor { name: PeerText::new(name), driver: PeerText::new(driver) };
        let of_host = |change: &dyn Fn(&mut HostFacts)| {
            let mut facts = sound();
            change(&mut facts.host);
            facts
        };
        let of_processor = |change: &dyn Fn(&mut Processor)| {
            let mut facts = sound();
            change(&mut facts.processor);
            facts
        };
        let timers = |late_p99_us| Some(Timers { rings: 1, late_p50_us: 1, late_p99_us, late_max_us: 9_999 });
        let descriptors = |soft| Some(Descriptors { soft, hard: 4096 });
        let buffers = |bytes| Buffers { tcp_send_max_bytes: Some(bytes), ..sound().buffers };
        let table: [(&str, Facts); 19] = [
            ("slow_interface", Facts { interfaces: vec![interface(Some(100_000_000))], ..sound() }),
            (
                "half_duplex",
                Facts {
                    interfaces: vec![Interface { duplex: Some(Duplex::Half), ..interface(Some(GBIT)) }],
                    ..sound()
                },
            ),
            ("busy", of_processor(&|processor| processor.other_work = Some(0.25))),
            ("", of_processor(&|processor| processor.other_work = Some(0.249))),
            ("one_core", of_processor(&|processor| processor.cores = Some(1))),
            ("cpu_quota", of_processor(&|processor| processor.quota_cores = Some(3.5))),
            ("", of_processor(&|processor| processor.quota_cores = Some(4.0))),
            ("powersave", of_processor(&|processor| processor.governors.push(governor("powersave", "acpi-cpufreq")))),
            ("", of_processor(&|processor| processor.governors.push(governor("powersave", "intel_pstate")))),
            ("no_aes", of_processor(&|processor| processor.aes_gcm_in_hardware = Some(false))),
            ("", of_processor(&|processor| processor.aes_gcm_in_hardware = None)),
            ("late_timers", Facts { timers: timers(1_000), ..sound() }),
            ("", Facts { timers: timers(999), ..sound() }),
            ("few_descriptors", Facts { descriptors: descriptors(1023), ..sound() }),
            ("", Facts { descriptors: descriptors(1024), ..sound() }),
            // 1 Gbit/s for 100 ms is 12.5 MB; a quarter of that, doubled, is 6.25 MB.
            ("small_buffers", Facts { buffers: buffers(6_249_999), ..sound() }),
            ("", Facts { buffers: buffers(6_250_000), ..sound() }),
            ("clock_unsynchronised", of_host(&|host| host.clock_synchronised = Some(false))),
            ("", of_host(&|host| host.clock_synchronised = None)),
        ];
        for (code, facts) in table {
            let expected = if code.is_empty() { vec![] } else { vec![code.to_owned()] };
            assert_eq!(codes(&facts), expected, "{facts:?}");
        }
    }

    #[test]
    fn the_reflector_raises_its_limit_and_the_appliance_does_not() {
        let facts = Facts { descriptors: Some(Descriptors { soft: 256, hard: 4096 }), ..sound() };
        assert_eq!(few_descriptors(Role::Reflector, &facts), None);
        let weak = few_descriptors(Role::Appliance, &facts).unwrap();
        assert!(weak.what.contains("256 descriptors") && weak.try_.contains("ulimit -n"), "{weak:?}");
        let tight = Facts { descriptors: Some(Descriptors { soft: 64, hard: 64 }), ..sound() };
        let weak = few_descriptors(Role::Reflector, &tight).unwrap();
        assert!(weak.try_.starts_with("set LimitNOFILE"), "{weak:?}");
    }

    #[test]
    fn the_advice_on_buffers_is_enough() {
        let facts = Facts { buffers: Buffers { tcp_send_max_bytes: Some(4 << 20), ..sound().buffers }, ..sound() };
        let weak = small_buffers(&facts, &rates(3 * GBIT, 12 * GBIT)).unwrap();
        assert_eq!(
            weak.try_,
            "run `sysctl -w net.ipv4.tcp_wmem=\"4096 16384 6291456\"` if paths are that long, or use more streams"
        );
        let followed = Facts { buffers: Buffers { tcp_send_max_bytes: Some(6_291_456), ..facts.buffers }, ..facts };
        assert_eq!(small_buffers(&followed, &rates(3 * GBIT, 12 * GBIT)), None);
    }
}
