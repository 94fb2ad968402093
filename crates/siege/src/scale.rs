//! The amount of work of each row of a siege: all of it, or about a twentieth. Pure.

/// The form of a siege, which sets the amount of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// About a twentieth of the work, for `script/test`. Outcomes are checked; times and rates are only printed.
    Short,
    /// The amount of work that the promise states. This form is started by hand. Times and rates are checked, too.
    Long,
}

impl Scale {
    /// Returns `long` in the long form and `short` in the short form.
    pub(crate) fn of<T>(self, long: T, short: T) -> T {
        match self {
            Self::Short => short,
            Self::Long => long,
        }
    }

    /// Whether this form checks times and rates.
    pub(crate) fn judges_times(self) -> bool {
        self == Self::Long
    }
}
