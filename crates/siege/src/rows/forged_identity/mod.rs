//! Forged identities of every known kind, at both ends: none may be accepted, and every unpaired key must receive the
//! same bytes after the same time.

mod false_reflector;
mod handshakes;

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lab::Reflector;
use paramedic_link::tls::Alpn;
use paramedic_link::{SecretKey, frame};
use serde_json::{Value, json};

use crate::attack::{in_parallel, source};
use crate::measured::Measured;
use crate::scale::Scale;
use crate::target::{HOME, Target, hello, peer_of, request};

/// The number of concurrent attempts: fewer than the unauthenticated connections that the reflector accepts at once.
const THREADS: usize = 128;
/// The largest accepted difference between the median answer times of two classes of unpaired clients.
const MOST_APART: Duration = Duration::from_millis(100);

/// The answer that an attempt received.
struct Got {
    /// The bytes that the reflector sent inside TLS, if any.
    bytes: Vec<u8>,
    /// The time from the first message to the end of the connection.
    took: Duration,
}

/// A kind of forgery: how it is attempted, and which answer is expected.
struct Kind {
    name: String,
    attempt: Box<dyn Fn(IpAddr) -> io::Result<Got> + Sync>,
    expected: Expected,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// The expected answer is exactly the frame that every unpaired key receives.
    NotPaired(Class),
    /// The expected answer has no byte inside TLS, or is exactly the frame that every unpaired key receives.
    Refused,
}

/// The classes of unpaired keys: a key that was never a peer, and the key of a removed peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    Unknown,
    Removed,
}

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    let tries = scale.of(100, 4);
    let reflector = Reflector::serve(&[]);
    let target = Target::of(&reflector)?;
    let (peer, removed) = (peer_of(&reflector)?, peer_of(&reflector)?);
    reflector.must(&["peers", "remove", &removed.id().to_string()]);
    let seed = || SecretKey::generate();
    let mut kinds = unpaired(target, Class::Unknown, seed()?);
    kinds.extend(unpaired(target, Class::Removed, removed));
    kinds.extend(handshakes::kinds(&reflector, target, peer)?);
    let links = || reflector.audited("link_opened").len();
    let before = links();
    let first = attempts(&kinds, tries / 2, 0);
    let code = reflector.open_code(&["--ttl", "1h"]);
    let second = attempts(&kinds, tries - tries / 2, tries / 2);
    drop(code);
    let opened = links() - before;
    let not_paired = frame::encode(&json!({ "type": "not_paired" })).map_err(io::Error::other)?;
    let (mut accepted, mut differing, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for (kind, got) in first.iter().chain(&second) {
        match (&kinds[*kind].expected, got) {
            (Expected::NotPaired(_), Ok(got)) if got.bytes == not_paired => {}
            (Expected::NotPaired(_), Ok(got)) if got.bytes.is_empty() => differing.push(&kinds[*kind].name),
            (Expected::NotPaired(_), Err(_)) => failed.push(&kinds[*kind].name),
            (Expected::Refused, Ok(got)) if got.bytes.is_empty() || got.bytes == not_paired => {}
            (Expected::Refused, Err(_)) => {}
            _ => accepted.push(&kinds[*kind].name),
        }
    }
    let mut measured = Measured::default();
    let count = first.len() + second.len();
    measured.outcome(
        accepted.is_empty() && opened == 0,
        format!(
            "{} kinds, {count} attempts at the reflector: {} accepted, {opened} links{}",
            kinds.len(),
            accepted.len(),
            named(&accepted)
        ),
    );
    let answers = differing.len() + failed.len();
    let which = format!("{}{}", named(&differing), named(&failed));
    measured.outcome(answers == 0, format!("{answers} unpaired keys got anything but the one same answer{which}"));
    tell_times(scale, &kinds, [&first, &second], &mut measured);
    false_reflector::play(scale, &reflector, &mut measured)?;
    Ok(measured)
}

type Attempts = Vec<(usize, io::Result<Got>)>;

fn attempts(kinds: &[Kind], tries: u32, before: u32) -> Attempts {
    let count = u32::try_from(kinds.len()).unwrap_or(u32::MAX);
    in_parallel(THREADS, count * tries, |number| {
        let kind = (number % count) as usize;
        (kind, (kinds[kind].attempt)(source(before * count + number)))
    })
}

fn named(kinds: &[&String]) -> String {
    let mut names = kinds.iter().map(|name| name.as_str()).collect::<Vec<_>>();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) }
}

/// Reports the median answer time of each class, without and with an open pairing code.
fn tell_times(scale: Scale, kinds: &[Kind], forms: [&Attempts; 2], measured: &mut Measured) {
    let mut medians = Vec::new();
    for attempts in forms {
        for class in [Class::Unknown, Class::Removed] {
            let of_class = attempts.iter().filter(|(kind, _)| kinds[*kind].expected == Expected::NotPaired(class));
            let mut times = of_class.filter_map(|(_, got)| Some(got.as_ref().ok()?.took)).collect::<Vec<_>>();
            times.sort();
            medians.extend(times.get(times.len() / 2).copied());
        }
    }
    let apart = medians.iter().max().zip(medians.iter().min()).map_or(Duration::MAX, |(max, min)| *max - *min);
    let text = medians.iter().map(|median| format!("{:.3} s", median.as_secs_f64())).collect::<Vec<_>>().join(", ");
    measured.time(
        scale,
        apart <= MOST_APART,
        format!("answered after {text} (unknown and removed key, without and with an open code)"),
    );
}

/// Attempts of an unpaired key with every kind of first message.
fn unpaired(target: Target, class: Class, key: SecretKey) -> Vec<Kind> {
    let key = std::sync::Arc::new(key);
    let kinds = first_messages().into_iter().map(|(name, message)| {
        let key = key.clone();
        let attempt = move |from| {
            let mut link = target.open(from, &key, Alpn::Link)?;
            let began = Instant::now();
            link.say(&message)?;
            Ok(Got { bytes: link.hear_out()?, took: began.elapsed() })
        };
        let name = format!("{class:?} key says {name}").to_lowercase();
        Kind { name, attempt: Box::new(attempt), expected: Expected::NotPaired(class) }
    });
    kinds.collect()
}

fn first_messages() -> Vec<(&'static str, Value)> {
    let pair = |proof: &str| json!({ "type": "pair", "versions": [1], "proof": proof, "name": "siege" });
    vec![
        ("hello", hello()),
        ("hello of two versions", json!({ "type": "hello", "versions": [1, 2], "software": "9.9.9" })),
        ("hello of no version", json!({ "type": "hello", "versions": [], "software": "" })),
        ("pair with zeros", pair(&"00".repeat(32))),
        ("pair with ones", pair(&"ff".repeat(32))),
        ("request", request("tunneled", 1000)),
        ("withdraw", json!({ "type": "withdraw" })),
        ("start", json!({ "type": "start", "phase": 0 })),
        ("finish", json!({ "type": "finish" })),
        ("facts", json!({ "type": "facts" })),
        ("ping", json!({ "type": "ping" })),
        ("close", json!({ "type": "close", "reason": "siege" })),
        ("an unknown message", json!({ "type": "new" })),
    ]
}

/// Sends `hello` with this configuration, and returns the answer.
fn says_hello(target: Target, from: IpAddr, config: &std::sync::Arc<rustls::ClientConfig>) -> io::Result<Got> {
    let socket = crate::attack::connect_from(from, target.address)?;
    let mut link = lab::hostile::AsAppliance::over_with(socket, config.clone())?;
    let began = Instant::now();
    link.say(&hello())?;
    Ok(Got { bytes: link.hear_out()?, took: began.elapsed() })
}

/// Opens a real link from the address of the peer; the caller records the bytes of the link.
fn genuine(target: Target, peer: &SecretKey) -> io::Result<()> {
    target.welcomed(HOME, peer).map(drop)
}
