//! The amount of work of a row: all of it, or about a twentieth. Pure.

/// The form of a siege.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// About a twentieth of the counts, for `script/test`. Outcomes are checked; times and rates are only printed.
    Short,
    /// The counts of the promise, started by hand. Times and rates are checked too.
    Long,
}

impl Scale {
    /// `long` in the long form and `short` in the short form.
    pub(crate) fn of<T>(self, long: T, short: T) -> T {
        match self {
            Self::Short => short,
            Self::Long => long,
        }
    }

    /// Whether times and rates are checked.
    pub(crate) fn judges_times(self) -> bool {
        self == Self::Long
    }
}
