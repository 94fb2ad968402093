//! Kills the reflector while it pairs, grants and writes: every acknowledged change must exist after the restart.

use std::time::{Duration, Instant};

use lab::Reflector;

use crate::books::{Books, Client, Loss};
use crate::measured::Measured;
use crate::scale::Scale;

/// The number of reflectors that are tested at the same time.
const REFLECTORS: u64 = 2;
/// The number of clients of each reflector.
const CLIENTS: usize = 3;
/// The number of kills after which a new reflector with a new state folder takes over. The audit log must stay short,
/// because all of it is read after each kill.
const KILLS_OF_ONE: u64 = 25;
/// The longest accepted time until the reflector serves again after a kill.
const READY: Duration = Duration::from_secs(1);

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    let kills = scale.of(1000, 50);
    let played = std::thread::scope(|scope| {
        let each = (0..REFLECTORS).map(|nth| scope.spawn(move || campaign(nth, kills / REFLECTORS)));
        let each = each.collect::<Vec<_>>();
        each.into_iter().map(|thread| thread.join().expect("a campaign")).collect::<anyhow::Result<Vec<_>>>()
    })?;
    let mut measured = Measured::default();
    let (mut loss, mut acknowledged, mut slowest) = (Loss::default(), 0, Duration::ZERO);
    for one in played {
        acknowledged += one.acknowledged;
        slowest = slowest.max(one.slowest);
        loss.lost += one.loss.lost;
        loss.disagree += one.loss.disagree;
        loss.grants_without_line += one.loss.grants_without_line;
        loss.broken += one.loss.broken;
        loss.details.extend(one.loss.details);
    }
    measured.note(format!("{kills} kills, {acknowledged} times acknowledged"));
    measured.outcome(acknowledged > kills, "the reflectors were busy when killed");
    measured.outcome(loss.lost == 0, format!("{} lost", loss.lost));
    measured.outcome(loss.disagree == 0, format!("store and log disagree on {} peers", loss.disagree));
    measured.outcome(loss.grants_without_line == 0, format!("{} grants without line", loss.grants_without_line));
    measured.outcome(loss.broken == 0, format!("{} broken logs", loss.broken));
    measured.time(scale, slowest <= READY, format!("ready after {slowest:.2?} at the latest"));
    loss.details.iter().take(3).for_each(|detail| measured.note(detail.clone()));
    Ok(measured)
}

struct Played {
    loss: Loss,
    acknowledged: u64,
    slowest: Duration,
}

fn campaign(nth: u64, kills: u64) -> anyhow::Result<Played> {
    let mut played = Played { loss: Loss::default(), acknowledged: 0, slowest: Duration::ZERO };
    for first in (0..kills).step_by(usize::try_from(KILLS_OF_ONE)?) {
        let mut reflector =
            Reflector::serve(&[("MAX_TESTS_PER_HOUR", "100000"), ("MAX_CONCURRENT_TESTS", "4"), ("LOG", "warn")]);
        let clients = (0..CLIENTS).map(|_| Client::paired_with(&reflector)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut books = Books::default();
        for kill in first..kills.min(first + KILLS_OF_ONE) {
            // The moments of the kills are spread over the duration of a round, and are the same in every siege.
            let after = Duration::from_micros(20_000 + ((nth * kills + kill) * 7919) % 300_000);
            let kept = std::thread::scope(|scope| {
                let works = clients.iter().map(|client| scope.spawn(|| until_gone(client))).collect::<Vec<_>>();
                // This sleep sets the moment of the kill; it does not wait for an event.
                std::thread::sleep(after);
                reflector.process().kill();
                works.into_iter().map(|work| work.join().expect("a client")).collect::<Vec<_>>()
            });
            kept.into_iter().for_each(|kept| books.merge(kept));
            let began = Instant::now();
            reflector.start()?;
            played.slowest = played.slowest.max(began.elapsed());
            books.check(&reflector, &clients[0], &mut played.loss)?;
        }
        played.acknowledged += books.len() as u64;
    }
    Ok(played)
}

/// Runs rounds of requests until the reflector has been killed. Returns the acknowledged changes.
fn until_gone(client: &Client) -> Books {
    let mut books = Books::default();
    while client.round(&mut books).is_ok() {}
    books
}
