//! What both programs need of the host they run on, and what is neither a test nor a word of the protocol: the
//! self-test and the log. Never prints.

pub mod log;
pub mod self_test;
