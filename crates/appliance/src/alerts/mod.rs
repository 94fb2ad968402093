//! Alerts: what opens and closes them, what they say, and the channels that carry the message. Pure: no sockets, no clock, no
//! SQL.

pub mod backoff;
pub mod channel;
pub mod message;
pub mod secret_text;
