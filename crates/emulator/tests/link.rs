//! Tests emulated links between network namespaces: what arrives agrees with the record of the link. Needs root; prints
//! SKIPPED without it.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use emulator::{DirectionSettings, DropReason, Family, Hop, Namespace, Reorder, Topology, Transport, Way};

/// A packet that does not arrive within this time counts as lost.
const TIMEOUT: Duration = Duration::from_secs(2);

fn may_run() -> bool {
    let may = rustix::process::geteuid().is_root();
    if !may {
        eprintln!("SKIPPED: network namespaces need root");
    }
    may
}

/// A socket with a port that the kernel chooses, because a child process of another test may still hold a port that was
/// just released.
fn socket(host: &Namespace, family: Family) -> UdpSocket {
    let any = if family == Family::Ipv4 { "0.0.0.0:0" } else { "[::]:0" };
    let socket = host.inside(|| Ok(UdpSocket::bind(any)?)).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

fn emulated(up: DirectionSettings) -> Hop {
    Hop { up: Some(up), down: Some(DirectionSettings::default()), mtu: None }
}

/// What the first link of a topology did, since the last call, to the UDP flow with the most packets towards the
/// reflector.
fn upwards(topology: &Topology) -> emulator::FlowRecord {
    let record = topology.links[0].take_record(Way::Up);
    let flows = record.flows.into_iter().filter(|(key, _)| key.transport == Transport::Udp);
    flows.map(|(_, flow)| flow).max_by_key(|flow| flow.entered).unwrap_or_default()
}

#[test]
fn two_three_and_four_hosts_reach_each_other_over_both_families() {
    if !may_run() {
        return;
    }
    for plain_hops in 0..3 {
        let mut hops = vec![Hop::default(); plain_hops];
        hops.insert(plain_hops / 2, emulated(DirectionSettings { delay_ms: 3.0, ..Default::default() }));
        let topology = Topology::new(&hops, 1, &[]).unwrap();
        assert_eq!(topology.hosts().len(), plain_hops + 2);
        for family in [Family::Ipv4, Family::Ipv6] {
            let reflector = socket(topology.reflector(), family);
            let appliance = socket(topology.appliance(), family);
            let port = reflector.local_addr().unwrap().port();
            appliance.send_to(b"there", SocketAddr::new(topology.reflector_address(family), port)).unwrap();
            let mut buffer = [0; 16];
            let (length, from) = reflector.recv_from(&mut buffer).unwrap();
            assert_eq!(from.ip(), topology.appliance_address(family));
            reflector.send_to(&buffer[..length], from).unwrap();
            assert_eq!(appliance.recv(&mut buffer).unwrap(), 5);
            let flow = upwards(&topology);
            assert_eq!((flow.entered, flow.left, flow.payload_bytes), (1, 1, 5), "{plain_hops} {family:?}");
        }
    }
}

#[test]
fn a_receiver_sees_exactly_what_the_link_did() {
    if !may_run() {
        return;
    }
    let settings = DirectionSettings {
        loss_percent: 20.0,
        duplicate_percent: 10.0,
        reorder: Some(Reorder { percent: 10.0, by_ms: 20.0 }),
        ..Default::default()
    };
    let topology = Topology::new(&[emulated(settings.clone())], 5, &[]).unwrap();
    let reflector = socket(topology.reflector(), Family::Ipv4);
    let appliance = socket(topology.appliance(), Family::Ipv4);
    let port = reflector.local_addr().unwrap().port();
    appliance.connect((topology.reflector_address(Family::Ipv4), port)).unwrap();
    // As many as the receiver's buffer holds, so that nothing depends on when it reads.
    let count = 150_u64;
    for number in 0..count {
        appliance.send(&number.to_be_bytes()).unwrap();
    }
    // The link's threads may wait for a processor; after the first packet the others follow within 20 ms.
    let mut patience = Duration::from_secs(30);
    let received = std::iter::from_fn(|| {
        reflector.set_read_timeout(Some(patience)).unwrap();
        patience = Duration::from_secs(2);
        let mut buffer = [0; 8];
        reflector.recv(&mut buffer).ok().map(|_| u64::from_be_bytes(buffer))
    });
    let received = received.collect::<Vec<_>>();
    let mut buffer = [0; 8];
    let flow = upwards(&topology);
    let distinct = received.iter().collect::<BTreeSet<_>>().len() as u64;
    let lost = flow.dropped[DropReason::Random as usize];
    assert_eq!((flow.entered, flow.all_dropped()), (count, lost));
    assert_eq!((distinct, received.len() as u64), (count - lost, count - lost + flow.copies));
    let mut highest = None;
    let mut seen = BTreeSet::new();
    let mut reordered = 0;
    for number in received {
        reordered += u64::from(seen.insert(number) && Some(number) < highest);
        highest = highest.max(Some(number));
    }
    assert_eq!(reordered, flow.reordered);
    assert!(lost > 0 && flow.copies > 0 && reordered > 0, "{flow:?}");

    let link = &topology.links[0];
    link.change(Way::Up, DirectionSettings { loss_percent: 100.0, ..Default::default() });
    appliance.send(b"lost").unwrap();
    assert!(reflector.recv(&mut buffer).is_err(), "every packet is lost");
    assert_eq!(upwards(&topology).all_dropped(), 1);
    link.change(Way::Up, DirectionSettings::default());
    appliance.send(b"there").unwrap();
    assert_eq!(reflector.recv(&mut buffer).unwrap(), 5);
}
