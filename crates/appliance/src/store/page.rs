//! Selects the rows of one page of a list: by the row after which the page begins, and by a period.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use uuid::Uuid;

/// The time and the id of the last row of the previous page. That row may have been deleted since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCursor {
    /// The time of the previous page's last row, by which the list is sorted, in whole microseconds.
    pub at: Timestamp,
    /// The id of the previous page's last row.
    pub id: Uuid,
}

/// A period from `since` (included) to `until` (excluded).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeRange {
    /// The start of the period; `None` for no limit.
    pub since: Option<Timestamp>,
    /// The end of the period; `None` for no limit.
    pub until: Option<Timestamp>,
}

impl TimeRange {
    /// The start and the end of the period, in microseconds since 1970; `i64::MIN` and `i64::MAX` for no limit.
    pub(super) fn bounds_us(self) -> (i64, i64) {
        let bound = |time: Option<Timestamp>, absent| time.map_or(absent, Timestamp::as_microsecond);
        (bound(self.since, i64::MIN), bound(self.until, i64::MAX))
    }
}

impl PageCursor {
    /// The upper bounds (time and id) for a list with the newest row first: the page has the rows below these bounds.
    /// Without a cursor, all rows are below them.
    pub(super) fn bounds(cursor: Option<Self>) -> (i64, String) {
        cursor.map_or((i64::MAX, String::new()), |cursor| (cursor.at.as_microsecond(), cursor.id.to_string()))
    }

    /// The lower bounds (time and id) for a list with the oldest row first: the page has the rows above these bounds.
    pub(super) fn lower_bounds(cursor: Option<Self>) -> (i64, String) {
        cursor.map_or((i64::MIN, String::new()), |cursor| (cursor.at.as_microsecond(), cursor.id.to_string()))
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
        let wrong = "not a valid cursor; use the one in the link to the next page";
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
