//! The benchmark: our engines and iperf3 in turn, what both cost, and what was promised beside it. Development only;
//! nothing of it ships. It starts the real programs (through `lab`) and judges what they print; it moves no bytes itself.

pub mod cells;
pub mod promises;
pub mod record;
pub mod render;
pub mod statistics;
