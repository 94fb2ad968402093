//! A stream of `udp`, as the phase runner sees it: what its two ends do, and what is told of it at its end. The same at
//! both ends of a session.

use std::io;
use std::net::{Shutdown, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use paramedic_link::admission::SessionKeys;
use paramedic_link::measurement::DirectionTally;
use paramedic_link::test_spec::TestSpec;
use socket2::SockRef;

use super::packet::Place;
use super::receiver::{self, Received};
use super::sender::{self, FIRST_WORD, Sent};
use super::socket;
use crate::phase::{self, Ended, StreamReport, StreamRun};
use crate::tether::{Hold, Tether};

/// A stream that stands: its socket hears and reaches its other end alone. Cutting the session's tether ends it.
pub(super) struct Standing {
    pub(super) place: Place,
    pub(super) socket: UdpSocket,
    pub(super) keys: Arc<SessionKeys>,
    _hold: Hold,
}

impl Standing {
    /// Asks of a connected `socket` what the test asks for.
    pub(super) fn new(
        place: Place,
        socket: UdpSocket,
        keys: &Arc<SessionKeys>,
        ask: &TestSpec,
        tether: &Arc<Tether>,
    ) -> io::Result<Self> {
        socket::prepare(&socket, ask)?;
        let hold = tether.hold(&socket)?;
        Ok(Self { place, socket, keys: Arc::clone(keys), _hold: hold })
    }
}

pub(super) type Run<'a> = StreamRun<'a, UdpSocket>;
pub(super) type Report = StreamReport<Counted>;

/// What a stream's thread has counted.
#[derive(Default)]
pub(super) struct Counted {
    pub(super) sent: Sent,
    pub(super) received: Received,
    /// When the last datagram left or came, since the begin.
    pub(super) last_ns: u64,
}

/// Completes the report of a stream whose thread is done.
fn done(run: &Run<'_>, report: &mut Report, result: io::Result<()>) -> io::Result<()> {
    report.last = Some(run.context.begin + Duration::from_nanos(report.own.last_ns));
    result
}

impl phase::Stream for Standing {
    /// Its socket a second time, to end it.
    type Watched = UdpSocket;
    type Own = Counted;
    const THREADS: [&'static str; 2] = ["udp-send", "udp-receive"];
    const LATEST_BEGIN: Duration = FIRST_WORD;

    fn watched(&self, _is_sent: bool) -> io::Result<UdpSocket> {
        self.socket.try_clone()
    }

    fn send(&mut self, run: &Run<'_>, report: &mut Report) -> io::Result<()> {
        let result = sender::send(self, run, report);
        done(run, report, result)
    }

    fn receive(&mut self, run: &Run<'_>, report: &mut Report) -> io::Result<()> {
        let result = receiver::receive(self, run, &mut report.own);
        done(run, report, result)
    }

    /// The sender's thread hears the receiver's feedback itself.
    fn attend(_socket: &UdpSocket, _total: u64) -> bool {
        false
    }

    /// The sender's thread pauses sooner, by its own receiver's silence.
    fn pause(_socket: &UdpSocket, _is_silent: bool) {}

    fn abort(socket: &UdpSocket) {
        // An error means that it had ended already.
        let _ = SockRef::from(socket).shutdown(Shutdown::Both);
    }

    /// These failures say what to do, and need no more words.
    fn describe(failure: &io::Error, _after: Duration) -> String {
        failure.to_string()
    }

    fn tally(streams: &[Ended<'_, Self>], is_sent: bool, tally: &mut DirectionTally) {
        let datagrams = if is_sent {
            sender::tally(streams.iter().map(|stream| &stream.own.sent))
        } else {
            receiver::tally(streams.iter().map(|stream| &stream.own.received))
        };
        tally.data_path = Some("plain".into());
        tally.datagrams = Some(Box::new(datagrams));
    }
}
