//! Cuts acknowledged lines off the audit log, and flips bits in it: `reflector audit verify` must detect each change.

use std::fs;

use anyhow::ensure;
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
    let states = runtime.block_on(Store::read_audit_chains(&state.join("reflector.db")))?;
    let folder = state.join("audit");
    let goes_unnoticed = || audit::verify(&folder, Some(&states)).is_ok();
    let verified = audit::verify(&folder, Some(&states))
        .map_err(|bad| anyhow::anyhow!("the unchanged log fails verification: {bad}"))?;
    ensure!(
        verified.iter().all(|chain| chain.lines > 0 && chain.segments == 1),
        "a chain does not consist of one file with lines: {verified:?}"
    );

    let mut measured = Measured::default();
    let (mut cuts, mut cuts_missed, mut flips_missed) = (0, 0, 0);
    let flips = scale.of(10_000, 500);
    let files = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    for file in &files {
        let whole = fs::read(file)?;
        for length in (0..whole.len()).step_by(scale.of(1, 20)) {
            fs::write(file, &whole[..length])?;
            cuts += 1;
            cuts_missed += u32::from(goes_unnoticed());
        }
        let bits = whole.len() * 8;
        for flip in 0..flips / files.len() {
            // The bits are spread over the file, and none is hit twice: a prime stride visits every offset of a length
            // that it does not divide.
            let bit = (flip * 1_000_003) % bits;
            let mut changed = whole.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            fs::write(file, &changed)?;
            flips_missed += u32::from(goes_unnoticed());
        }
        fs::write(file, &whole)?;
    }
    measured.note(format!("{} lines in {} files", verified.iter().map(|chain| chain.lines).sum::<u64>(), files.len()));
    measured.outcome(cuts_missed == 0, format!("{cuts_missed} of {cuts} truncations missed"));
    measured.outcome(flips_missed == 0, format!("{flips_missed} of {flips} flipped bits missed"));
    Ok(measured)
}
