//! What the kernels recorded of the streams of a direction, in the document.

use paramedic_link::phase_detail::TcpSample;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the kernels of both ends recorded of the streams (TCP_INFO), in the order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TcpOfEnds {
    /// At the sender.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sender: Vec<TcpSample>,
    /// At the receiver, which sends only acknowledgements.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receiver: Vec<TcpSample>,
}

impl TcpOfEnds {
    pub(super) fn is_empty(&self) -> bool {
        self.sender.is_empty() && self.receiver.is_empty()
    }

    /// The medians of the sender's samples: round trip and smallest round trip in microseconds, congestion window in
    /// segments. `None` if its kernel reports one of them not at all.
    pub fn medians(&self) -> Option<[u32; 3]> {
        let median = |of: fn(&TcpSample) -> Option<u32>| {
            let mut values = self.sender.iter().filter_map(of).collect::<Vec<_>>();
            values.sort_unstable();
            values.get(values.len() / 2).copied()
        };
        Some([median(|sample| sample.rtt_us)?, median(|sample| sample.min_rtt_us)?, median(|sample| sample.cwnd)?])
    }
}
