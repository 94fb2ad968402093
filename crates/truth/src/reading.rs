//! A number that a program reported, with the true number from the link's record. Pure.

use serde::{Deserialize, Serialize};

/// A number that a program reported, with the true number from the link's record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// The name of the check (an entry of `CHECKS`) that compares the reported with the true number.
    pub check: String,
    /// The part of the run that the number describes, such as `download`; empty for a number that exists once for each
    /// run.
    pub what: String,
    /// The program that reported the number.
    pub by: String,
    /// The number that the program reported.
    pub said: f64,
    /// The true number, from the record of the link.
    pub truth: f64,
    /// The lowest and the highest reported number that the tolerance allows.
    pub allowed: [f64; 2],
}

impl Reading {
    /// The reported number minus the true one.
    pub fn error(&self) -> f64 {
        self.said - self.truth
    }

    /// How far the reported number is outside the tolerance; zero if it is inside.
    pub fn missed_by(&self) -> f64 {
        let [low, high] = self.allowed;
        (low - self.said).max(self.said - high).max(0.0)
    }

    /// Whether the reported number is inside the tolerance.
    pub fn is_met(&self) -> bool {
        self.missed_by() == 0.0
    }
}
