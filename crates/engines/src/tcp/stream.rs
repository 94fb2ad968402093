//! Implements [`PhaseStream`] for the streams of `tcp`. The implementation is the same at both ends of a session.

use std::io;
use std::time::{Duration, Instant};

use paramedic_link::measurement::{DirectionTally, TcpTimes};
use paramedic_link::phase_detail::TcpSample;

use super::ready::{ReadyConnection, TcpReport, TcpRun, Watched};
use super::{receiver, sender};
use crate::phase::{Ended, PhaseStream, SAMPLE_INTERVAL};
use crate::socket::{self, LimitedTimes};

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

    /// Adapts the limit on unsent bytes. Returns whether an acknowledgement has arrived in the last sample interval.
    /// Nothing else shows a sender that the other end is alive.
    fn attend(Watched { socket, unsent_limit, .. }: &Watched, total: u64) -> bool {
        if let Some(limit) = unsent_limit {
            limit.adapt(socket, total);
        }
        socket::since_last_ack(socket).is_some_and(|ago| ago <= SAMPLE_INTERVAL)
    }

    fn acknowledged(watched: &Watched, total: u64) -> u64 {
        watched.acknowledged(total)
    }

    fn tcp_sample(watched: &Watched) -> Option<TcpSample> {
        socket::tcp_sample(&watched.socket)
    }

    /// Pauses only if sent bytes are unacknowledged. Otherwise the other end has nothing to send, so its silence means
    /// nothing.
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
            let infos = streams.iter().map(|stream| socket::segment_facts(&stream.watched.socket));
            let infos = infos.collect::<Vec<_>>();
            let first = streams.first().and_then(|stream| socket::congestion_control(&stream.watched.socket));
            tally.congestion_control = first.map(Into::into);
            tally.mss = infos.iter().find_map(|facts| facts.mss);
            tally.path_mtu = infos.iter().filter_map(|facts| facts.path_mtu).min();
            let retransmits = infos.iter().filter_map(|facts| facts.retransmits).map(u64::from);
            tally.retransmits = retransmits.reduce(|a, b| a + b);
            let times = streams.iter().map(|stream| stream.watched.limited_times()).collect::<Option<Vec<_>>>();
            tally.tcp_times = times.filter(|times| !times.is_empty()).map(|times| sum(&times, tally.count.elapsed_us));
        }
    }
}

/// The sum of the times of all `streams`. The kernel also counts the time for which data drains after the phase, so
/// each stream's times are capped at `elapsed_us`, the duration of the phase.
fn sum(streams: &[LimitedTimes], elapsed_us: u64) -> TcpTimes {
    streams.iter().fold(TcpTimes::default(), |sum, stream| {
        let busy_us = stream.busy_us.min(elapsed_us);
        TcpTimes {
            total_us: sum.total_us + elapsed_us,
            busy_us: sum.busy_us + busy_us,
            receive_window_us: sum.receive_window_us + stream.receive_window_us.min(busy_us),
            send_buffer_us: sum.send_buffer_us + stream.send_buffer_us.min(busy_us),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_all_streams_are_summed_within_the_time_of_the_phase() {
        let stream = |busy_us, receive_window_us| LimitedTimes { busy_us, receive_window_us, send_buffer_us: 5 };
        let expected = TcpTimes { total_us: 200, busy_us: 190, receive_window_us: 140, send_buffer_us: 10 };
        assert_eq!(sum(&[stream(90, 40), stream(130, 120)], 100), expected);
        assert_eq!(sum(&[], 100), TcpTimes::default());
    }
}
