//! The version of both programs, and the commit from which they were built.

use std::sync::LazyLock;

/// The version of both programs, as sent in the messages `hello` and `welcome` and written into every document.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The first 12 digits of the commit from which the program was built, if the build knew the commit.
pub const COMMIT: Option<&str> = option_env!("BUILD_COMMIT");

/// The UTC date of the commit from which the program was built, as YYYY-MM-DD, if the build knew the commit.
pub const COMMIT_DATE: Option<&str> = option_env!("BUILD_COMMIT_DATE");

/// What `--version` prints after the program's name: `0.1.0 (1a2b3c4d5e6f, 2026-01-31)`.
pub fn with_commit() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| line(VERSION, COMMIT, COMMIT_DATE));
    &TEXT
}

fn line(version: &str, commit: Option<&str>, date: Option<&str>) -> String {
    match (commit, date) {
        (Some(commit), Some(date)) => format!("{version} ({commit}, {date})"),
        (Some(commit), None) => format!("{version} ({commit})"),
        (None, _) => version.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_names_the_commit_if_it_is_known() {
        assert_eq!(line("0.1.0", None, None), "0.1.0");
        assert_eq!(line("0.1.0", Some("1a2b3c4d5e6f"), None), "0.1.0 (1a2b3c4d5e6f)");
        assert_eq!(line("0.1.0", Some("1a2b3c4d5e6f"), Some("2026-01-31")), "0.1.0 (1a2b3c4d5e6f, 2026-01-31)");
    }
}
