//! Causes very many refusals: log and audit log must stay small, and the reflector must count every refusal.

use std::io::{Read, Write};

use lab::Reflector;

use crate::attack::{connect_from, in_parallel, source};
use crate::measured::Measured;
use crate::observe::{logged, mib};
use crate::scale::Scale;
use crate::target::{Target, refusals};

/// The number of concurrent connections: fewer than the unauthenticated ones that the reflector accepts at once.
const THREADS: usize = 16;
/// The largest accepted growth of log and audit log together, in bytes.
const MOST: u64 = 1 << 20;

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    let count = scale.of(200_000, 10_000);
    let reflector = Reflector::serve(&[]);
    let target = Target::of(&reflector)?;
    let (counted, written) = (refusals(&reflector), logged(&reflector));
    let began = std::time::Instant::now();
    let refused = in_parallel(THREADS, count, |number| {
        let Ok(mut stream) = connect_from(source(number), target.address) else { return false };
        // Ignore the error: the reflector may reset the connection before everything is written.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: reflector\r\n\r\n");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        // The answer is at most a TLS alert.
        answer.len() <= 16
    });
    let rate = f64::from(count) / began.elapsed().as_secs_f64();
    let closed = refused.iter().filter(|was_refused| **was_refused).count();
    let counted = refusals(&reflector) - counted;
    let written = logged(&reflector) - written;
    let mut measured = Measured::default();
    measured.outcome(closed == refused.len(), format!("{closed} of {count} connections refused"));
    measured.outcome(counted == u64::from(count), format!("{counted} counted"));
    measured.outcome(written <= MOST, format!("log and audit log grew by {}", mib(written)));
    let whole = reflector.run(&["audit", "verify"]).code;
    measured.outcome(whole == 0, format!("audit verify: exit code {whole}"));
    measured.note(format!("{rate:.0} refusals/s"));
    Ok(measured)
}
