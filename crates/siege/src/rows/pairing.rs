//! Pairing under attack: guesses from many addresses, races for one code, and a man in the middle.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use anyhow::Context;
use lab::{Appliance, Reflector};
use paramedic_link::SecretKey;
use paramedic_link::pairing_code::{Ends, PAIRING_EXPORTER_LABEL, PairingCode};
use paramedic_link::tls::{self, Alpn};
use rustls::{ServerConfig, ServerConnection};
use serde_json::{Value, json};

use crate::attack::{in_parallel, source};
use crate::measured::Measured;
use crate::scale::Scale;
use crate::target::Target;

/// The number of source addresses that guess pairing codes.
const GUESSERS: u32 = 1000;
const RACERS: usize = 32;
/// The number of reflectors with concurrent races. There are several because a reflector answers the losers of a race
/// only after a second.
const REFLECTORS: usize = 8;

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    guess(scale, &mut measured)?;
    race(scale, &mut measured)?;
    intercept(scale, &mut measured)?;
    Ok(measured)
}

/// Sends the proof of `code` on a link of `key`, and returns the answer.
fn prove(target: &Target, from: u32, key: &SecretKey, code: &PairingCode, wait: Option<&Barrier>) -> io::Result<Value> {
    let link = target.open(source(from), key, Alpn::Link);
    if let Some(barrier) = wait {
        barrier.wait();
    }
    let mut link = link?;
    let ends = Ends { reflector: target.id, appliance: key.id() };
    let proof = code.appliance_proof(&link.exporter(PAIRING_EXPORTER_LABEL, None), &ends);
    link.say(&json!({ "type": "pair", "versions": [1], "proof": proof, "name": "siege" }))?;
    Ok(link.hear()?.unwrap_or_default())
}

/// Guesses codes from many addresses: the part of the code that identifies the reflector is right, the secret is wrong.
/// Then enters the right code from another address.
fn guess(scale: Scale, measured: &mut Measured) -> anyhow::Result<()> {
    let count = scale.of(5000, 1100);
    let reflector = Reflector::serve(&[]);
    let target = Target::of(&reflector)?;
    let mut pairing = reflector.open_code(&["--ttl", "1h"]);
    let answers = in_parallel(160, count, |number| -> io::Result<Value> {
        let key = SecretKey::generate().map_err(io::Error::other)?;
        let code = PairingCode::generate(&target.id).map_err(io::Error::other)?;
        prove(&target, number % GUESSERS, &key, &code, None)
    });
    let not_paired = json!({ "type": "not_paired" });
    let refused = answers.iter().filter(|answer| answer.as_ref().is_ok_and(|answer| *answer == not_paired)).count();
    let paired = reflector.audited("peer_added").len();
    let others = others(&answers, &not_paired);
    measured.outcome(
        refused == answers.len(),
        format!("{refused} of {count} wrong codes answered with not_paired{others}"),
    );
    measured.outcome(paired == 0, format!("{paired} of them paired"));
    let right = Appliance::new().run(&["pair-reflector", "--peer", reflector.address(), "--code", &pairing.code]);
    let is_paired = right.code == 0 && pairing.command.wait(Duration::from_secs(10)).is_ok_and(|ended| ended.success());
    measured.outcome(is_paired, format!("then the right code {}", if is_paired { "pairs" } else { "does not pair" }));
    Ok(())
}

/// Describes the answers that differ from the expected one.
fn others(answers: &[io::Result<Value>], expected: &Value) -> String {
    let mut counts = BTreeMap::<String, usize>::new();
    for answer in answers {
        let text = match answer {
            Ok(answer) if answer == expected => continue,
            Ok(answer) => answer.to_string(),
            Err(error) => error.to_string(),
        };
        *counts.entry(text).or_default() += 1;
    }
    let texts = counts.iter().map(|(text, count)| format!("{count} × {text}")).collect::<Vec<_>>();
    if texts.is_empty() { String::new() } else { format!(" ({})", texts.join(", ")) }
}

/// Lets many keys prove the right code at the same moment: exactly one may be paired.
fn race(scale: Scale, measured: &mut Measured) -> anyhow::Result<()> {
    let races = scale.of(1000, 48);
    let reflectors = (0..REFLECTORS).map(|_| {
        let reflector = Reflector::serve(&[]);
        Ok((Target::of(&reflector)?, reflector))
    });
    let reflectors = reflectors.collect::<anyhow::Result<Vec<_>>>()?;
    // Each reflector has its own thread, because a reflector has one code at a time.
    let each = races / REFLECTORS as u32;
    let winners = in_parallel(REFLECTORS, REFLECTORS as u32, |nth| -> anyhow::Result<Vec<usize>> {
        let (target, reflector) = &reflectors[nth as usize];
        (0..each).map(|race| race_once(target, reflector, (nth * each + race) * RACERS as u32)).collect()
    });
    let winners = winners.into_iter().collect::<anyhow::Result<Vec<_>>>()?.concat();
    let exact = winners.iter().filter(|winners| **winners == 1).count();
    measured.outcome(
        exact == winners.len() && !winners.is_empty(),
        format!("{} races of {RACERS}: {exact} with exactly one winner", winners.len()),
    );
    let added = reflectors.iter().map(|(_, reflector)| reflector.audited("peer_added").len()).sum::<usize>();
    measured.outcome(added == winners.len(), format!("{added} peers added"));
    Ok(())
}

fn race_once(target: &Target, reflector: &Reflector, first: u32) -> anyhow::Result<usize> {
    let mut pairing = reflector.open_code(&[]);
    let code = pairing.code.parse::<PairingCode>().ok().context("the pairing code is not valid")?;
    let start = Barrier::new(RACERS);
    let answers = std::thread::scope(|scope| {
        let racers = (0..RACERS as u32).map(|racer| {
            let (start, code) = (&start, &code);
            scope.spawn(move || -> anyhow::Result<Value> {
                Ok(prove(target, first + racer, &SecretKey::generate()?, code, Some(start))?)
            })
        });
        let racers = racers.collect::<Vec<_>>();
        racers.into_iter().map(|racer| racer.join().expect("a racer")).collect::<Vec<_>>()
    });
    let answers = answers.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    pairing.command.wait(Duration::from_secs(30))?;
    Ok(answers.iter().filter(|answer| answer["type"] == "paired").count())
}

/// The bytes that a man in the middle received, decrypted and as on the wire.
#[derive(Debug, Default)]
struct Seen(Vec<u8>);

/// A socket whose received bytes are recorded.
struct Tee<'a>(TcpStream, &'a mut Seen);

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        self.1.0.extend_from_slice(&buffer[..read]);
        Ok(read)
    }
}

impl Write for Tee<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Serves one connection of the appliance as a man in the middle with its own key. Records everything that it receives,
/// and returns the decrypted part.
fn stand_between(socket: TcpStream, config: &Arc<ServerConfig>, seen: &mut Seen) -> io::Result<Vec<u8>> {
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut session = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
    let mut tee = Tee(socket, seen);
    session.complete_io(&mut tee)?;
    let mut clear = Vec::new();
    let _ = rustls::Stream::new(&mut session, &mut tee).read_to_end(&mut clear);
    Ok(clear)
}

fn intercept(scale: Scale, measured: &mut Measured) -> anyhow::Result<()> {
    let count = scale.of(500, 25);
    let reflector = Reflector::serve(&[]);
    let pairing = reflector.open_code(&["--ttl", "1h"]);
    let middle = TcpListener::bind("127.0.0.1:0")?;
    let config = tls::reflector_config(&SecretKey::generate()?)?;
    let (address, appliance) = (middle.local_addr()?, Appliance::new());
    let (all, clear) = (Mutex::new(Seen::default()), Mutex::new(0));
    let paired = std::thread::scope(|scope| {
        scope.spawn(|| {
            // The loop ends with the empty connection that is opened below.
            for socket in middle.incoming().filter_map(Result::ok) {
                let mut seen = Seen::default();
                let told = stand_between(socket, &config, &mut seen).unwrap_or_default();
                if seen.0.is_empty() {
                    return;
                }
                *clear.lock().expect("no panic") += told.len();
                let mut all = all.lock().expect("no panic");
                all.0.extend(told);
                all.0.extend(seen.0);
            }
        });
        let peer = address.to_string();
        let args = ["pair-reflector", "--peer", &peer, "--code", &pairing.code];
        let paired = (0..count).filter(|_| appliance.run(&args).code == 0).count();
        let _ = TcpStream::connect::<SocketAddr>(address);
        paired
    });
    let seen = all.into_inner().expect("no panic").0;
    let secrets = secrets_in(&seen, &pairing.code);
    let clear = clear.into_inner().expect("no panic");
    measured.outcome(paired == 0, format!("{count} interceptions: {paired} paired"));
    measured.outcome(seen.len() > count as usize * 100, format!("{} bytes seen", seen.len()));
    measured.outcome(clear == 0 && secrets == 0, format!("{clear} in clear, {secrets} parts of the code among them"));
    let added = reflector.audited("peer_added").len();
    measured.outcome(added == 0, format!("{added} peers added"));
    Ok(())
}

/// Counts how often two adjacent groups of the code, with or without a separator, occur in `seen`.
fn secrets_in(seen: &[u8], code: &str) -> usize {
    let groups = code.split('-').collect::<Vec<_>>();
    let parts = groups.windows(2).flat_map(|pair| [pair.join("-"), pair.concat(), pair.concat().to_lowercase()]);
    parts.map(|part| seen.windows(part.len()).filter(|window| *window == part.as_bytes()).count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_code_is_found_with_any_separator() {
        for text in ["..CDEF-GHJK..", "..CDEFGHJK", "ghjkmnpq"] {
            assert_eq!(secrets_in(text.as_bytes(), "1234-CDEF-GHJK-MNPQ"), 1, "{text}");
        }
        assert_eq!(secrets_in(b"GHJK alone, and CDEF", "1234-CDEF-GHJK-MNPQ"), 0);
    }
}
