//! A failed command: what failed, the cause, the remedy and the exit code. Each program has its own exit codes and maps
//! its errors to failures.

use std::fmt;

use paramedic_report::document::{ErrorBody, ErrorDocument, ErrorSchema, ResultDocument};

/// A failed command. `E` is the program's type of exit codes. [`fmt::Display`] writes three lines: what, because, try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure<E> {
    /// The error code for scripts, in lower case. It stays the same when the texts for the user change.
    pub code: &'static str,
    /// What failed, in words for the user.
    pub what: String,
    /// The cause of the failure, on one line.
    pub because: String,
    /// What the user can do about the failure.
    pub try_: String,
    /// The exit code of the program.
    pub exit: E,
    /// When to try again, in milliseconds from now; `None` if the time is unknown or a retry is useless.
    pub retry_after_ms: Option<u64>,
}

impl<E> Failure<E> {
    /// Makes a failure. Line breaks in `because` are replaced, so that `because` fits on one line.
    pub fn new(
        exit: E,
        code: &'static str,
        what: impl Into<String>,
        because: impl fmt::Display,
        try_: impl Into<String>,
    ) -> Self {
        let because = format!("{because:#}").lines().map(str::trim).collect::<Vec<_>>().join("; ");
        Self { code, what: what.into(), because, try_: try_.into(), exit, retry_after_ms: None }
    }

    /// The failure as the error part of an [`ErrorDocument`].
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            code: self.code.to_owned(),
            what: self.what.clone(),
            because: self.because.clone(),
            try_: self.try_.clone(),
            retry_after_ms: self.retry_after_ms,
        }
    }

    /// The failure as an error document. `measured_so_far` is what was measured before the failure.
    pub fn document(&self, measured_so_far: Option<Box<ResultDocument>>) -> ErrorDocument {
        ErrorDocument { schema: ErrorSchema::V1, error: self.body(), measured_so_far }
    }
}

impl<E> fmt::Display for Failure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nbecause: {}\ntry: {}", self.what, self.because, self.try_)
    }
}

impl<E: fmt::Debug> std::error::Error for Failure<E> {}

#[cfg(test)]
mod tests {
    use paramedic_report::document::Event;

    use super::*;

    fn unreachable() -> Failure<u8> {
        Failure::new(
            1,
            "unreachable",
            "cannot reach reflector at 203.0.113.7:4000",
            "connection refused\n  os error 111",
            "check that `reflector serve` runs there and that TCP 4000 is open",
        )
    }

    #[test]
    fn a_failure_prints_as_three_lines() {
        assert_eq!(
            unreachable().to_string(),
            "cannot reach reflector at 203.0.113.7:4000\n\
             because: connection refused; os error 111\n\
             try: check that `reflector serve` runs there and that TCP 4000 is open"
        );
    }

    #[test]
    fn the_error_document_has_its_fields_in_a_fixed_order() {
        let failure = Failure { retry_after_ms: Some(1500), ..unreachable() };
        let fields = r#""schema":"packetparamedic.error/1","code":"unreachable","what":"cannot reach reflector at 203.0.113.7:4000","because":"connection refused; os error 111","try":"check that `reflector serve` runs there and that TCP 4000 is open""#;
        let text = serde_json::to_string(&failure.document(None)).unwrap();
        assert_eq!(text, format!(r#"{{{fields},"retry_after_ms":1500}}"#));
        let event = Event::Error(Box::new(unreachable().document(None)));
        assert_eq!(serde_json::to_string(&event).unwrap(), format!(r#"{{"event":"error",{fields}}}"#));
    }
}
