//! How much a row does: everything, or about a twentieth of it. Pure.

/// How much a row does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// About a twentieth of the counts, for the gate. Outcomes are judged; times and rates are only printed.
    Short,
    /// The counts of the promise, by hand. Times and rates are judged too.
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

    /// Whether times and rates are judged.
    pub(crate) fn judges_times(self) -> bool {
        self == Self::Long
    }
}
