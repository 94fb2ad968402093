//! `reflector audit verify`: checks every line of the audit log. Does not need a running reflector.

use std::collections::BTreeMap;

use clap::Subcommand;

use super::load;
use super::output::print_line;
use super::state::with_state_as_it_is;
use crate::audit::{self, Beginning, ChainState, Unacknowledged};
use crate::config::{Config, PlaceFlags};
use crate::failure::{Exit, Failure};
use crate::store::{Store, StoreError};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Check every line of the audit log; works without a running reflector. Exit codes: 0 if the log is intact, 1 if
    /// lines are missing or were changed, 3 if it is intact but begins after line 1, because it was trimmed or started
    /// again
    Verify {
        #[command(flatten)]
        place: PlaceFlags,
    },
}

pub(super) fn run(command: &Command) -> Result<Exit, Failure> {
    let Command::Verify { place } = command;
    verify(&with_state_as_it_is(load(&place.values)?))
}

fn verify(config: &Config) -> Result<Exit, Failure> {
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::new(
            Exit::Failed,
            "audit_unreadable",
            "the audit log can't be checked",
            error,
            "run this command as the user of the reflector, with its --state-dir",
        )
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| unusable(&error))?;
    let read_states = || {
        let states = runtime.block_on(Store::read_audit_chains(&config.database()));
        states.map_err(|error| match error {
            StoreError::Damaged { .. } | StoreError::Newer { .. } => error.into(),
            _ => unusable(&error),
        })
    };
    let mut states = read_states()?;
    let verified = loop {
        match audit::verify(&config.audit_dir(), Some(&states)) {
            Ok(verified) => break verified,
            Err(bad) => {
                // A running reflector may have trimmed the log since.
                let now = read_states()?;
                let bases =
                    |states: &BTreeMap<_, ChainState>| states.values().map(|state| state.base).collect::<Vec<_>>();
                if bases(&now) != bases(&states) {
                    states = now;
                    continue;
                }
                return Err(Failure::new(
                    Exit::Failed,
                    "audit_broken",
                    "the audit log was changed",
                    bad,
                    "restore the audit log from a backup; the lines before the first bad line are intact",
                ));
            }
        }
    };
    let mut exit = Exit::Done;
    for (name, chain) in ["the audit log is", "its refusals are"].into_iter().zip(verified) {
        let counted = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let at_hand = format!("{} in {}", counted(chain.lines, "line"), counted(chain.segments, "file"));
        let since = match chain.begins {
            Beginning::First => None,
            Beginning::BegunAnew(line) => {
                Some((line, "the log was started again there, and the earlier one was moved away"))
            }
            Beginning::Trimmed(line) => Some((line, "earlier lines were trimmed to keep within audit_max_size")),
        };
        let tail = match chain.unacknowledged {
            Unacknowledged { bytes: 0, .. } => String::new(),
            Unacknowledged { bytes, lines, .. } => {
                let bytes = counted(bytes, "byte");
                format!("; {bytes} after its acknowledged end, with {}", counted(lines, "complete line"))
            }
        };
        match since {
            None => print_line(&format!("{name} whole: {at_hand}{tail}")),
            Some((line, why)) => {
                exit = Exit::WholeSince;
                print_line(&format!("{name} whole since line {line}: {at_hand}; {why}{tail}"));
            }
        }
    }
    Ok(exit)
}
