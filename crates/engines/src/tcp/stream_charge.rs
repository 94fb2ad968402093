//! What of a stream is charged to its session.

use std::io;

use crate::data_stream::DataStream;
use crate::session_control::SessionControl;

/// The bytes of one stream that were charged.
#[derive(Default)]
pub(super) struct StreamCharge {
    charged: u64,
}

impl StreamCharge {
    /// Charges what has moved since the last call, now that `payload` bytes have moved in all. Waits where the
    /// session's budget is exhausted; an error: the session was cancelled.
    pub(super) fn settle(&mut self, control: &SessionControl, stream: &DataStream, payload: u64) -> io::Result<()> {
        let due = stream.chargeable(payload);
        let fresh = due.saturating_sub(self.charged);
        self.charged = due;
        control.charge_and_wait(fresh).map_err(io::Error::other)
    }
}
