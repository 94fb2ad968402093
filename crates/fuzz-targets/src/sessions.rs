//! A fuzz target that calls the reflector's session rules in an arbitrary order. It compares them with the model from
//! the reflector's unit tests.

use std::collections::BTreeMap;
use std::time::Duration;

use paramedic_link::test_spec::{DataMode, EngineId};
use reflector::event::AuditEvent;
// The model `orders` uses these names of its parent module.
use reflector::sessions::*;

/// The model of the session rules: a file of the reflector's unit tests, compiled here a second time. It stays in the
/// reflector's crate, beside the code that it models. Its own tests do not run here.
#[path = "../../reflector/src/sessions/orders.rs"]
#[allow(dead_code, unused_imports, reason = "the generators of its tests")]
mod orders;

use orders::{Op, World};

/// The maximum number of calls that the target makes for one input.
const MOST_CALLS: usize = 100;

/// Fuzz target: calls the reflector's `Sessions` as the input encodes it. The first five bytes set the limits; a few
/// bytes encode each call. After each call the model checks the counts of slots, ports, tests, bytes and events. At the
/// end every session ends, and no request may still wait.
pub fn sessions(input: &[u8]) {
    let mut bytes = Bytes(input);
    let mut world = World::new(limits(&mut bytes));
    for _ in 0..MOST_CALLS {
        let Some(op) = op(&mut bytes) else { break };
        world.run(&op);
    }
    world.finish();
}

/// The bytes of the input that are not read yet. At the end of the input, `byte` returns 0 and `next` returns `None`.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    fn number(&mut self) -> u64 {
        u64::from(u16::from_be_bytes([self.byte(), self.byte()]))
    }
}

fn limits(bytes: &mut Bytes<'_>) -> Limits {
    Limits {
        max_concurrent_tests: 1 + u32::from(bytes.byte() % 4),
        max_test_duration: Duration::from_secs(60),
        max_streams: 4,
        max_tests_per_hour: 1 + u32::from(bytes.byte() % 5),
        max_bytes_per_day: 500 + u64::from(bytes.byte()) * 6,
        max_bytes_per_day_total: 500 + u64::from(bytes.byte()) * 10,
        max_queue: 6,
        max_queue_per_peer: 2,
        max_monitors: 3,
        max_monitors_per_peer: 2,
        descriptors: usize::MAX,
        data_ports: Some(5201..=5201 + u16::from(bytes.byte() % 4)),
        data_modes: vec![DataMode::Tunneled, DataMode::DirectEphemeral],
        engines: vec![EngineId::try_from("tcp").expect("the name of an engine")],
        engine_modes: BTreeMap::new(),
    }
}

/// Decodes the next call of the session rules; `None` at the end of the input.
fn op(bytes: &mut Bytes<'_>) -> Option<Op> {
    let what = bytes.next()?;
    let link = |bytes: &mut Bytes<'_>| u64::from(bytes.byte() % 10);
    let which = |bytes: &mut Bytes<'_>| usize::from(bytes.byte() % 8);
    Some(match what % 16 {
        0 | 1 => {
            let (link, how) = (link(bytes), bytes.byte());
            if how & 8 > 0 {
                return Some(Op::AskMonitor(link));
            }
            Op::Ask { link, direct: how & 1 > 0, wait: how & 6 > 0, duration_ms: 1 + bytes.number() as u32 }
        }
        2 | 3 => Op::Poll,
        4 => Op::Open(which(bytes)),
        5 => Op::Undo(which(bytes)),
        6 => Op::PortHeld(which(bytes)),
        7 => Op::Heard(which(bytes)),
        8 => Op::Lease(which(bytes), bytes.number() % 1200),
        9 => Op::End(which(bytes), bytes.number() % 1200),
        10 => Op::Withdraw(link(bytes)),
        11 => Op::LinkClosed(link(bytes)),
        12 => Op::PeerRemoved(bytes.byte() % 4),
        13 => Op::Pass(bytes.number()),
        14 => Op::Pass(bytes.number() * 1000),
        _ if what == 255 => Op::Drain,
        _ => Op::Faulted(bytes.byte().is_multiple_of(3)),
    })
}
