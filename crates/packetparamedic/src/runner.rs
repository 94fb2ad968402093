//! One heavy test at a time: asks a provider, judges what was asked of the result, records it. Prints nothing.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::document::ResultDocument;
use crate::failure::{Exit, Failure};
use crate::history::History;
use crate::providers::{Provider, TestOrder, Watch};
use crate::thresholds::Thresholds;

/// How a run ended.
pub struct Run {
    /// What was measured, judged; also where it failed half way.
    pub measured: Option<ResultDocument>,
    /// Why the test is not complete.
    pub failure: Option<Failure>,
    /// Why what was measured could not be saved.
    pub unsaved: Option<Failure>,
}

/// Runs one test, and saves what was measured.
pub async fn run(
    provider: &dyn Provider,
    order: &TestOrder,
    thresholds: &Thresholds,
    history: &History,
    watch: &mut Watch,
) -> Run {
    let outcome = provider.run(order, watch).await;
    let mut unsaved = None;
    let measured = match outcome.measured {
        Some(mut result) => {
            result.thresholds = thresholds.judge(&result);
            unsaved = history.save_run(&result).await.err().map(Failure::from);
            Some(result)
        }
        None => None,
    };
    Run { measured, failure: outcome.failure, unsaved }
}

/// Held while a test runs: two at once would measure each other. The kernel lets go of it, whatever becomes of us.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held for its lock")] File);

impl Turn {
    /// Takes the turn of this state folder's appliance; `None` where another test has it.
    pub fn take(state_dir: &Path) -> Result<Option<Self>, Failure> {
        let file = Self::open(state_dir)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(unusable(state_dir, &error)),
        }
    }

    /// Waits for the turn.
    pub async fn wait(state_dir: &Path) -> Result<Self, Failure> {
        let file = Self::open(state_dir)?;
        let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
        let file = locked.map_err(io::Error::other).and_then(|locked| locked).map_err(|e| unusable(state_dir, &e))?;
        Ok(Self(file))
    }

    fn open(state_dir: &Path) -> Result<File, Failure> {
        let path = state_dir.join("test.lock");
        File::options().create(true).truncate(false).write(true).open(path).map_err(|e| unusable(state_dir, &e))
    }
}

fn unusable(state_dir: &Path, error: &io::Error) -> Failure {
    Failure::new(
        Exit::Usage,
        "state_dir_unusable",
        "cannot use the state folder",
        error.to_string(),
        format!("may this user write to {}? Another folder can be named with --state-dir", state_dir.display()),
    )
}

/// Another test of this appliance runs, and the person would not wait.
pub fn busy_here() -> Failure {
    Failure::new(
        Exit::Busy,
        "busy_here",
        "a test is running on this device already",
        "two at once would measure each other",
        "wait for it: leave --no-wait out, or a longer --wait",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_test_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let turn = Turn::take(folder.path()).unwrap().unwrap();
        assert!(Turn::take(folder.path()).unwrap().is_none());
        drop(turn);
        assert!(Turn::take(folder.path()).unwrap().is_some());
    }
}
