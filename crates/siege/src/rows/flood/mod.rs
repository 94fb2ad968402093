//! Paired appliances in a flood of unpaired connections: a device with a known address prefix (a device with this
//! prefix has authenticated before) must be served every time, a device with a new prefix nearly every time, and the
//! reflector must use little memory.

mod ground;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use lab::Appliance;
use paramedic_link::SecretKey;
use paramedic_link::tls::Alpn;

use self::ground::{Ground, NEW_PREFIXES};
use crate::attack::{Crowd, Until, be_nice, enter_netns};
use crate::measured::Measured;
use crate::observe::{logged, mib, rss};
use crate::scale::Scale;
use crate::target::{granted, request};

/// A way to flood a reflector.
#[derive(Clone, Copy)]
struct Flood {
    name: &'static str,
    /// Whether the attack uses IPv6 addresses of one /56, between two hosts. If false, it uses IPv4 over loopback.
    v6: bool,
    attack: Attack,
}

#[derive(Clone, Copy)]
enum Attack {
    /// Connections from this many addresses. Each connection sends nothing, or one byte per second if `trickles` is
    /// true.
    Crowd { connections: usize, addresses: usize, trickles: bool },
    /// Complete TLS handshakes from one address; the number is how many run at the same time.
    Handshakes(usize),
}

const FLOODS: [Flood; 4] = [
    Flood {
        name: "2,000 connections from 500 addresses",
        v6: false,
        attack: Attack::Crowd { connections: 2_000, addresses: 500, trickles: true },
    },
    Flood {
        name: "60 addresses × 4 silent",
        v6: false,
        attack: Attack::Crowd { connections: 240, addresses: 60, trickles: false },
    },
    Flood {
        name: "one IPv6 /56",
        v6: true,
        attack: Attack::Crowd { connections: 2_000, addresses: 500, trickles: false },
    },
    Flood { name: "handshakes from one address, 4 at a time", v6: false, attack: Attack::Handshakes(4) },
];

/// The longest duration of an attack; it ends earlier when the tests are done.
const LONGEST: Duration = Duration::from_secs(240);
/// How long an appliance with a new address prefix retries its test.
const NEW_WITHIN: Duration = Duration::from_secs(30);
const SLOWEST_GRANT: Duration = Duration::from_millis(250);
const MOST_RSS: u64 = 48 << 20;
const MOST_LOG: u64 = 1 << 20;
/// The arguments of the shortest possible test.
const TEST: [&str; 4] = ["--engine", "echo", "-t", "0.3"];

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    for flood in FLOODS {
        match Ground::prepare(flood.v6)? {
            Some(mut ground) => withstand(scale, flood, &mut ground, &mut measured)?,
            None => measured.note(format!("{}: skipped, no namespaces", flood.name)),
        }
    }
    Ok(measured)
}

fn withstand(scale: Scale, flood: Flood, ground: &mut Ground, measured: &mut Measured) -> anyhow::Result<()> {
    let (tests, shortest) = (scale.of(30, 3), Duration::from_secs(scale.of(60, 6)));
    let known_at_start = ground.age_a_week()?;
    let pid = ground.reflector.process().pid();
    let (memory, written) = (rss(pid)?, logged(&ground.reflector));
    let (until, began) = (Until::at_most(LONGEST), Instant::now());
    let ground = &*ground;
    let (opened, known, new, grants, most) = std::thread::scope(|scope| {
        let over = until.when_dropped();
        let attackers = scope.spawn(|| attack(flood.attack, ground, &until));
        // The attack runs for a second before the first test.
        std::thread::sleep(Duration::from_secs(2));
        let new = scope.spawn(|| from_new_prefixes(ground, tests));
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !until.is_over() {
                most = rss(pid).unwrap_or(0).max(most);
                std::thread::sleep(Duration::from_millis(200));
            }
            most
        });
        let (known, grants) = from_known_prefix(ground, tests);
        let new = new.join().expect("the new prefixes");
        while began.elapsed() < shortest {
            std::thread::sleep(Duration::from_millis(100));
        }
        drop(over);
        let opened = attackers.join().expect("the attackers");
        (opened, known, new, grants, watch.join().expect("the watch"))
    });
    let least_new = tests * 9 / 10;
    let remembered = if known_at_start { "" } else { " (not remembered over the restart)" };
    let name = flood.name;
    measured.note(format!("{name}: {opened} connections in {} s", began.elapsed().as_secs()));
    measured.outcome(known == tests, format!("{known} of {tests} tests from the known prefix{remembered}"));
    measured.outcome(new >= least_new, format!("{new} of {tests} from new prefixes within 30 s"));
    let slowest = grants.iter().max().copied().unwrap_or_default();
    let missing = tests as usize - grants.len();
    let text = format!("slowest connect to grant {} ms, {missing} without a grant", slowest.as_millis());
    measured.time(scale, slowest <= SLOWEST_GRANT && missing == 0, text);
    let grown = most.saturating_sub(memory);
    measured.outcome(grown <= MOST_RSS, format!("memory +{}", mib(grown)));
    let log = logged(&ground.reflector) - written;
    measured.outcome(log <= MOST_LOG, format!("log and audit log +{}", mib(log)));
    Ok(())
}

/// Runs an attack until `until` is over. Returns the number of connections that it opened.
fn attack(attack: Attack, ground: &Ground, until: &Until) -> u64 {
    if let Some(netns) = &ground.far {
        enter_netns(netns).expect("the attackers' namespace");
    }
    be_nice();
    match attack {
        Attack::Crowd { connections, addresses, trickles } => {
            let source = |n: usize| ground.attacker(n % addresses);
            Crowd { to: ground.target.address, size: connections, source: &source, trickles }.press(until)
        }
        Attack::Handshakes(at_once) => {
            let from = ground.attacker(0);
            let shake = || {
                be_nice();
                let key = SecretKey::generate().expect("a key");
                let mut count = 0;
                while !until.is_over() {
                    let _ = ground.target.open(from, &key, Alpn::Link);
                    count += 1;
                }
                count
            };
            std::thread::scope(|scope| {
                let threads = (0..at_once).map(|_| scope.spawn(shake)).collect::<Vec<_>>();
                threads.into_iter().map(|thread| thread.join().expect("an attacker")).sum()
            })
        }
    }
}

/// Runs tests of the real appliance with the known prefix. Before each test, another peer with that prefix opens a link
/// and requests a session. Returns the number of successful tests, and the time of each such link from connect to
/// grant.
fn from_known_prefix(ground: &Ground, tests: u32) -> (u32, Vec<Duration>) {
    // In a separate thread, because the row's thread must not stay in a namespace.
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            if let Some(netns) = &ground.far {
                enter_netns(netns).expect("the appliance's namespace");
            }
            known_in_place(ground, tests)
        });
        inside.join().expect("the known prefix")
    })
}

fn known_in_place(ground: &Ground, tests: u32) -> (u32, Vec<Duration>) {
    let (mut passed, mut grants) = (0, Vec::new());
    for _ in 0..tests {
        grants.extend(time_to_grant(ground).inspect_err(|error| eprintln!("known prefix, link: {error:#}")).ok());
        let outcome = ground.known.speed_test(&[&TEST[..], &["--peer", &ground.address]].concat());
        passed += u32::from(outcome.code == 0);
        if outcome.code != 0 {
            eprintln!("known prefix, test: {}", outcome.json()["because"]);
        }
    }
    (passed, grants)
}

fn time_to_grant(ground: &Ground) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let mut link = ground.target.welcomed(ground.home, &ground.peer)?;
    granted(&mut link, &request("tunneled", 100))?;
    Ok(began.elapsed())
}

/// Runs one test with retries from each new prefix; three appliances run tests at the same time. Returns the number of
/// successful tests.
fn from_new_prefixes(ground: &Ground, tests: u32) -> u32 {
    let share = |nth: usize, appliance: &Appliance| {
        let mine = (0..tests as usize).filter(|test| test % ground.new.len() == nth);
        mine.filter(|test| passes_within(ground, appliance, ground.new_prefix(*test))).count()
    };
    let share = &share;
    let passed = std::thread::scope(|scope| {
        let threads = ground.new.iter().enumerate().map(|(nth, one)| scope.spawn(move || share(nth, one)));
        let threads = threads.collect::<Vec<_>>();
        threads.into_iter().map(|thread| thread.join().expect("a new prefix")).sum::<usize>()
    });
    u32::try_from(passed).unwrap_or(u32::MAX)
}

fn passes_within(ground: &Ground, appliance: &Appliance, from: IpAddr) -> bool {
    let began = Instant::now();
    let from = from.to_string();
    let test = [&TEST[..], &["--peer", &ground.address, "-B", &from]].concat();
    loop {
        let outcome = appliance.speed_test(&test);
        if outcome.code == 0 {
            return began.elapsed() <= NEW_WITHIN;
        }
        if began.elapsed() > NEW_WITHIN {
            eprintln!("new prefix, test: {}", outcome.json()["because"]);
            return false;
        }
    }
}

const _: () = assert!(NEW_PREFIXES >= 30);
