//! A number that a program reported, beside the truth. Pure.

use serde::{Deserialize, Serialize};

/// A number that a program reported, with the truth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// The name of the check.
    pub check: String,
    /// What of the run, such as `download`.
    pub what: String,
    /// The program.
    pub by: String,
    /// What the program reported.
    pub said: f64,
    /// What the link did.
    pub truth: f64,
    /// What the tolerance allows, both ends included.
    pub allowed: [f64; 2],
}

impl Reading {
    /// The error.
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
