//! Why a configuration cannot be loaded. Each message names where the fault is and which values are valid.

use std::io;
use std::path::PathBuf;

use super::ValueOrigin;

/// Why a configuration cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub enum ConfigError {
    /// A configuration file could not be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        /// The reason that the system gives.
        source: io::Error,
    },
    /// A configuration file is not valid TOML.
    #[error("{}:{line}: not valid TOML: {problem}", path.display())]
    Syntax {
        path: PathBuf,
        /// The number of the line in the file, from 1.
        line: usize,
        /// The parser's message.
        problem: String,
    },
    /// A configuration file has a key that is not a setting.
    #[error("{}:{line}: unknown setting {key:?}{}", path.display(), suggestion(*.nearest))]
    UnknownKey {
        path: PathBuf,
        /// The number of the line in the file, from 1.
        line: usize,
        /// The key, as written in the file.
        key: String,
        /// The setting with the most similar name; `None` if no name is similar.
        nearest: Option<&'static str>,
    },
    /// An environment variable has the program's prefix, but the program reads no such variable.
    #[error("unknown environment variable {variable}{}", suggestion(*.nearest))]
    UnknownVariable {
        /// The name of the variable.
        variable: String,
        /// The environment variable of the setting with the most similar name; `None` if no name is similar.
        nearest: Option<&'static str>,
    },
    /// A setting does not accept a value.
    #[error("{origin}: {setting} is not valid: {problem}; valid: {valid}")]
    BadValue {
        /// Where the value was given.
        origin: ValueOrigin,
        /// The setting's name.
        setting: &'static str,
        /// What is wrong with the value.
        problem: String,
        /// What the setting accepts.
        valid: &'static str,
    },
    /// The values of two settings exclude each other.
    #[error("{origin}: {problem}")]
    Conflict {
        /// The origin of the value that the user should change.
        origin: ValueOrigin,
        /// What is wrong, and the valid values.
        problem: String,
    },
    /// No state folder is configured, and there is no default because the home folder is unknown.
    #[error("the state folder is unknown because HOME is not set")]
    NoStateDir,
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean {name:?}?"))
}

impl ConfigError {
    /// What the user of `program` can do about the error.
    pub fn remedy(&self, program: &str) -> String {
        let variable = program.to_uppercase();
        match self {
            Self::Unreadable { .. } => "check the path and the permissions of that file".to_owned(),
            Self::NoStateDir => format!("set --state-dir FOLDER or {variable}_STATE_DIR"),
            Self::UnknownKey { nearest: None, .. } => {
                format!("remove that line; `{program} config template` lists every setting")
            }
            Self::UnknownVariable { .. } => {
                format!(
                    "correct or unset that variable; `{program} config template` lists the variable of every setting"
                )
            }
            Self::BadValue { origin: ValueOrigin::Flag(_) | ValueOrigin::Environment(_), .. }
            | Self::Conflict { origin: ValueOrigin::Flag(_) | ValueOrigin::Environment(_), .. } => {
                format!("correct that value; `{program} config template` explains every setting")
            }
            _ => format!("fix that line, then run `{program} config check`"),
        }
    }
}
