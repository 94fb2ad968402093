//! The watch rules by which an emulated link recognises packets of our programs. Pure.

use emulator::{Transport, WatchRule};

/// The port on which the reflector listens.
pub(crate) const REFLECTOR_PORT: u16 = 4000;

/// The watch rule for latency probes of our programs and their replies (docs/protocol.md, "Latency probes"). A prefix
/// is the version and the kind of the packet; `id_at` is the offset of the sequence number.
const OUR_PROBES: WatchRule = WatchRule {
    transport: Transport::Udp,
    port: None,
    payload_len: Some(96),
    prefixes: &[&[1, 1], &[1, 2]],
    id_at: 20,
    is_load: false,
};

/// The watch rule for TCP segments of the control connection, which are no load. These segments are not tracked one by
/// one, so the first four bytes of their payload, whatever these are, serve as the identifier.
const CONTROL: WatchRule = WatchRule {
    transport: Transport::Tcp,
    port: Some(REFLECTOR_PORT),
    payload_len: None,
    prefixes: &[],
    id_at: 0,
    is_load: false,
};

/// The watch rule for the datagrams of the engine `udp` (docs/protocol.md, "Bulk datagrams"). A prefix is the version
/// and the kind of the datagram; `id_at` is the offset of the last four bytes of its sequence number.
const BULK: WatchRule = WatchRule {
    transport: Transport::Udp,
    port: None,
    payload_len: None,
    prefixes: &[&[1, 3], &[1, 4]],
    id_at: 24,
    is_load: true,
};

/// The watch rules of the links in a run of our programs. [`PROBE_RULE`] and [`BULK_RULE`] are indices of this array.
pub(crate) const RULES: [WatchRule; 3] = [OUR_PROBES, CONTROL, BULK];
/// The index in [`RULES`] of the rule for latency probes.
pub(crate) const PROBE_RULE: usize = 0;
/// The index in [`RULES`] of the rule for datagrams of the engine `udp`.
pub(crate) const BULK_RULE: usize = 2;
