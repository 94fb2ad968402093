//! How a command fails: what failed, because of what, what to try, and the exit code that scripts read. Never prints.

use std::fmt;
use std::ops::{Deref, DerefMut};

use paramedic_engines::engine::Unavailable;
use paramedic_report::document::{ErrorDocument, ResultDocument};

use crate::{store, targets};

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The test failed, or the reflector was not reached.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// Measured, but below a threshold that was asked for.
    BelowThreshold = 3,
    /// Not paired, or denied for good.
    Denied = 4,
    /// Busy or out of quota: worth a retry.
    Busy = 5,
    /// Interrupted by the person at the keyboard.
    Interrupted = 130,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failed command. Prints as three lines.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The text and the exit code.
    cause: paramedic_host::failure::Failure<Exit>,
    /// What was measured before the failure.
    pub measured_so_far: Option<Box<ResultDocument>>,
}

impl Deref for Failure {
    type Target = paramedic_host::failure::Failure<Exit>;

    fn deref(&self) -> &Self::Target {
        &self.cause
    }
}

impl DerefMut for Failure {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.cause
    }
}

impl Failure {
    /// The code of a failure that is none: whoever read our output has gone. Nobody is told of it.
    pub const READER_GONE: &'static str = "reader_gone";

    /// A failure.
    pub fn new(
        exit: Exit,
        code: &'static str,
        what: impl Into<String>,
        because: impl fmt::Display,
        try_: impl Into<String>,
    ) -> Self {
        let cause = paramedic_host::failure::Failure::new(exit, code, what, because, try_);
        Self { cause, measured_so_far: None }
    }

    /// This host has not what an engine needs.
    pub fn lacking(engine: &str, lacking: &Unavailable) -> Self {
        let what = format!("cannot run {engine} on this device");
        Self::new(Exit::Usage, "engine_lacking", what, &*lacking.because, &*lacking.hint)
    }

    /// There is no such provider or engine.
    pub fn no_such(what: &str, wanted: &str) -> Self {
        Self::new(
            Exit::Usage,
            "bad_usage",
            format!("there is no {what} {wanted}"),
            "the configuration or the command line names one that this version does not have",
            "`packetparamedic speed-test --help` lists them",
        )
    }

    /// Says when asking again makes sense, in milliseconds from now.
    pub fn retry_after(mut self, ms: Option<u64>) -> Self {
        self.retry_after_ms = ms;
        self
    }

    /// Adds what was measured before it failed.
    pub fn measured(mut self, so_far: ResultDocument) -> Self {
        self.measured_so_far = Some(Box::new(so_far));
        self
    }

    /// The error document.
    pub fn document(&self) -> ErrorDocument {
        self.cause.document(self.measured_so_far.clone())
    }

    /// Whether there is nobody left to tell.
    pub fn is_quiet(&self) -> bool {
        self.code == Self::READER_GONE
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.cause, f)
    }
}

impl std::error::Error for Failure {}

impl From<targets::NotATarget> for Failure {
    fn from(error: targets::NotATarget) -> Self {
        let what = format!("cannot understand the address {}", error.text);
        Self::new(Exit::Usage, "bad_address", what, error.fault.to_string(), error.fault.remedy())
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        use store::Error as E;
        let because = error.to_string();
        let fail = |exit, code, what: &str, try_: String| Self::new(exit, code, what, because.clone(), try_);
        match &error {
            E::Folder { path, .. } => fail(
                Exit::Usage,
                "state_dir_unusable",
                "cannot use the state folder",
                format!("may this user write to {}? Another folder can be named with --state-dir", path.display()),
            ),
            E::Corrupt { path } => fail(
                Exit::Failed,
                "history_corrupt",
                "cannot read the saved pairings and results",
                format!("nothing was overwritten: move {} away or restore it from a backup", path.display()),
            ),
            E::Newer { .. } => fail(
                Exit::Usage,
                "history_newer",
                "cannot read the saved pairings and results",
                "use the newer packetparamedic that wrote them".to_owned(),
            ),
            E::Altered { path, .. } => fail(
                Exit::Failed,
                "history_altered",
                "cannot read the saved pairings and results",
                format!("use the packetparamedic that wrote {}", path.display()),
            ),
            E::Full { path, .. } => {
                fail(Exit::Failed, "disk_full", "cannot save", format!("make room on the disk of {}", path.display()))
            }
            E::Locked { .. } => fail(
                Exit::Busy,
                "history_busy",
                "cannot use the saved pairings and results",
                "again in a moment; is another packetparamedic busy with them?".to_owned(),
            ),
            E::ReadOnly { path, .. } => fail(
                Exit::Usage,
                "state_dir_unusable",
                "cannot save",
                format!("may this user write to {}?", path.display()),
            ),
            E::NameTaken { .. } | E::NoName => {
                fail(Exit::Usage, "bad_name", "cannot use that name", "another name".to_owned())
            }
            E::NoSuchReflector { .. } => fail(
                Exit::Denied,
                "not_paired",
                "no such reflector",
                "`packetparamedic reflectors` lists them, `packetparamedic pair-reflector` adds one".to_owned(),
            ),
            E::AmbiguousReflector { .. } => fail(
                Exit::Usage,
                "ambiguous",
                "cannot tell which reflector is meant",
                "its Endpoint ID, which is unique".to_owned(),
            ),
            E::NoSuchRun { .. } => {
                fail(Exit::Failed, "no_such_run", "no such run", "`packetparamedic history` lists them".to_owned())
            }
            E::AmbiguousRun { .. } => {
                fail(Exit::Usage, "ambiguous", "cannot tell which run is meant", "more digits of its id".to_owned())
            }
            E::Document { .. } => fail(
                Exit::Failed,
                "history_unreadable",
                "cannot understand a saved result",
                "`packetparamedic history show ID --json` prints it as it was saved".to_owned(),
            ),
            E::Sql { .. } => fail(
                Exit::Failed,
                "history_failed",
                "cannot use the saved pairings and results",
                "is the disk of the state folder in order?".to_owned(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::example;
    use sqlx::migrate::MigrateError;

    use super::*;
    use crate::targets::Target;

    fn unreachable() -> Failure {
        Failure::new(
            Exit::Failed,
            "unreachable",
            "cannot reach reflector at 203.0.113.7:4000",
            "connection refused",
            "is `reflector serve` running there, is TCP 4000 open?",
        )
    }

    #[test]
    fn a_failure_says_three_things() {
        assert_eq!(
            unreachable().to_string(),
            "cannot reach reflector at 203.0.113.7:4000\n\
             because: connection refused\n\
             try: is `reflector serve` running there, is TCP 4000 open?"
        );
    }

    fn failures() -> Vec<(&'static str, Failure)> {
        use store::Error as E;
        let path = || "/state/packetparamedic.db".into();
        let other = || std::io::Error::other("some reason");
        let wanted = || "attic".to_owned();
        let own = vec![
            ("no such provider", Failure::no_such("provider", "nonesuch")),
            ("no such engine", Failure::no_such("engine", "nonesuch")),
            ("address", Target::parse("https://attic", 4000).unwrap_err().into()),
            ("database: folder", E::Folder { path: "/state".into(), source: other() }.into()),
            ("database: corrupt", E::Corrupt { path: path() }.into()),
            ("database: newer", E::Newer { path: path(), migration: 99 }.into()),
            ("database: altered", E::Altered { path: path(), source: MigrateError::Dirty(1).into() }.into()),
            ("database: full", E::Full { doing: "saving the run", path: path() }.into()),
            ("database: locked", E::Locked { doing: "saving the run" }.into()),
            ("database: read-only", E::ReadOnly { doing: "saving the run", path: path() }.into()),
            ("name taken", E::NameTaken { name: wanted() }.into()),
            ("no name", E::NoName.into()),
            ("no such reflector", E::NoSuchReflector { wanted: wanted() }.into()),
            (
                "ambiguous reflector",
                E::AmbiguousReflector { wanted: wanted(), names: vec!["a".into(), "b".into()] }.into(),
            ),
            ("no such run", E::NoSuchRun { wanted: wanted() }.into()),
            ("ambiguous run", E::AmbiguousRun { wanted: wanted() }.into()),
            ("unreadable result", E::Document { source: serde_json::from_str::<u8>("x").unwrap_err() }.into()),
            ("database: other", E::Sql { doing: "saving the run", source: sqlx::Error::PoolClosed }.into()),
        ];
        let modules = [crate::app::failures(), crate::test_lock::failures(), crate::reflector_client::failures()];
        [own, modules.concat(), crate::providers::failures()].concat()
    }

    #[test]
    fn every_cause_has_its_text_code_and_exit() {
        let table = failures().into_iter().map(|(cause, failure)| {
            let retry = failure.retry_after_ms.map(|ms| format!("retry after {ms} ms\n")).unwrap_or_default();
            format!("[{cause}] {} exit {}\n{failure}\n{retry}\n", failure.code, failure.exit as u8)
        });
        let table = table.collect::<String>();
        let expected = include_str!("failures.txt");
        assert_eq!(table, expected);
    }

    #[test]
    fn every_exit_has_the_code_that_scripts_rely_on() {
        use Exit::{BelowThreshold, Busy, Denied, Done, Failed, Interrupted, Usage};
        let codes = [Done, Failed, Usage, BelowThreshold, Denied, Busy, Interrupted].map(|exit| exit as u8);
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 130]);
    }

    #[test]
    fn the_error_document_carries_what_was_measured_and_nothing_absent() {
        let bare = serde_json::to_value(unreachable().document()).unwrap();
        assert_eq!(
            bare,
            serde_json::json!({
                "schema": "packetparamedic.error/1",
                "code": "unreachable",
                "what": "cannot reach reflector at 203.0.113.7:4000",
                "because": "connection refused",
                "try": "is `reflector serve` running there, is TCP 4000 open?",
            })
        );
        let failure = unreachable().retry_after(Some(1500)).measured(example::bare());
        let full = serde_json::to_value(failure.document()).unwrap();
        assert_eq!(full["retry_after_ms"], 1500);
        assert_eq!(full["measured_so_far"]["schema"], "packetparamedic.result/1");
    }
}
