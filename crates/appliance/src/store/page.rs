//! The place in a list, newest first, after which a page begins.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use uuid::Uuid;

/// The time and the id of the last row of the page before. That row may be gone since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCursor {
    /// When the row was made, in whole microseconds.
    pub at: Timestamp,
    /// Its id.
    pub id: Uuid,
}

impl PageCursor {
    /// The values that the rows of the page are below; without a cursor every row is.
    pub(super) fn bounds(cursor: Option<Self>) -> (i64, String) {
        cursor.map_or((i64::MAX, String::new()), |cursor| (cursor.at.as_microsecond(), cursor.id.to_string()))
    }
}

impl fmt::Display for PageCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.at.as_microsecond(), self.id)
    }
}

impl FromStr for PageCursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "a cursor is that of the link to the next page";
        let (at, id) = text.split_once('.').ok_or(wrong)?;
        let at = at.parse().ok().and_then(|at| Timestamp::from_microsecond(at).ok());
        Ok(Self { at: at.ok_or(wrong)?, id: id.parse().map_err(|_| wrong)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let cursor = PageCursor { at: "2026-01-01T00:00:00.000001Z".parse().unwrap(), id: Uuid::nil() };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for wrong in ["", ".", "1", "1.", "x.00000000-0000-0000-0000-000000000000", "9223372036854775807.0"] {
            assert!(wrong.parse::<PageCursor>().is_err(), "{wrong}");
        }
    }
}
