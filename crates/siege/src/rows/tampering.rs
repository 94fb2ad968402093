//! Acknowledged lines of the audit log that are cut off, and bits of it that are flipped: each is noticed.

use std::fs;

use anyhow::{Context, ensure};
use lab::Reflector;
use reflector::audit;
use reflector::store::Store;

use crate::books::{Books, Client};
use crate::measured::Measured;
use crate::scale::Scale;

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    let mut reflector = Reflector::serve(&[]);
    let client = Client::paired_with(&reflector)?;
    for _ in 0..3 {
        client.round(&mut Books::default())?;
    }
    reflector.process().signal(rustix::process::Signal::TERM);
    reflector.process().wait(std::time::Duration::from_secs(30))?;
    let state = reflector.state();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let head = runtime.block_on(Store::read_audit_head(&state.join("reflector.db")))?;
    let folder = state.join("audit");
    let verified = audit::verify(&folder, head).map_err(|bad| anyhow::anyhow!("the log is whole: {bad}"))?;
    ensure!(verified.segments == 1 && head.is_some_and(|head| head.seq == verified.head.seq), "one file, all of it");
    let file = fs::read_dir(&folder)?.next().context("a file")??.path();
    let whole = fs::read(&file)?;

    let lengths = (0..whole.len()).step_by(scale.of(1, 20)).collect::<Vec<_>>();
    let mut cuts_missed = 0;
    for length in &lengths {
        fs::write(&file, &whole[..*length])?;
        cuts_missed += u32::from(audit::verify(&folder, head).is_ok());
    }
    let bits = whole.len() * 8;
    let flips = scale.of(10_000, 500);
    let mut flips_missed = 0;
    for flip in 0..flips {
        // All over the file, no bit twice: a prime is a stride of any length that it does not divide.
        let bit = (flip * 1_000_003) % bits;
        let mut changed = whole.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        fs::write(&file, &changed)?;
        flips_missed += u32::from(audit::verify(&folder, head).is_ok());
    }
    let mut measured = Measured::default();
    measured.note(format!("{} lines", verified.lines));
    measured.outcome(cuts_missed == 0, format!("{cuts_missed} of {} truncations missed", lengths.len()));
    measured.outcome(flips_missed == 0, format!("{flips_missed} of {flips} flipped bits missed"));
    Ok(measured)
}
