//! Fuzz targets for the datagrams of the engines `echo` and `udp`.

use paramedic_engines::echo::{self, PACKET_LEN};
use paramedic_engines::{udp, udp_port};
use paramedic_link::admission::{SessionKeys, TAG_LEN};
use paramedic_link::test_spec::Direction;

use crate::framing::{DOCUMENTED, OTHERS, padded, with_flipped_bit};

const DIRECTIONS: [Direction; 2] = [Direction::Download, Direction::Upload];
/// The byte offset of the authentication tag in a packet.
const TAG_AT: usize = PACKET_LEN - TAG_LEN;

/// Makes a packet from the input: sets the session ID of `keys` and a valid tag for `direction`, and keeps all other
/// bytes.
fn sealed(input: &[u8], direction: Direction, keys: &SessionKeys) -> [u8; PACKET_LEN] {
    let mut bytes = padded::<PACKET_LEN>(input);
    bytes[4..20].copy_from_slice(keys.session().as_bytes());
    let tag = keys.seal_datagram(direction, &bytes[..TAG_AT]);
    bytes[TAG_AT..].copy_from_slice(&tag);
    bytes
}

/// Fuzz target: opens the input as a latency probe and as a reply, first unchanged, then with a correct session ID and
/// tag. Then flips one bit of each packet that opened, and asserts that the packet no longer opens. Input bytes behind
/// the packet select the bit.
pub fn echo_datagram(input: &[u8]) {
    let (keys, others) = (&*DOCUMENTED, &*OTHERS);
    let behind = &input[input.len().min(PACKET_LEN)..];
    let opened = |bytes: &[u8], keys: &SessionKeys| {
        let opened = [echo::fuzzing::reseal_probe(bytes, keys), echo::fuzzing::reseal_reply(bytes, keys)];
        assert!(!opened.iter().all(Option::is_some), "a probe is no reply");
        opened
    };
    assert_eq!(opened(input, others), [None; 2]);
    for candidate in [input, &sealed(input, Direction::Upload, keys), &sealed(input, Direction::Download, keys)] {
        let [probe, reply] = opened(candidate, keys);
        if let Some(again) = probe {
            assert_eq!(again[20..36], candidate[20..36], "number and time of a probe");
            assert_eq!(echo::fuzzing::reseal_probe(&again, keys), Some(again));
            assert_eq!(udp_port::claimed_session(candidate), Some(keys.session()));
        }
        if let Some(again) = reply {
            assert_eq!(again, candidate, "every byte of a reply says something");
        }
        for resealed in [probe, reply].into_iter().flatten() {
            assert_eq!(opened(&with_flipped_bit(resealed, behind), keys), [None; 2]);
            assert_eq!(opened(&resealed[..TAG_AT], keys), [None; 2]);
            assert_eq!(opened(&resealed, others), [None; 2]);
        }
    }
    for (kind, direction) in [(11, Direction::Upload), (12, Direction::Download)] {
        let mut head = padded::<PACKET_LEN>(input);
        head[..2].copy_from_slice(&[1, kind]);
        let candidate = sealed(&head, direction, keys);
        assert_eq!(opened(&candidate, keys), [None; 2], "packets of a monitor are none of a test");
        let probe = echo::fuzzing::reseal_monitor_probe(&candidate, keys);
        let reply = echo::fuzzing::reseal_monitor_reply(&candidate, keys);
        assert_eq!((probe.is_some(), reply.is_some()), (kind == 11, kind == 12), "sealed, and not opened");
        for resealed in [probe, reply].into_iter().flatten() {
            let flipped = with_flipped_bit(resealed, behind);
            assert_eq!(echo::fuzzing::reseal_monitor_probe(&flipped, keys), None);
            assert_eq!(echo::fuzzing::reseal_monitor_reply(&flipped, keys), None);
        }
    }
    for (kind, direction) in [(1, Direction::Upload), (2, Direction::Download)] {
        let mut head = padded::<PACKET_LEN>(input);
        head[..2].copy_from_slice(&[1, kind]);
        let [probe, reply] = opened(&sealed(&head, direction, keys), keys);
        assert_eq!((probe.is_some(), reply.is_some()), (kind == 1, kind == 2), "sealed, and not opened");
    }
}

/// Fuzz target: opens the input as each of the two kinds of datagrams of the engine `udp`, signal and bulk.
pub fn udp_datagram(input: &[u8]) {
    let (keys, others) = (&*DOCUMENTED, &*OTHERS);
    let behind = &input[input.len().min(PACKET_LEN)..];
    let _ = udp_port::claimed_session(input);
    for flow in DIRECTIONS {
        assert_eq!(udp::fuzzing::reseal_signal(input, flow, others), None);
        let made = sealed(input, flow, keys);
        let is_signal = made[0] == 1 && (5..=10).contains(&made[1]);
        assert_eq!(udp::fuzzing::reseal_signal(&made, flow, keys).is_some(), is_signal);
        for candidate in [input, &made] {
            let Some(again) = udp::fuzzing::reseal_signal(candidate, flow, keys) else { continue };
            assert_eq!(again[..28], candidate[..28], "place and number of a signal");
            assert_eq!(udp::fuzzing::reseal_signal(&again, flow, keys), Some(again));
            assert_eq!(udp_port::claimed_session(candidate), Some(keys.session()));
            let changed = with_flipped_bit(again, behind);
            assert_eq!(udp::fuzzing::reseal_signal(&changed, flow, keys), None);
            assert_eq!(udp::fuzzing::reseal_signal(&again, flow, others), None);
        }
        bulk(input, flow, keys, others);
    }
}

/// Opens the input as a bulk datagram of the engine `udp`. The input itself names the phase and the stream.
fn bulk(input: &[u8], flow: Direction, keys: &SessionKeys, others: &SessionKeys) {
    let (phase, stream) = (padded::<4>(input)[2], padded::<4>(input)[3]);
    let reseal = |bytes: &[u8], keys: &SessionKeys| udp::fuzzing::reseal_bulk(bytes, [phase, stream], flow, keys);
    assert_eq!(reseal(input, others), None);
    if let Some(again) = reseal(input, keys) {
        assert_eq!(again, input, "every byte of a header says something");
    }
    let mut made = input.to_vec();
    made.resize(input.len().max(udp::fuzzing::HEADER), 0);
    made[4..20].copy_from_slice(keys.session().as_bytes());
    made[36..52].copy_from_slice(keys.bulk_tag(flow));
    let is_bulk = made[0] == 1 && matches!(made[1], 3 | 4);
    assert_eq!(reseal(&made, keys), is_bulk.then(|| made.clone()));
    assert_eq!(reseal(&made[..udp::fuzzing::HEADER - 1], keys), None);
    if is_bulk {
        // Change a byte outside the number and the time: the tag does not cover these two fields.
        let mut changed = made.clone();
        let at = usize::from(padded::<1>(&input[input.len().min(52)..])[0]) % 36;
        changed[if at < 20 { at } else { at + 16 }] ^= 0x80;
        assert_eq!(reseal(&changed, keys), None);
        assert_eq!(udp::fuzzing::reseal_signal(&made, flow, keys), None, "bulk is no signal");
    }
}
