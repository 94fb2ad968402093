//! The `udp` engine.

mod ledger;
mod packet;
mod search;
