//! The part of the result document with the kernels' record of the TCP streams.

use paramedic_link::phase_detail::TcpSample;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the kernels of both ends recorded about the TCP streams of a direction (`TCP_INFO`), in order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TcpOfEnds {
    /// The samples that the sender's kernel recorded of the TCP streams.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sender: Vec<TcpSample>,
    /// The samples that the receiver's kernel recorded of the TCP streams. The receiver sends only acknowledgements.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receiver: Vec<TcpSample>,
}

impl TcpOfEnds {
    pub(super) fn is_empty(&self) -> bool {
        self.sender.is_empty() && self.receiver.is_empty()
    }

    /// Three medians over the sender's samples: of the round trip (µs), of the smallest round trip (µs), and of the
    /// congestion window (segments). `None` if the sender's kernel does not report all three values.
    pub fn medians(&self) -> Option<[u32; 3]> {
        let median = |of: fn(&TcpSample) -> Option<u32>| {
            let mut values = self.sender.iter().filter_map(of).collect::<Vec<_>>();
            values.sort_unstable();
            values.get(values.len() / 2).copied()
        };
        Some([median(|sample| sample.rtt_us)?, median(|sample| sample.min_rtt_us)?, median(|sample| sample.cwnd)?])
    }
}
