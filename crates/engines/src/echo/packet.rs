//! The datagrams of `echo`, probes and replies: their layout, and how both ends seal and open them. Uses no socket and
//! no clock. docs/protocol.md, "Latency probes", specifies them.

use paramedic_link::admission::{SessionKeys, TAG_LEN};
use paramedic_link::test_spec::Direction;

use crate::udp_port::{DATAGRAM_LEN, VERSION};

/// The length of a probe and of a reply, in bytes. A reply is as long as its probe, so that replies never amplify
/// traffic.
pub const LEN: usize = DATAGRAM_LEN;
/// The number of sequence numbers that a reply's arrival history covers.
pub(super) const HISTORY: u32 = 256;

const PROBE: u8 = 1;
const REPLY: u8 = 2;
const MONITOR_PROBE: u8 = 11;
const MONITOR_REPLY: u8 = 12;
/// The offset of a datagram's authentication tag, which covers the bytes before the tag.
const TAG_AT: usize = LEN - TAG_LEN;

/// A latency probe, which the appliance sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProbePacket {
    /// The probe's sequence number, unique in the session.
    pub(super) seq: u32,
    /// The highest sequence number that the arrival history in the reply should cover.
    pub(super) about: u32,
    /// When the probe was sent, in nanoseconds of the appliance's monotonic clock, with an arbitrary zero.
    pub(super) sent_ns: u64,
}

/// The reflector's reply to a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplyPacket {
    /// The sequence number of the answered probe.
    pub(super) seq: u32,
    /// The sending time of the answered probe, copied from the probe.
    pub(super) sent_ns: u64,
    /// When the probe arrived, in nanoseconds of the reflector's monotonic clock, with an arbitrary zero.
    pub(super) received_ns: u64,
    /// The time between the probe's arrival and the reply in nanoseconds, at most `u32::MAX`.
    pub(super) dwell_ns: u32,
    /// Which of the latest probes have arrived at the reflector.
    pub(super) history: ArrivalHistory,
    /// How many times a probe of the session arrived again, modulo 2^16.
    pub(super) duplicates: u16,
}

/// Which of [`HISTORY`] sequence numbers had arrived at the reflector when it replied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ArrivalHistory {
    /// The highest sequence number that the history covers. It differs from the requested number if the reflector has
    /// not received that number yet or has already forgotten it.
    pub(super) about: u32,
    /// A bit field, least significant bit first: bit `i` is set if sequence number `about - i` arrived.
    pub(super) arrived: [u8; HISTORY as usize / 8],
}

impl ArrivalHistory {
    /// Whether sequence number `seq` had arrived; `None` if the history does not cover `seq`.
    pub(super) fn arrived(&self, seq: u32) -> Option<bool> {
        let back = self.about.checked_sub(seq).filter(|back| *back < HISTORY)? as usize;
        Some(self.arrived[back / 8] >> (back % 8) & 1 == 1)
    }
}

impl ProbePacket {
    /// Encodes and seals the probe.
    pub(super) fn seal(&self, keys: &SessionKeys) -> [u8; LEN] {
        self.seal_as(PROBE, keys)
    }

    /// Encodes and seals the probe as a probe of a monitor session.
    pub(super) fn seal_for_monitor(&self, keys: &SessionKeys) -> [u8; LEN] {
        self.seal_as(MONITOR_PROBE, keys)
    }

    fn seal_as(&self, kind: u8, keys: &SessionKeys) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[24..28].copy_from_slice(&self.about.to_be_bytes());
        sealed(bytes, kind, self.seq, self.sent_ns, keys)
    }

    /// Opens a probe. Returns `None` if `bytes` were not sealed with `keys` as a probe.
    pub(super) fn open(bytes: &[u8], keys: &SessionKeys) -> Option<Self> {
        Self::open_as(PROBE, bytes, keys)
    }

    /// Opens a probe of a monitor session. Returns `None` if `bytes` were not sealed with `keys` as such a probe.
    pub(super) fn open_for_monitor(bytes: &[u8], keys: &SessionKeys) -> Option<Self> {
        Self::open_as(MONITOR_PROBE, bytes, keys)
    }

    fn open_as(kind: u8, bytes: &[u8], keys: &SessionKeys) -> Option<Self> {
        let bytes = opened(bytes, kind, keys)?;
        Some(Self {
            seq: u32::from_be_bytes(field(bytes, 20)),
            about: u32::from_be_bytes(field(bytes, 24)),
            sent_ns: u64::from_be_bytes(field(bytes, 28)),
        })
    }
}

impl ReplyPacket {
    /// Encodes and seals the reply.
    pub(super) fn seal(&self, keys: &SessionKeys) -> [u8; LEN] {
        self.seal_as(REPLY, keys)
    }

    fn seal_as(&self, kind: u8, keys: &SessionKeys) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[2..4].copy_from_slice(&self.duplicates.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.history.about.to_be_bytes());
        bytes[36..44].copy_from_slice(&self.received_ns.to_be_bytes());
        bytes[44..48].copy_from_slice(&self.dwell_ns.to_be_bytes());
        bytes[48..80].copy_from_slice(&self.history.arrived);
        sealed(bytes, kind, self.seq, self.sent_ns, keys)
    }

    /// Opens a reply. Returns `None` if `bytes` were not sealed with `keys` as a reply.
    pub(super) fn open(bytes: &[u8], keys: &SessionKeys) -> Option<Self> {
        Self::open_as(REPLY, bytes, keys)
    }

    fn open_as(kind: u8, bytes: &[u8], keys: &SessionKeys) -> Option<Self> {
        let bytes = opened(bytes, kind, keys)?;
        Some(Self {
            seq: u32::from_be_bytes(field(bytes, 20)),
            sent_ns: u64::from_be_bytes(field(bytes, 28)),
            received_ns: u64::from_be_bytes(field(bytes, 36)),
            dwell_ns: u32::from_be_bytes(field(bytes, 44)),
            history: ArrivalHistory { about: u32::from_be_bytes(field(bytes, 24)), arrived: field(bytes, 48) },
            duplicates: u16::from_be_bytes(field(bytes, 2)),
        })
    }
}

/// The reflector's reply to a probe of a monitor session. It has the layout of a [`ReplyPacket`], except that the 16
/// bits for the number of duplicates hold 8 bits of flags and the lower 8 bits of that number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MonitorReply {
    /// The content of the reply; of its number of duplicates, only the lower 8 bits are sent.
    pub(super) reply: ReplyPacket,
    /// Whether a load phase of any test runs at the reflector, or ended a short time ago.
    pub(super) is_under_load: bool,
}

/// The bit of a monitor reply's flags that is set if [`MonitorReply::is_under_load`] is true.
const UNDER_LOAD: u8 = 1;

impl MonitorReply {
    /// Encodes and seals the reply.
    pub(super) fn seal(&self, keys: &SessionKeys) -> [u8; LEN] {
        let [_, duplicates] = self.reply.duplicates.to_be_bytes();
        let flags = if self.is_under_load { UNDER_LOAD } else { 0 };
        ReplyPacket { duplicates: u16::from_be_bytes([flags, duplicates]), ..self.reply }.seal_as(MONITOR_REPLY, keys)
    }

    /// Opens a reply of a monitor session. Returns `None` if `bytes` were not sealed with `keys` as such a reply.
    /// Ignores unknown flags.
    pub(super) fn open(bytes: &[u8], keys: &SessionKeys) -> Option<Self> {
        let reply = ReplyPacket::open_as(MONITOR_REPLY, bytes, keys)?;
        let [flags, duplicates] = reply.duplicates.to_be_bytes();
        let reply = ReplyPacket { duplicates: duplicates.into(), ..reply };
        Some(Self { reply, is_under_load: flags & UNDER_LOAD != 0 })
    }
}

/// Whether a datagram of the kind `kind` is a probe of a test session.
pub(super) fn is_probe(kind: u8) -> bool {
    kind == PROBE
}

/// Whether a datagram of the kind `kind` is a probe of a monitor session.
pub(super) fn is_monitor_probe(kind: u8) -> bool {
    kind == MONITOR_PROBE
}

/// Writes the fields that probes and replies have in common, and the authentication tag.
fn sealed(mut bytes: [u8; LEN], kind: u8, seq: u32, sent_ns: u64, keys: &SessionKeys) -> [u8; LEN] {
    bytes[0] = VERSION;
    bytes[1] = kind;
    bytes[4..20].copy_from_slice(keys.session().as_bytes());
    bytes[20..24].copy_from_slice(&seq.to_be_bytes());
    bytes[28..36].copy_from_slice(&sent_ns.to_be_bytes());
    let tag = keys.seal_datagram(direction(kind), &bytes[..TAG_AT]);
    bytes[TAG_AT..].copy_from_slice(&tag);
    bytes
}

/// Checks the version, kind, session and tag of a datagram. Returns `None` if one of these is wrong.
fn opened<'a>(bytes: &'a [u8], kind: u8, keys: &SessionKeys) -> Option<&'a [u8; LEN]> {
    let bytes: &[u8; LEN] = bytes.try_into().ok()?;
    let ours = bytes[0] == VERSION && bytes[1] == kind && bytes[4..20] == keys.session().as_bytes()[..];
    (ours && keys.is_datagram(direction(kind), &bytes[..TAG_AT], &field(bytes, TAG_AT))).then_some(bytes)
}

/// The direction in which a datagram of the kind `kind` travels. Each direction has its own key, so that a probe cannot
/// be replayed as a reply or vice versa.
fn direction(kind: u8) -> Direction {
    if kind == PROBE || kind == MONITOR_PROBE { Direction::Upload } else { Direction::Download }
}

/// `N` bytes of the datagram `bytes` from offset `at` on. `N` and `at` are constants of the layout, so the bytes exist.
fn field<const N: usize>(bytes: &[u8; LEN], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

#[cfg(test)]
mod tests {
    use paramedic_link::SessionId;
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::super::tests::keys;
    use super::*;

    fn reply() -> ReplyPacket {
        ReplyPacket {
            seq: 7,
            sent_ns: 1 << 40,
            received_ns: 5,
            dwell_ns: 12_345,
            history: ArrivalHistory { about: 6, arrived: [0b101; 32] },
            duplicates: 3,
        }
    }

    proptest! {
        #[test]
        fn a_probe_survives_the_wire(seq: u32, about: u32, sent_ns: u64) {
            let probe = ProbePacket { seq, about, sent_ns };
            let bytes = probe.seal(&keys(1));
            prop_assert_eq!(ProbePacket::open(&bytes, &keys(1)), Some(probe));
            prop_assert!(is_probe(bytes[1]));
        }

        #[test]
        fn one_flipped_bit_is_no_reply(at in 0usize..LEN * 8) {
            let mut bytes = reply().seal(&keys(1));
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert_eq!(ReplyPacket::open(&bytes, &keys(1)), None);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(ProbePacket::open(&bytes, &keys(1)), None);
            prop_assert_eq!(ReplyPacket::open(&bytes, &keys(1)), None);
        }
    }

    #[test]
    fn neither_kind_is_accepted_as_the_other() {
        let probe = ProbePacket { seq: 1, about: 1, sent_ns: 1 }.seal(&keys(1));
        assert_eq!(ReplyPacket::open(&reply().seal(&keys(1)), &keys(1)), Some(reply()));
        assert_eq!(ReplyPacket::open(&probe, &keys(1)), None);
        assert_eq!(ProbePacket::open(&reply().seal(&keys(1)), &keys(1)), None);
        assert_eq!(ProbePacket::open(&probe, &keys(2)), None);
        // A reply with a rewritten kind still has the tag of the other direction.
        let mut turned = reply().seal(&keys(1));
        turned[1] = PROBE;
        assert_eq!(ProbePacket::open(&turned, &keys(1)), None);
    }

    #[test]
    fn packets_of_a_monitor_and_of_a_test_are_not_accepted_as_each_other() {
        let probe = ProbePacket { seq: 1, about: 1, sent_ns: 1 };
        assert_eq!(ProbePacket::open_for_monitor(&probe.seal_for_monitor(&keys(1)), &keys(1)), Some(probe));
        assert_eq!(ProbePacket::open(&probe.seal_for_monitor(&keys(1)), &keys(1)), None);
        assert_eq!(ProbePacket::open_for_monitor(&probe.seal(&keys(1)), &keys(1)), None);
        for is_under_load in [false, true] {
            let sealed =
                MonitorReply { reply: ReplyPacket { duplicates: 259, ..reply() }, is_under_load }.seal(&keys(1));
            let opened = MonitorReply { reply: ReplyPacket { duplicates: 3, ..reply() }, is_under_load };
            assert_eq!(MonitorReply::open(&sealed, &keys(1)), Some(opened));
            assert_eq!(ReplyPacket::open(&sealed, &keys(1)), None);
            assert_eq!(sealed[..4], [1, 12, u8::from(is_under_load), 3]);
        }
        // Other flags may come with a newer reflector.
        let newer = ReplyPacket { duplicates: 0xfe05, ..reply() }.seal_as(MONITOR_REPLY, &keys(1));
        let newer = MonitorReply::open(&newer, &keys(1)).unwrap();
        assert_eq!((newer.is_under_load, newer.reply.duplicates), (false, 5));
        assert!(is_monitor_probe(11) && !is_monitor_probe(1) && !is_monitor_probe(12) && !is_probe(11));
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let bytes = reply().seal(&keys(1));
        assert_eq!(bytes[..4], [1, 2, 0, 3]);
        assert_eq!(bytes[20..28], [0, 0, 0, 7, 0, 0, 0, 6]);
        assert_eq!(bytes[28..36], (1u64 << 40).to_be_bytes());
        assert_eq!(bytes[36..48], [0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0x30, 0x39]);
        assert_eq!(bytes[48..80], [0b101; 32]);
    }

    #[test]
    fn the_history_covers_its_window_only() {
        let history = reply().history;
        assert_eq!([6, 5, 4, 3].map(|seq| history.arrived(seq)), [Some(true), Some(false), Some(true), Some(false)]);
        assert_eq!(history.arrived(7), None);
        let later = ArrivalHistory { about: 1000, ..history };
        assert_eq!((later.arrived(745), later.arrived(744)), (Some(false), None));
    }

    #[test]
    fn the_documented_examples_match_the_code() {
        let session = [0x01, 0x94, 0x3d, 0x3c, 0x5e, 0, 0x7a, 0x10, 0x80, 0, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab];
        let secret = std::array::from_fn(|at| at as u8);
        let keys = SessionKeys::derive(SessionId::from_bytes(session), Zeroizing::new(secret));
        let probe = ProbePacket { seq: 66, about: 66, sent_ns: 1_000_000 };
        let mut arrived = [0; 32];
        arrived[0] = 0b101;
        let reply = ReplyPacket {
            seq: 66,
            sent_ns: 1_000_000,
            received_ns: 5_000_000,
            dwell_ns: 7_000,
            history: ArrivalHistory { about: 66, arrived },
            duplicates: 1,
        };
        let doc = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol.md");
        let doc = std::fs::read_to_string(doc).unwrap();
        let monitor_reply = MonitorReply { reply, is_under_load: true };
        let of_monitor = [probe.seal_for_monitor(&keys), monitor_reply.seal(&keys)];
        for bytes in [probe.seal(&keys), reply.seal(&keys)].into_iter().chain(of_monitor) {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(doc.lines().any(|line| line.trim() == hex), "docs/protocol.md does not show {hex}");
        }
    }
}
