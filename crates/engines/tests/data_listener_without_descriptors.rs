//! Tests the data listener of a process that has run out of descriptors. The test has a process of its own, because the
//! limit is per process.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use paramedic_engines::data_listener::{DataListener, PreambleAuthenticator};
use paramedic_engines::dialer::SocketOptions;
use paramedic_engines::session_control::SessionControl;
use paramedic_link::SessionId;
use paramedic_link::admission::{Preamble, SessionKeys};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use zeroize::Zeroizing;

fn cpu_ms() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    [usage.user_time(), usage.system_time()].iter().map(|time| time.tv_sec() * 1000 + time.tv_usec() / 1000).sum()
}

#[test]
fn a_connection_is_accepted_once_descriptors_are_free_without_a_busy_loop_until_then() {
    let keys = || SessionKeys::derive(SessionId::from_bytes([3; 16]), Zeroizing::new([1; 32]));
    let (accept, accepted) = channel();
    let sink = Box::new(move |preamble: Preamble, stream| accept.send((preamble.stream, stream)).unwrap());
    let peer = [127, 0, 0, 1].into();
    let (at, options, authenticator) =
        (([127, 0, 0, 1], 0).into(), SocketOptions::default(), PreambleAuthenticator::new(Arc::new(keys())));
    let listener =
        DataListener::open(at, &options, authenticator, peer, 64, SessionControl::unmetered(), sink).unwrap();
    let mut socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();

    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum }).unwrap();
    let null = File::open("/dev/null").unwrap();
    let mut held = Vec::new();
    while let Ok(another) = null.try_clone() {
        held.push(another);
    }

    socket.connect(&listener.local_addr().into()).unwrap();
    let preamble = Preamble { session: keys().session(), phase: 0, stream: 7, nonce: [0; 12] };
    socket.write_all(&preamble.seal(&keys())).unwrap();
    let before = cpu_ms();
    // No answer comes: for half a second the listener cannot accept the connection.
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert!(socket.read(&mut [0; 1]).is_err());
    assert!(accepted.try_recv().is_err());
    assert!(cpu_ms() - before < 100, "{} ms of a processor went into waiting", cpu_ms() - before);

    drop(held);
    assert_eq!(accepted.recv().unwrap().0, 7);
    assert_eq!(listener.refused(), 0);
}
