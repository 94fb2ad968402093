//! The sending end of one stream: bytes, as fast as they are taken, until the time is over. The same at both ends of a
//! session.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use paramedic_link::test_spec::{DataPathWish, TestSpec};

use super::ready::TcpRun;
use super::stream_charge::StreamCharge;
use super::unsent_limit::UnsentLimit;
use super::{data_path, payload};
use crate::data_stream::{CHUNK, DataStream};
use crate::sys::splice::PagePipe;

/// The longest that a write may stand past the end of its phase.
const LONGEST_WRITE: Duration = Duration::from_millis(100);

/// Pages that wait for the socket in one go: the more moves in one call, the less a byte costs.
/// A user's pipes may hold 64 MiB in all, which is enough for every stream there can be (pipe(7)).
const PIPE: usize = 4 * CHUNK;

/// How often a second a stream that is held to a rate hands bytes to its kernel, which spreads them further.
const STEPS_PER_S: u64 = 100;
/// The least that it hands over: about a segment.
const LEAST_STEP: u64 = 1400;

/// How a stream's bytes reach its socket.
enum Way {
    /// Copied to the kernel, or through TLS.
    Write,
    /// Given to the kernel by reference.
    Splice(PagePipe),
}

impl Way {
    /// The way that is wished for, or the best there is. What lies in the pipe is counted when it has left it.
    fn choose(stream: &DataStream, wish: DataPathWish) -> io::Result<Self> {
        let pages = match (stream, wish) {
            (DataStream::Plain(_), DataPathWish::Auto | DataPathWish::Splice) => PagePipe::new(PIPE),
            _ => return Ok(Self::Write),
        };
        match pages {
            Ok(pages) => Ok(Self::Splice(pages)),
            Err(_) if wish == DataPathWish::Auto => Ok(Self::Write),
            Err(e) => Err(e),
        }
    }

    fn name(&self, stream: &DataStream) -> &'static str {
        match (self, stream) {
            (Self::Splice(_), _) => data_path::SPLICE,
            (Self::Write, DataStream::Plain(_)) => data_path::PLAIN,
            (Self::Write, DataStream::Tls(_)) => data_path::TLS,
        }
    }

    /// Moves at most about `most` bytes of what the stream carries from `position` on: how many the socket took.
    fn send(&mut self, stream: &mut DataStream, position: u64, most: usize) -> io::Result<usize> {
        let Self::Splice(pages) = self else { return stream.write(payload::from(position, most)) };
        while pages.held() < most {
            // A pipe of fewer pages than were asked for is full sooner.
            if pages.put(payload::from(position + pages.held() as u64, most - pages.held()))? == 0 {
                break;
            }
        }
        pages.send(stream.socket())
    }
}

/// How much is handed to the kernel at once where that was asked for; held to a rate a stream takes small steps.
fn block_of(ask: &TestSpec) -> Option<usize> {
    let step = |bps: u64| (bps / 8 / STEPS_PER_S).clamp(LEAST_STEP, CHUNK as u64) as usize;
    let steps = ask.bitrate_bps.filter(|bps| *bps > 0).map(step);
    ask.block_bytes.map(|bytes| bytes as usize).or(steps)
}

/// Sends until the phase's time is over, then waits until the other end has taken everything and said so. `path` is set
/// to how the bytes were moved.
pub(super) fn send(stream: &mut DataStream, run: &TcpRun<'_>, path: &mut Option<&'static str>) -> io::Result<()> {
    let context = run.context;
    let unsent_limit = run.watched.unsent_limit.as_ref();
    let wish = context.ask.data_path;
    let mut way = Way::choose(stream, wish)?;
    *path = Some(way.name(stream));
    let block = block_of(context.ask);
    let (mut total, mut charge) = (0, StreamCharge::default());
    let mut limit = LONGEST_WRITE;
    stream.socket().set_write_timeout(Some(limit))?;
    loop {
        let left = context.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        if left < limit {
            limit = left.max(Duration::from_millis(1));
            stream.socket().set_write_timeout(Some(limit))?;
        }
        let most = block.unwrap_or(PIPE).min(unsent_limit.map_or(PIPE, UnsentLimit::bytes));
        if most == 0 {
            await_word(run)?;
            continue;
        }
        match way.send(stream, total, most) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => {
                total += sent as u64;
                run.counter.set(total);
                charge.settle(context.control, stream, total)?;
            }
            Err(e) if is_worth_another_try(&e) => {}
            // A kernel, or what stands in for one, that does not do it; nothing has left the pipe.
            Err(e) if wish == DataPathWish::Auto && matches!(way, Way::Splice(_)) && is_unknown_here(&e) => {
                way = Way::Write;
                *path = Some(way.name(stream));
            }
            Err(e) => return Err(e),
        }
    }
    stream.socket().set_write_timeout(Some(LONGEST_WRITE))?;
    loop {
        match stream.finish() {
            Ok(()) => break,
            Err(e) if is_worth_another_try(&e) => {}
            Err(e) => return Err(e),
        }
    }
    // The receiver ends its side when it has read the end of ours. The phase's watcher ends this wait at the latest.
    let mut goodbye = [0; 512];
    loop {
        match stream.socket().read(&mut goodbye) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) if is_worth_another_try(&e) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Waits while the stream pauses, until its time is over. An error: its phase is over.
fn await_word(run: &TcpRun<'_>) -> io::Result<()> {
    let pauses = || run.watched.unsent_limit.as_ref().is_some_and(|limit| limit.bytes() == 0);
    run.context.control.wait_until(run.context.until, || !pauses() || run.is_over());
    if run.is_over() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
}

/// Whether this is how a kernel says that it has no such way.
fn is_unknown_here(failure: &io::Error) -> bool {
    matches!(failure.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

fn is_worth_another_try(failure: &io::Error) -> bool {
    matches!(failure.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
