//! placeholder
/// A proof of knowing a pairing code's secret: HMAC-SHA256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Proof([u8; 32]);
