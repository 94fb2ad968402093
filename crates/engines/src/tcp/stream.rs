//! A stream of `tcp`, as the phase runner sees it: what its two ends do, what is watched of it, what is told of it at its
//! end. The same at both ends of a session.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use paramedic_link::measurement::DirectionTally;

use super::sender::Lead;
use super::{receiver, sender};
use crate::data_stream::DataStream;
use crate::phase::{self, Ended, SAMPLE_INTERVAL, StreamRegistry, StreamReport, StreamRun};
use crate::socket;
use crate::tether::{Hold, Tether};

/// A stream that stands. Cutting the session's tether ends it.
pub(super) struct Standing {
    stream: DataStream,
    _hold: Hold,
}

/// The streams that stand.
pub(super) type Streams = StreamRegistry<Standing>;

/// Gives a connected stream its place. Where it has none, or the session is over, it is dropped, which refuses it.
pub(super) fn admit(streams: &Streams, tether: &Arc<Tether>, phase: u8, index: u16, stream: DataStream) {
    match tether.hold(stream.socket()) {
        Ok(hold) => {
            if let Err(why) = streams.admit(phase, index, Standing { stream, _hold: hold }) {
                tracing::debug!(phase, index, ?why, "a data connection that has no place here was dropped");
            }
        }
        Err(error) => tracing::debug!(phase, index, %error, "a data connection can't be kept"),
    }
}

/// A stream's socket a second time, to ask and to end it.
pub(super) struct Watched {
    socket: TcpStream,
    /// Where this end sends: how far it may run ahead.
    pub(super) lead: Option<Lead>,
}

pub(super) type Run<'a> = StreamRun<'a, Watched>;
/// With how the bytes were moved.
pub(super) type Report = StreamReport<Option<&'static str>>;

impl phase::Stream for Standing {
    type Watched = Watched;
    type Own = Option<&'static str>;
    const THREADS: [&'static str; 2] = ["tcp-send", "tcp-receive"];
    const LATEST_BEGIN: Duration = Duration::ZERO;

    fn watched(&self, is_sent: bool) -> io::Result<Watched> {
        let socket = self.stream.socket().try_clone()?;
        let lead = is_sent.then(|| Lead::new(&socket));
        Ok(Watched { socket, lead })
    }

    fn send(&mut self, run: &Run<'_>, report: &mut Report) -> io::Result<()> {
        let result = sender::send(&mut self.stream, run, &mut report.own);
        report.last = Some(Instant::now().min(run.context.until));
        result
    }

    fn receive(&mut self, run: &Run<'_>, report: &mut Report) -> io::Result<()> {
        receiver::receive(&mut self.stream, run, report)
    }

    /// A sender hears the other end by its acknowledgements alone.
    fn attend(Watched { socket, lead }: &Watched, total: u64) -> bool {
        if let Some(lead) = lead {
            lead.adapt(socket, total);
        }
        socket::since_last_ack(socket).is_some_and(|ago| ago <= SAMPLE_INTERVAL)
    }

    /// Where everything was acknowledged the other end owes no word: its silence says nothing.
    fn pause(Watched { socket, lead }: &Watched, is_silent: bool) {
        if let Some(lead) = lead {
            lead.pause(is_silent && socket::is_unacknowledged(socket));
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
            let infos = streams.iter().map(|stream| socket::stream_info(&stream.watched.socket, stream.bytes));
            let infos = infos.collect::<Vec<_>>();
            let first = streams.first().and_then(|stream| socket::congestion_control(&stream.watched.socket));
            tally.congestion_control = first.map(Into::into);
            tally.mss = infos.iter().find_map(|(_, mss)| *mss);
            let retransmits = infos.iter().filter_map(|(info, _)| info.retransmits).map(u64::from);
            tally.retransmits = retransmits.reduce(|a, b| a + b);
        }
    }
}
