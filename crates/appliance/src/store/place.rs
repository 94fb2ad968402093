//! Where the database of an appliance is: a SQLite file, or a PostgreSQL server.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where a database is, in the form that error messages show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorePlace {
    /// The file of a SQLite database.
    File(PathBuf),
    /// The URL of a PostgreSQL database, without its password.
    Server(String),
}

impl StorePlace {
    /// The path of the database file; `None` for a server.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Server(_) => None,
        }
    }
}

impl fmt::Display for StorePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Server(url) => f.write_str(url),
        }
    }
}
