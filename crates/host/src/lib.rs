//! What both programs need of the host they run on, and what is neither a test nor a word of the protocol: the
//! self-test. Never prints.

pub mod self_test;
