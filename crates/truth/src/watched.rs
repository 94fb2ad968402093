//! The packets of our programs that the links watch, and by what a link recognises them. Pure.

use emulator::{Transport, WatchRule};

/// The port on which the reflector listens.
pub(crate) const REFLECTOR_PORT: u16 = 4000;

/// The watch rule for the latency probes of our programs (docs/protocol.md, "Latency probes"): the version and the kind
/// of a probe or of its reply, and the offset of the sequence number.
const OUR_PROBES: WatchRule = WatchRule {
    transport: Transport::Udp,
    port: None,
    payload_len: Some(96),
    prefixes: &[&[1, 1], &[1, 2]],
    id_at: 20,
    is_load: false,
};

/// The watch rule for the messages of the control connection, which are no load. It matches their segments, and takes any
/// four bytes as the identifier, because they are not followed one by one.
const CONTROL: WatchRule = WatchRule {
    transport: Transport::Tcp,
    port: Some(REFLECTOR_PORT),
    payload_len: None,
    prefixes: &[],
    id_at: 0,
    is_load: false,
};

/// The watch rule for the datagrams of the engine udp (docs/protocol.md, "Bulk datagrams"): the version and the kind of a
/// bulk datagram, and the offset of the last four bytes of its sequence number.
const BULK: WatchRule = WatchRule {
    transport: Transport::Udp,
    port: None,
    payload_len: None,
    prefixes: &[&[1, 3], &[1, 4]],
    id_at: 24,
    is_load: true,
};

/// What is watched in a run of our programs. The constants below are positions in this list.
pub(crate) const RULES: [WatchRule; 3] = [OUR_PROBES, CONTROL, BULK];
/// The position of the rule for the latency probes.
pub(crate) const PROBE_RULE: usize = 0;
/// The position of the rule for the datagrams of the engine udp.
pub(crate) const BULK_RULE: usize = 2;
