//! Implements [`PhaseStream`] for the streams of `udp`. The implementation is the same at both ends of a session.

use std::io;
use std::net::{Shutdown, UdpSocket};
use std::time::Duration;

use paramedic_link::measurement::DirectionTally;
use socket2::SockRef;

use super::ready::{ReadyStream, StreamCounts, UdpReport, UdpRun};
use super::receiver;
use super::sender::{self, FEEDBACK_TIMEOUT};
use crate::phase::{Ended, PhaseStream};

/// Sets the time of the last datagram in the report of a stream whose thread ends. Returns `result` unchanged.
fn done(run: &UdpRun<'_>, report: &mut UdpReport, result: io::Result<()>) -> io::Result<()> {
    report.last = Some(run.context.begin + Duration::from_nanos(report.own.last_ns));
    result
}

impl PhaseStream for ReadyStream {
    /// A second handle of the stream's socket, with which the watcher can shut the socket down.
    type Watched = UdpSocket;
    type Own = StreamCounts;
    const THREADS: [&'static str; 2] = ["udp-send", "udp-receive"];
    const LATEST_BEGIN: Duration = FEEDBACK_TIMEOUT;

    fn watched(&self, _is_sent: bool) -> io::Result<UdpSocket> {
        self.socket.try_clone()
    }

    fn send(&mut self, run: &UdpRun<'_>, report: &mut UdpReport) -> io::Result<()> {
        let result = sender::send(self, run, report);
        done(run, report, result)
    }

    fn receive(&mut self, run: &UdpRun<'_>, report: &mut UdpReport) -> io::Result<()> {
        let result = receiver::receive(self, run, &mut report.own);
        done(run, report, result)
    }

    /// Nothing to do: the sender's thread reads the receiver's feedback itself.
    fn attend(_socket: &UdpSocket, _total: u64) -> bool {
        false
    }

    /// Nothing to do: the sender's thread pauses by itself, and sooner, when the receiver of its stream is silent.
    fn pause(_socket: &UdpSocket, _is_silent: bool) {}

    fn abort(socket: &UdpSocket) {
        // Fails only if the socket was shut down already.
        SockRef::from(socket).shutdown(Shutdown::Both).ok();
    }

    /// Returns the error's own text, which already describes the failure.
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
