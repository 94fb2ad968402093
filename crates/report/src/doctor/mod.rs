//! The diagnosis that the `doctor` command prints: problems of an installation that can be found without a measurement.
//! This module contains the document and the rules. Other crates read the facts from the host.

mod host;

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::document::ErrorBody;
use crate::self_test::{Role, WeakPoint};

pub use host::{Container, ContainerNetwork, Installation, StateFolderFacts, host_checks};

/// The format of the diagnosis document: its name and version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DiagnosisSchema {
    /// Version 1 of the format of the diagnosis document.
    #[default]
    #[serde(rename = "packetparamedic.doctor/1")]
    V1,
}

/// The diagnosis of an installation: the outcome of every check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Diagnosis {
    /// The format of the diagnosis document.
    pub schema: DiagnosisSchema,
    /// Which program was inspected: the reflector or the appliance.
    pub program: Role,
    /// The version of the inspected program.
    pub version: String,
    /// When the installation was inspected, by the host's clock (RFC 3339, UTC).
    pub at: Timestamp,
    /// The outcome of every check, problems first.
    pub checks: Vec<Check>,
}

/// One check and its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// A stable identifier for scripts, in lower case. It stays the same when the text changes.
    pub code: String,
    /// Whether the check passed, found a problem, or could not run.
    pub outcome: CheckOutcome,
    /// What the check found, or the name of a check that could not run.
    pub what: String,
    /// The cause of the problem, or the reason why the check could not run; absent if the check passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// How to fix the problem; absent if the check found no problem.
    #[serde(rename = "try", default, skip_serializing_if = "Option::is_none")]
    pub try_: Option<String>,
}

/// The outcome of a check. The variants are in the order of the report: problems first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckOutcome {
    /// The check found a problem.
    Problem,
    /// The check could not run.
    NotChecked,
    /// The check found no problem.
    Passed,
}

impl Check {
    /// A check that found no problem.
    pub fn passed(code: &str, what: impl Into<String>) -> Self {
        Self { code: code.to_owned(), outcome: CheckOutcome::Passed, what: what.into(), because: None, try_: None }
    }

    /// A check that found a problem: what was found, the cause, and how to fix the problem.
    pub fn problem(code: &str, what: impl Into<String>, because: impl Into<String>, try_: impl Into<String>) -> Self {
        let (because, try_) = (Some(because.into()), Some(try_.into()));
        Self { code: code.to_owned(), outcome: CheckOutcome::Problem, what: what.into(), because, try_ }
    }

    /// A check that could not run. `what` names the check; `because` is the reason.
    pub fn not_checked(code: &str, what: impl Into<String>, because: impl Into<String>) -> Self {
        let because = Some(because.into());
        Self { code: code.to_owned(), outcome: CheckOutcome::NotChecked, what: what.into(), because, try_: None }
    }
}

impl From<ErrorBody> for Check {
    fn from(error: ErrorBody) -> Self {
        Self::problem(&error.code, error.what, error.because, error.try_)
    }
}

impl From<WeakPoint> for Check {
    fn from(weak: WeakPoint) -> Self {
        Self::problem(&weak.code, weak.what, weak.because, weak.try_)
    }
}

impl Diagnosis {
    /// A diagnosis made at the time `at`. Sorts `checks`: problems first.
    pub fn new(program: Role, version: &str, at: Timestamp, mut checks: Vec<Check>) -> Self {
        checks.sort_by_key(|check| check.outcome);
        Self { schema: DiagnosisSchema::V1, program, version: version.to_owned(), at, checks }
    }

    /// The number of checks with the given outcome.
    pub fn count(&self, outcome: CheckOutcome) -> usize {
        self.checks.iter().filter(|check| check.outcome == outcome).count()
    }

    /// Whether at least one check found a problem.
    pub fn has_problem(&self) -> bool {
        self.count(CheckOutcome::Problem) > 0
    }
}

/// Prints the diagnosis as text for a human reader. The text ends without a newline.
impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [problems, not_checked, passed] =
            [CheckOutcome::Problem, CheckOutcome::NotChecked, CheckOutcome::Passed].map(|outcome| self.count(outcome));
        match problems {
            0 => write!(f, "No problem found")?,
            1 => write!(f, "1 problem found")?,
            many => write!(f, "{many} problems found")?,
        }
        write!(f, "; {passed} checks passed")?;
        if not_checked > 0 {
            write!(f, ", {not_checked} could not be made")?;
        }
        write!(f, ". `self-test` measures which rates this host can carry.")?;
        for check in &self.checks {
            match check.outcome {
                CheckOutcome::Problem => {
                    let (because, try_) = (check.because.as_deref(), check.try_.as_deref());
                    write!(f, "\n\nproblem: {}", check.what)?;
                    write!(f, "\nbecause: {}", because.unwrap_or_default())?;
                    write!(f, "\ntry: {}\n", try_.unwrap_or_default())?;
                }
                CheckOutcome::NotChecked => {
                    write!(f, "\nnot checked  {}: {}", check.what, check.because.as_deref().unwrap_or_default())?;
                }
                CheckOutcome::Passed => write!(f, "\nok           {}", check.what)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_stand_first_and_every_check_is_printed() {
        let checks = vec![
            Check::passed("a", "the clock is synchronised"),
            Check::not_checked("b", "the port", "the reflector is running"),
            Check::problem("c", "a small limit", "it is 64", "raise it"),
        ];
        let diagnosis = Diagnosis::new(Role::Reflector, "0.1.0", "2026-01-31T12:00:00Z".parse().unwrap(), checks);
        assert!(diagnosis.has_problem());
        assert_eq!(
            diagnosis.to_string(),
            "1 problem found; 1 checks passed, 1 could not be made. `self-test` measures which rates this host can \
             carry.\n\n\
             problem: a small limit\nbecause: it is 64\ntry: raise it\n\
             \nnot checked  the port: the reflector is running\nok           the clock is synchronised"
        );
        let json = serde_json::to_value(&diagnosis).unwrap();
        assert_eq!(json["schema"], "packetparamedic.doctor/1");
        assert_eq!(
            json["checks"][0],
            serde_json::json!({
                "code": "c", "outcome": "problem", "what": "a small limit", "because": "it is 64", "try": "raise it",
            })
        );
        assert_eq!(serde_json::from_value::<Diagnosis>(json).unwrap(), diagnosis);
    }
}
