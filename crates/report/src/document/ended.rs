//! The part of the result document that states why a direction ended.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why the measurement of a direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// The requested duration of the phase was over.
    Time,
    /// The rate was stable at one of the fixed times at which `--until-stable` may end a direction.
    Stable,
    /// The direction had moved its share of the run's byte budget (`--budget`).
    Budget,
    /// The direction had moved the requested number of bytes (`-n`).
    Asked,
}
