//! The phase runner's view of a stream of `tcp`, the same at both ends of a session.

use std::io;
use std::time::{Duration, Instant};

use paramedic_link::measurement::DirectionTally;

use super::ready::{ReadyConnection, TcpReport, TcpRun, Watched};
use super::{receiver, sender};
use crate::phase::{Ended, PhaseStream, SAMPLE_INTERVAL};
use crate::socket;

impl PhaseStream for ReadyConnection {
    type Watched = Watched;
    type Own = Option<&'static str>;
    const THREADS: [&'static str; 2] = ["tcp-send", "tcp-receive"];
    const LATEST_BEGIN: Duration = Duration::ZERO;

    fn watched(&self, is_sent: bool) -> io::Result<Watched> {
        Watched::new(self.stream.inner(), is_sent)
    }

    fn send(&mut self, run: &TcpRun<'_>, report: &mut TcpReport) -> io::Result<()> {
        let result = sender::send(&mut self.stream, run, &mut report.own);
        #[expect(clippy::disallowed_methods, reason = "the end of a send in wall time")]
        let now = Instant::now();
        report.last = Some(now.min(run.context.until()));
        result
    }

    fn receive(&mut self, run: &TcpRun<'_>, report: &mut TcpReport) -> io::Result<()> {
        receiver::receive(&mut self.stream, run, report)
    }

    /// For a sender, acknowledgements are the only sign of life of the other end.
    fn attend(Watched { socket, unsent_limit, .. }: &Watched, total: u64) -> bool {
        if let Some(limit) = unsent_limit {
            limit.adapt(socket, total);
        }
        socket::since_last_ack(socket).is_some_and(|ago| ago <= SAMPLE_INTERVAL)
    }

    fn acknowledged(watched: &Watched, total: u64) -> u64 {
        watched.acknowledged(total)
    }

    /// While all sent bytes are acknowledged, the other end has nothing to send, so its silence is ignored.
    fn pause(Watched { socket, unsent_limit, .. }: &Watched, is_silent: bool) {
        if let Some(limit) = unsent_limit {
            limit.pause(is_silent && socket::is_unacknowledged(socket));
        }
    }

    fn abort(watched: &Watched) {
        socket::abort(&watched.socket);
    }

    fn describe(failure: &io::Error, after: Duration) -> String {
        format!("a data connection failed after {:.1} s: {failure}", after.as_secs_f64())
    }

    fn tally(streams: &[Ended<'_, Self>], is_sent: bool, tally: &mut DirectionTally) {
        tally.data_path = streams.iter().find_map(|stream| stream.own).map(Into::into);
        if is_sent {
            let infos = streams.iter().map(|stream| socket::retransmits_and_mss(&stream.watched.socket));
            let infos = infos.collect::<Vec<_>>();
            let first = streams.first().and_then(|stream| socket::congestion_control(&stream.watched.socket));
            tally.congestion_control = first.map(Into::into);
            tally.mss = infos.iter().find_map(|(_, mss)| *mss);
            let retransmits = infos.iter().filter_map(|(retransmits, _)| *retransmits).map(u64::from);
            tally.retransmits = retransmits.reduce(|a, b| a + b);
        }
    }
}
