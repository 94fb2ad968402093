//! Tests of one direction of a link, with a simulated clock.

use proptest::prelude::*;

use super::*;
use crate::settings::{BurstLoss, Policer, Reorder};

const MS: Duration = Duration::from_millis(1);

/// The delivered packets, each with the time at which it left.
type Delivered = Vec<(Duration, Departure<usize>)>;

/// Enters packets (time, bytes) and runs the direction until it is empty. Calls the direction only at the times that
/// `next_event` returns. Returns the delivered packets, and the numbers and reasons of the dropped ones.
fn run(direction: &mut LinkDirection<usize>, packets: &[(Duration, usize)]) -> (Delivered, Vec<(usize, DropReason)>) {
    let (mut delivered, mut dropped) = (Vec::new(), Vec::new());
    let mut collect = |direction: &mut LinkDirection<usize>, now| {
        while let Some(fate) = direction.next_fate(now) {
            match fate {
                Fate::Delivered(departure) => delivered.push((now, departure)),
                Fate::Dropped { packet, reason, .. } => dropped.push((packet, reason)),
            }
        }
    };
    let mut now = Duration::ZERO;
    for (at, (time, bytes)) in packets.iter().enumerate() {
        while let Some(event) = direction.next_event().filter(|event| event <= time) {
            now = now.max(event);
            collect(direction, now);
        }
        now = *time;
        direction.enter(now, *bytes, at);
        collect(direction, now);
    }
    while let Some(event) = direction.next_event() {
        now = now.max(event);
        collect(direction, now);
    }
    (delivered, dropped)
}

fn line(rate_mbit: f64, queue_ms: f64) -> DirectionSettings {
    DirectionSettings { rate_mbit: Some(rate_mbit), queue_ms: Some(queue_ms), ..Default::default() }
}

#[test]
fn a_packet_takes_transmission_and_delay() {
    let mut direction = LinkDirection::new(DirectionSettings { delay_ms: 20.0, ..line(12.0, 100.0) }, 1);
    let (delivered, _) = run(&mut direction, &[(5 * MS, 1500), (5 * MS, 1500)]);
    let dues = delivered.iter().map(|(now, departure)| (*now, departure.due, departure.queue_wait));
    // 1500 bytes at 12 Mbit/s take 1 ms.
    assert_eq!(dues.collect::<Vec<_>>(), [(26 * MS, 26 * MS, Duration::ZERO), (27 * MS, 27 * MS, MS)]);
}

#[test]
fn a_full_queue_drops_the_packet_that_enters() {
    let mut direction = LinkDirection::new(line(12.0, 2.0), 1);
    let (delivered, dropped) = run(&mut direction, &[(MS, 1500); 5]);
    // One is transmitted, two wait, and there is room for no more.
    assert_eq!(delivered.len(), 3);
    assert_eq!(dropped, [(3, DropReason::QueueFull), (4, DropReason::QueueFull)]);
    let mut direction = LinkDirection::new(line(12.0, 0.0), 1);
    let (delivered, dropped) = run(&mut direction, &[(MS, 1500); 5]);
    assert_eq!((delivered.len(), dropped.len()), (2, 3), "room for one packet even without a queue");
}

#[test]
fn a_policer_passes_its_burst_and_then_its_rate() {
    let policer = Some(Policer { rate_mbit: 8.0, burst_kib: 10.0 });
    let mut direction = LinkDirection::new(DirectionSettings { policer, ..Default::default() }, 1);
    // 1 ms fills 1000 bytes; 10,240 bytes are there at first.
    let packets = (0..100).map(|n| (n * MS, 2000)).collect::<Vec<_>>();
    let (delivered, dropped) = run(&mut direction, &packets);
    assert_eq!(delivered.len() as u32, (10_240 + 99 * 1000) / 2000);
    assert!(dropped.iter().all(|(_, reason)| *reason == DropReason::Policed));
}

#[test]
fn larger_packets_than_allowed_are_dropped() {
    let settings = DirectionSettings { drop_above_bytes: Some(1400), ..Default::default() };
    let (delivered, dropped) = run(&mut LinkDirection::new(settings, 1), &[(MS, 1400), (MS, 1401)]);
    assert_eq!((delivered.len(), dropped), (1, vec![(1, DropReason::TooLarge)]));
}

#[test]
fn a_change_of_rate_applies_to_packets_that_already_wait() {
    let mut direction = LinkDirection::new(line(12.0, 100.0), 1);
    direction.change(2 * MS, line(6.0, 100.0));
    let (delivered, _) = run(&mut direction, &[(Duration::ZERO, 1500); 4]);
    let dues = delivered.iter().map(|(_, departure)| departure.due).collect::<Vec<_>>();
    assert_eq!(dues, [MS, 2 * MS, 4 * MS, 6 * MS]);
}

#[test]
fn a_shorter_delay_from_a_change_is_not_slept_through() {
    let mut direction = LinkDirection::new(DirectionSettings { delay_ms: 500.0, ..line(12.0, 100.0) }, 1);
    direction.change(MS, line(12.0, 100.0));
    direction.enter(Duration::ZERO, 1500, 0);
    direction.enter(Duration::ZERO, 1500, 1);
    // The second packet begins at 1 ms; without the change it would leave at 502 ms.
    assert_eq!(direction.next_event(), Some(MS));
}

#[test]
fn a_packet_held_back_is_overtaken_and_nothing_else_is_reordered() {
    let reorder = Some(Reorder { percent: 10.0, by_ms: 5.5 });
    let mut direction = LinkDirection::new(DirectionSettings { reorder, ..Default::default() }, 3);
    let packets = (0..1000).map(|n| (n * MS, 100)).collect::<Vec<_>>();
    let (delivered, dropped) = run(&mut direction, &packets);
    assert_eq!((delivered.len(), dropped.len()), (1000, 0));
    let late = delivered.iter().filter(|(_, departure)| departure.due > departure.entered).count();
    assert!((60..140).contains(&late), "{late}");
    let in_order = delivered.iter().filter(|(_, departure)| departure.due == departure.entered);
    assert!(in_order.map(|(_, departure)| departure.number).is_sorted());
}

/// Generates settings with every impairment in any strength.
fn any_settings() -> impl Strategy<Value = DirectionSettings> {
    let share = || prop_oneof![Just(0.0), 0.1..30.0];
    let shares = (share(), share(), share(), share());
    let rate = prop_oneof![Just(None), (0.1..100.0).prop_map(Some)];
    let policer = proptest::option::of((0.1..50.0, 1.5..50.0));
    let times = (0.0..50.0, 0.0..20.0, 0.001..30.0, 0.0..50.0);
    (shares, rate, policer, times, any::<bool>()).prop_map(
        |(
            (loss, burst, reorder, duplicate),
            rate_mbit,
            policer,
            (delay_ms, jitter_ms, by_ms, queue),
            jitter_reorders,
        )| {
            DirectionSettings {
                rate_mbit,
                queue_ms: rate_mbit.map(|_| queue),
                delay_ms,
                jitter_ms,
                jitter_reorders,
                loss_percent: loss,
                burst_loss: Some(BurstLoss { enter_percent: burst, leave_percent: 30.0, loss_percent: 80.0 }),
                reorder: Some(Reorder { percent: reorder, by_ms }),
                duplicate_percent: duplicate,
                policer: policer.map(|(rate_mbit, burst_kib)| Policer { rate_mbit, burst_kib }),
                drop_above_bytes: Some(1400),
                ..Default::default()
            }
        },
    )
}

/// Generates packets of any size and at any distance in time.
fn any_packets() -> impl Strategy<Value = Vec<(Duration, usize)>> {
    prop::collection::vec((0_u64..3_000_000, 40_usize..1500), 1..200).prop_map(|packets| {
        let mut now = Duration::ZERO;
        let enter = |(after, bytes)| {
            now += Duration::from_nanos(after);
            (now, bytes)
        };
        packets.into_iter().map(enter).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_packet_is_delivered_or_dropped_exactly_once(
        settings in any_settings(), packets in any_packets(), seed: u64,
    ) {
        prop_assert_eq!(settings.check(), Ok(()));
        let mut direction = LinkDirection::new(settings, seed);
        let (delivered, dropped) = run(&mut direction, &packets);
        let counts = direction.counts();
        prop_assert_eq!(direction.inside(), 0);
        prop_assert_eq!(counts.entered, packets.len() as u64);
        prop_assert_eq!(counts.left, delivered.len() as u64);
        prop_assert_eq!(counts.entered, counts.left + counts.all_dropped() - counts.copies);
        let copies = delivered.iter().filter(|(_, departure)| departure.is_copy).count();
        prop_assert_eq!(counts.copies, copies as u64);
        for reason in DropReason::ALL {
            let of_reason = dropped.iter().filter(|(_, other)| *other == reason).count();
            prop_assert_eq!(counts.dropped_by(reason), of_reason as u64);
        }
        let originals = delivered.iter().filter(|(_, departure)| !departure.is_copy).map(|(_, departure)| departure.packet);
        let mut seen = originals.chain(dropped.iter().map(|(packet, _)| *packet)).collect::<Vec<_>>();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..packets.len()).collect::<Vec<_>>());
    }

    #[test]
    fn no_packet_leaves_before_it_is_due_nor_late(settings in any_settings(), packets in any_packets(), seed: u64) {
        let delay = settings.delay();
        let (delivered, _) = run(&mut LinkDirection::new(settings, seed), &packets);
        for (left, departure) in delivered {
            prop_assert!(left >= departure.due);
            prop_assert!(departure.due >= departure.entered + departure.queue_wait + delay);
            // `run` looks exactly when it is asked to, so a later time means that a wake-up was missed.
            prop_assert_eq!(left, departure.due);
        }
    }

    #[test]
    fn without_reordering_the_order_is_kept(settings in any_settings(), packets in any_packets(), seed: u64) {
        let settings = DirectionSettings { reorder: None, jitter_reorders: false, ..settings };
        let (delivered, _) = run(&mut LinkDirection::new(settings, seed), &packets);
        prop_assert!(delivered.iter().map(|(_, departure)| departure.number).is_sorted());
    }

    #[test]
    fn the_rate_is_never_exceeded(settings in any_settings(), packets in any_packets(), seed: u64, mbit in 0.5..50.0) {
        // With constant delay the times of leaving are those of the transmitter.
        let settings = DirectionSettings {
            rate_mbit: Some(mbit), queue_ms: Some(30.0), jitter_ms: 0.0, reorder: None, ..settings
        };
        let sizes = packets.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>();
        let (delivered, _) = run(&mut LinkDirection::new(settings, seed), &packets);
        for from in 0..delivered.len() {
            let mut bits = 0.0;
            for (_, departure) in &delivered[from + 1..] {
                bits += sizes[departure.packet] as f64 * 8.0;
                let took = (departure.due - delivered[from].1.due).as_secs_f64();
                prop_assert!(bits <= took * mbit * 1e6 * (1.0 + 1e-9) + 0.001, "{} bits in {} s", bits, took);
            }
        }
    }

    #[test]
    fn the_queue_never_holds_more_than_its_length(packets in any_packets(), mbit in 0.5..50.0, queue_ms in 0.0..40.0) {
        let (delivered, _) = run(&mut LinkDirection::new(line(mbit, queue_ms), 1), &packets);
        // What waits, and the packet in the transmitter; a queue has room for at least one packet.
        let most = queue_ms / 1e3 + 2.0 * 1500.0 * 8.0 / (mbit * 1e6);
        for (_, departure) in delivered {
            prop_assert!(departure.queue_wait.as_secs_f64() <= most + 1e-6);
        }
    }
}
