//! The part of a result that says what ended a direction.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What ended a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// Its time.
    Time,
    /// It was stable at one of the times at which a run may end early.
    Stable,
    /// Its share of the budget of the run was through.
    Budget,
    /// The number of bytes that was requested for each direction was through.
    Asked,
}
