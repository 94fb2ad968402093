//! The one list of promises: a file a row.

use crate::measured::Measured;
use crate::scale::Scale;

mod mistyped_id;

/// One promise, and what shows it.
pub(crate) struct Row {
    /// The row's name, for `--only`.
    pub(crate) name: &'static str,
    /// The promise, as the table says it.
    pub(crate) promise: &'static str,
    /// Plays the row. Every thread, process and namespace that it starts ends with it. A panic or an error is a missed
    /// promise.
    pub(crate) play: fn(Scale) -> anyhow::Result<Measured>,
}

/// Every row, in the order in which they are played.
pub(crate) const ROWS: &[Row] =
    &[Row { name: "mistyped_id", promise: "a mistyped Endpoint ID never matches", play: mistyped_id::play }];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_has_a_name_of_its_own() {
        let mut names = ROWS.iter().map(|row| row.name).collect::<Vec<_>>();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
