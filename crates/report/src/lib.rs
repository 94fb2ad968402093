//! What a result means. Pure: values in, values out; no sockets, no clock, no SQL, no exit codes.

#![forbid(unsafe_code)]

pub mod document;
pub mod fold;
pub mod lines;
pub mod quantity;
pub mod self_test;
pub mod stats;
pub mod summary;
pub mod text;
pub mod thresholds;
