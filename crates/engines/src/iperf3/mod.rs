//! What this workspace knows of iperf3, somebody else's program.

pub mod output;
