//! Gives the fuzz target access to the private packet types: parses bytes, and seals the same packet again. For fuzzing
//! only.

use paramedic_link::admission::SessionKeys;

use super::packet::{LEN, MonitorReply, ProbePacket, ReplyPacket};

/// Opens `bytes` as a probe and seals it again. Returns `None` if `bytes` are not a valid probe.
pub fn reseal_probe(bytes: &[u8], keys: &SessionKeys) -> Option<[u8; LEN]> {
    ProbePacket::open(bytes, keys).map(|probe| probe.seal(keys))
}

/// Opens `bytes` as a reply and seals it again. Returns `None` if `bytes` are not a valid reply.
pub fn reseal_reply(bytes: &[u8], keys: &SessionKeys) -> Option<[u8; LEN]> {
    ReplyPacket::open(bytes, keys).map(|reply| reply.seal(keys))
}

/// Like [`reseal_probe`], for a probe of a monitor session.
pub fn reseal_monitor_probe(bytes: &[u8], keys: &SessionKeys) -> Option<[u8; LEN]> {
    ProbePacket::open_for_monitor(bytes, keys).map(|probe| probe.seal_for_monitor(keys))
}

/// Like [`reseal_reply`], for a reply of a monitor session. Flags that this version does not know are not kept.
pub fn reseal_monitor_reply(bytes: &[u8], keys: &SessionKeys) -> Option<[u8; LEN]> {
    MonitorReply::open(bytes, keys).map(|reply| reply.seal(keys))
}
