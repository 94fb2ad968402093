//! The results of tests: documents, statistics, conclusions, reports. Pure: takes values and returns values. Uses no
//! sockets, no clock, no SQL and no exit codes.

#![forbid(unsafe_code)]
#![warn(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]
#![warn(clippy::print_stdout, clippy::print_stderr, clippy::exit)]
#![cfg_attr(not(test), warn(clippy::let_underscore_must_use))]

pub mod conclusion;
pub mod doctor;
pub mod document;
pub mod fold;
pub mod limit;
pub mod line_report;
pub mod lines;
pub mod plot;
pub mod quantity;
pub mod self_test;
pub mod series;
pub mod stats;
pub mod summary;
pub mod table;
pub mod text;
pub mod thresholds;
