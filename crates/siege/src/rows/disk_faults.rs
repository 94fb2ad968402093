//! Lets writes, syncs and truncations fail, one at a time and in runs, in every file that the reflector writes; then
//! kills and restarts the reflector.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::Reflector;
use rustix::io::Errno;

use crate::books::{Books, Client, Loss};
use crate::measured::Measured;
use crate::scale::Scale;

/// The source of a preloaded library that counts system calls and makes some of them fail.
const LIBRARY: &str = include_str!("faults.c");
/// The number of reflectors that are tested at the same time.
const REFLECTORS: usize = 4;
/// The number of faults after which a new reflector with a new state folder takes over. The audit log must stay short,
/// because all of it is read after each fault.
const FAULTS_OF_ONE: usize = 20;
/// The longest accepted time until the reflector serves again after a fault.
const SERVES_AGAIN: Duration = Duration::from_secs(5);
/// The number of rounds of requests within which the failing calls of a fault must occur.
const ROUNDS: u32 = 12;

/// A run of consecutive system calls that fail.
#[derive(Clone, Copy, Debug)]
struct Fault {
    from: u64,
    calls: u64,
    error: Errno,
    /// Whether calls fail until the check ends the fault. If true, the check requests no write afterwards: the
    /// reflector must detect by itself that it can write again.
    stays: bool,
}

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    let folder = tempfile::tempdir()?;
    let Some(library) = build(folder.path())? else {
        return Ok(Measured::skipped("no C compiler (cc) for the library that lets calls fail"));
    };
    let faults = faults(scale);
    let began = Instant::now();
    let campaigns = std::thread::scope(|scope| {
        let each = faults.chunks(faults.len().div_ceil(REFLECTORS)).map(|faults| {
            let library = &library;
            scope.spawn(move || campaign(library, faults))
        });
        let each = each.collect::<Vec<_>>();
        each.into_iter().map(|thread| thread.join().expect("a campaign")).collect::<anyhow::Result<Vec<_>>>()
    })?;
    let mut all = Played::default();
    campaigns.into_iter().for_each(|one| all.add(one));
    let mut measured = Measured::default();
    measured.note(format!("{} faults in {} s, {} steps refused", faults.len(), began.elapsed().as_secs(), all.refused));
    measured.outcome(all.reached == faults.len(), format!("{} reached", all.reached));
    measured.outcome(all.loss.lost == 0, format!("{} acknowledged rows lost", all.loss.lost));
    let unlogged = all.loss.grants_without_line;
    measured.outcome(unlogged == 0, format!("{unlogged} grants without line"));
    measured.outcome(all.loss.disagree == 0, format!("store and log disagree on {} peers", all.loss.disagree));
    measured.outcome(all.loss.broken == 0, format!("{} broken logs", all.loss.broken));
    measured.outcome(all.not_started == 0, format!("{} refused to start", all.not_started));
    measured.outcome(all.untruthful == 0, format!("{} times healthy while writes failed", all.untruthful));
    measured.outcome(all.not_healed == 0, format!("{} did not serve again", all.not_healed));
    let slowest = all.slowest;
    measured.time(scale, slowest <= SERVES_AGAIN, format!("serving again after {slowest:.1?} at the latest"));
    all.loss.details.iter().take(3).for_each(|detail| measured.note(detail.clone()));
    Ok(measured)
}

/// The faults of the test: each of the first 300 calls with each error, then runs of two to six failing calls that
/// begin at each of these calls, then lasting faults. The short form has a selection of each kind.
fn faults(scale: Scale) -> Vec<Fault> {
    let errors = [Errno::IO, Errno::NOSPC];
    let step = scale.of(1, 40);
    let calls = (0..300).step_by(step);
    let single = calls.clone().flat_map(|from| errors.map(|error| Fault { from, calls: 1, error, stays: false }));
    let runs = calls.map(|from| Fault {
        from,
        calls: 2 + from % 5,
        error: errors[usize::try_from(from % 2).expect("0 or 1")],
        stays: false,
    });
    let stay = (0..300).step_by(step * 15).map(|from| Fault {
        from,
        calls: u64::MAX / 2,
        error: errors[usize::try_from(from / 15 % 2).expect("0 or 1")],
        stays: true,
    });
    let short = scale == Scale::Short;
    single
        .enumerate()
        .filter(|(nth, _)| !short || nth % 2 == nth / 2 % 2)
        .map(|(_, fault)| fault)
        .chain(runs)
        .chain(stay)
        .collect()
}

#[derive(Default)]
struct Played {
    loss: Loss,
    reached: usize,
    refused: u64,
    not_started: u64,
    untruthful: u64,
    not_healed: u64,
    slowest: Duration,
}

impl Played {
    fn add(&mut self, one: Played) {
        self.loss.lost += one.loss.lost;
        self.loss.disagree += one.loss.disagree;
        self.loss.grants_without_line += one.loss.grants_without_line;
        self.loss.broken += one.loss.broken;
        self.loss.details.extend(one.loss.details);
        self.reached += one.reached;
        self.refused += one.refused;
        self.not_started += one.not_started;
        self.untruthful += one.untruthful;
        self.not_healed += one.not_healed;
        self.slowest = self.slowest.max(one.slowest);
    }
}

/// The file through which the test shares numbers with the library.
struct Control(File);

impl Control {
    fn at(path: &Path) -> anyhow::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        file.set_len(32)?;
        Ok(Self(file))
    }

    fn set(&self, fault: Option<Fault>) -> anyhow::Result<()> {
        let (from, to, error) =
            fault.map_or((0, 0, 0), |fault| (fault.from, fault.from + fault.calls, fault.error.raw_os_error()));
        // Setting the numbers to zero first ensures that no call fails while they change.
        self.0.write_all_at(&[0; 24], 0)?;
        self.0.write_all_at(&u64::try_from(error)?.to_ne_bytes(), 24)?;
        self.0.write_all_at(&from.to_ne_bytes(), 8)?;
        self.0.write_all_at(&to.to_ne_bytes(), 16)?;
        Ok(())
    }

    fn calls(&self) -> anyhow::Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, 0)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

fn build(folder: &Path) -> anyhow::Result<Option<PathBuf>> {
    let (source, library) = (folder.join("faults.c"), folder.join("faults.so"));
    fs::write(&source, LIBRARY)?;
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
    match built {
        Ok(status) => {
            ensure!(status.success(), "cc cannot compile faults.c: see its output above");
            Ok(Some(library))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn campaign(library: &Path, faults: &[Fault]) -> anyhow::Result<Played> {
    let mut played = Played::default();
    for faults in faults.chunks(FAULTS_OF_ONE) {
        let reflector =
            Reflector::idle(&[("MAX_TESTS_PER_HOUR", "100000"), ("MAX_CONCURRENT_TESTS", "4"), ("LOG", "warn")]);
        let path = reflector.home().join("faults");
        let control = Control::at(&path)?;
        let mut reflector = reflector
            .with_variable("LD_PRELOAD", library.to_str().context("the path of the library is not UTF-8")?)
            .with_variable("FAULTS_CONTROL", path.to_str().context("the path of the control file is not UTF-8")?);
        let state = reflector.state();
        reflector = reflector
            .with_variable("FAULTS_FOLDER", state.to_str().context("the path of the state folder is not UTF-8")?);
        reflector.start()?;
        let client = Client::paired_with(&reflector)?;
        let mut books = Books::default();
        for fault in faults {
            inject(*fault, &control, &client, &mut books, &mut played)?;
            reflector.process().kill();
            if let Err(error) = reflector.start() {
                played.not_started += 1;
                played.loss.details.push(format!("{fault:?}: {error:#}: {}", reflector.log()));
                break;
            }
            let before = played.loss.details.len();
            books.check(&reflector, &client, &mut played.loss)?;
            for detail in &mut played.loss.details[before..] {
                *detail = format!("{fault:?}: {detail}");
            }
        }
    }
    Ok(played)
}

fn inject(
    fault: Fault,
    control: &Control,
    client: &Client,
    books: &mut Books,
    played: &mut Played,
) -> anyhow::Result<()> {
    control.set(Some(fault))?;
    let mut was_refused = 0;
    for _ in 0..ROUNDS {
        was_refused = client.round(books)?;
        played.refused += u64::from(was_refused);
        if control.calls()? >= fault.from.saturating_add(fault.calls) || fault.stays && was_refused > 0 {
            break;
        }
    }
    played.reached += usize::from(control.calls()? > fault.from);
    if fault.stays && was_refused > 0 {
        // The reflector has detected that it cannot write.
        let status = client.status()?;
        if status["state"] != "faulted" || status["problems"].as_array().is_none_or(Vec::is_empty) {
            played.untruthful += 1;
            played.loss.details.push(format!("{fault:?}: {status}"));
        }
    }
    control.set(None)?;
    let began = Instant::now();
    if !fault.stays {
        // The next successful write ends the fault.
        client.round(books)?;
    }
    while client.status()?["state"] != "serving" {
        if began.elapsed() > 4 * SERVES_AGAIN {
            played.not_healed += 1;
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    played.slowest = played.slowest.max(began.elapsed());
    // A healthy reflector must complete every step.
    if client.round(books)? > 0 {
        played.untruthful += 1;
        played.loss.details.push(format!("{fault:?}: healthy, and refused"));
    }
    Ok(())
}
