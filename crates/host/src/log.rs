//! The log of a program. A filter selects the events, and each event becomes one line of text or one JSON object. The
//! caller provides the writer.

use std::fmt;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The format of a log event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// A line of text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// The format with this name: `text` or `json`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Whether `filter` is valid: a level (`error`, `warn`, `info`, `debug`, `trace`, `off`) or a list of directives such
/// as `warn,paramedic_engines=debug` (`EnvFilter` of tracing-subscriber).
pub fn is_filter(filter: &str) -> bool {
    directives(filter).is_some()
}

/// Changes the filter of a running log.
pub struct LogFilter {
    set: Box<dyn Fn(EnvFilter) + Send + Sync>,
}

impl LogFilter {
    /// Replaces the filter. An invalid filter changes nothing.
    pub fn set(&self, filter: &str) {
        if let Some(filter) = directives(filter) {
            (self.set)(filter);
        }
    }
}

/// Starts the log of this process. Each event that passes `filter` is one write to `writer`. A second call changes
/// nothing.
pub fn start<W>(filter: &str, format: LogFormat, is_colored: bool, writer: W) -> LogFilter
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = directives(filter).unwrap_or_else(|| EnvFilter::new("warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    // A failed write would be reported with `eprintln!`, which panics if stderr is a closed terminal.
    let log = log.log_internal_errors(false);
    // `try_init` fails if this process already has a log.
    match format {
        LogFormat::Json => {
            let log = log.json().with_filter_reloading();
            let handle = log.reload_handle();
            log.try_init().ok();
            // The error means that this process has another log.
            LogFilter { set: Box::new(move |filter| handle.reload(filter).unwrap_or_default()) }
        }
        LogFormat::Text => {
            let log = log.with_ansi(is_colored).with_filter_reloading();
            let handle = log.reload_handle();
            log.try_init().ok();
            // The error means that this process has another log.
            LogFilter { set: Box::new(move |filter| handle.reload(filter).unwrap_or_default()) }
        }
    }
}

/// Parses a filter. A single word must be a level or the name of a program. tracing takes any other word for a module
/// name, so a mistyped level would silence the log.
fn directives(filter: &str) -> Option<EnvFilter> {
    let is_word = filter.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let is_known = PROGRAMS.contains(&filter) || filter.parse::<tracing_subscriber::filter::LevelFilter>().is_ok();
    if filter.is_empty() || (is_word && !is_known) {
        return None;
    }
    let filter = EnvFilter::try_new(filter).ok()?;
    Some(filter.add_directive(WITHOUT_PASSWORDS.parse().ok()?))
}

/// A filter directive that turns off one module of sqlx: the module logs malformed lines of `~/.pgpass`, and such a
/// line may contain a password.
const WITHOUT_PASSWORDS: &str = "sqlx_postgres::options::pgpass=off";

/// The names of the programs. Each name is a valid filter.
const PROGRAMS: [&str; 2] = ["reflector", "packetparamedic"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_level_or_a_list_of_directives() {
        for filter in
            ["warn", "DEBUG", "off", "reflector", "paramedic_engines=debug", "warn,paramedic_engines::tcp=trace"]
        {
            assert!(is_filter(filter), "{filter}");
        }
        for filter in ["", "loud", "verbose", "warn,paramedic_engines=loud", "=="] {
            assert!(!is_filter(filter), "{filter}");
        }
    }

    #[test]
    fn no_filter_shows_lines_of_a_password_file() {
        for filter in ["trace", "sqlx_postgres=trace", "sqlx_postgres::options::pgpass=trace"] {
            let directives = directives(filter).unwrap().to_string();
            let of_file = directives.split(',').filter(|one| one.starts_with("sqlx_postgres::options::pgpass"));
            assert_eq!(of_file.collect::<Vec<_>>(), [WITHOUT_PASSWORDS], "{directives}");
        }
    }

    #[test]
    fn formats_have_names() {
        assert_eq!(
            ["text", "json", "xml"].map(LogFormat::from_name),
            [Some(LogFormat::Text), Some(LogFormat::Json), None]
        );
    }
}
