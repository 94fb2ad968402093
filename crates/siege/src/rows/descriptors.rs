//! Exhausts the reflector's file descriptors: it must not spin or fill its log, and must serve again at once
//! afterwards.

use std::time::{Duration, Instant};

use lab::Reflector;

use crate::attack::{Crowd, Until, source};
use crate::measured::Measured;
use crate::observe::{cpu, descriptors, logged, mib};
use crate::scale::Scale;
use crate::target::{HOME, Target, peer_of};

const LIMIT: u32 = 128;
const CONNECTIONS: usize = 500;
/// The largest share of a core that the reflector may use while it has no free descriptor.
const MOST_CPU: f64 = 0.10;
const MOST_LOG: u64 = 64 << 10;
/// The number of descriptors that the reflector must keep free for administration.
const KEPT: usize = 32;
const SERVES_AGAIN: Duration = Duration::from_secs(2);
const WATCHED: Duration = Duration::from_secs(4);

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    let mut reflector = Reflector::serve_with_few_files(LIMIT);
    let (target, key) = (Target::of(&reflector)?, peer_of(&reflector)?);
    let pid = reflector.process().pid();
    let written = logged(&reflector);
    let at = |n: usize| source(u32::try_from(n).unwrap_or(0));
    let crowd = Crowd { to: target.address, size: CONNECTIONS, source: &at, trickles: false };
    let until = Until::at_most(WATCHED * 4);
    let (used, most) = std::thread::scope(|scope| -> anyhow::Result<_> {
        let over = until.when_dropped();
        scope.spawn(|| crowd.press(&until));
        let (began, before) = (Instant::now(), cpu(pid)?);
        let mut most = 0;
        while began.elapsed() < WATCHED {
            most = descriptors(pid)?.max(most);
            std::thread::sleep(Duration::from_millis(50));
        }
        let used = (cpu(pid)? - before).as_secs_f64() / began.elapsed().as_secs_f64();
        drop(over);
        Ok((used, most))
    })?;
    // From this point on, all of the attacker's connections are closed.
    let closed = Instant::now();
    let mut last = None;
    let again = loop {
        match target.welcomed(HOME, &key) {
            Ok(_) => break Some(closed.elapsed()),
            Err(error) if closed.elapsed() < Duration::from_secs(30) => last = Some(error),
            Err(_) => break None,
        }
    };
    let written = logged(&reflector) - written;
    let mut measured = Measured::default();
    measured.outcome(
        most + KEPT <= LIMIT as usize,
        format!("limit {LIMIT}, {CONNECTIONS} connections, at most {most} descriptors in use"),
    );
    measured.time(scale, used <= MOST_CPU, format!("{:.1} % of a core", used * 100.0));
    match again {
        Some(after) => {
            measured.outcome(true, "serves again");
            measured.time(scale, after <= SERVES_AGAIN, format!("after {:.2} s", after.as_secs_f64()));
        }
        None => measured.outcome(false, format!("does not serve again within 30 s: {last:?}")),
    }
    measured.outcome(written <= MOST_LOG, format!("log and audit log grew by {}", mib(written)));
    Ok(measured)
}
