//! The sending end of a stream. It sends until the phase's time is over, as fast as the socket accepts bytes and the
//! rate limit allows. The code is the same at both ends of a session.

#![expect(clippy::disallowed_methods, reason = "sends in wall time")]

use std::io::{self, Read, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use paramedic_link::test_spec::DataPathWish;

use super::rate_limit::RateLimit;
use super::ready::TcpRun;
use super::unsent_limit::UnsentLimit;
use super::{data_path, payload};
use crate::data_stream::{CHUNK, DataStream};
use crate::metered_stream::MeteredStream;
use crate::sys::splice::PagePipe;

/// The longest time that a write may block. The limit ensures that the sender notices the end of its phase.
const WRITE_TIMEOUT: Duration = Duration::from_millis(100);

/// The capacity in bytes of the pipe for zero-copy sends. The more bytes one call moves, the less processor time each
/// byte costs. The pipes of one user may hold 64 MiB in total (pipe(7)), which suffices for the maximum number of
/// streams of a session.
const PIPE_CAPACITY: usize = 4 * CHUNK;

/// How a stream's bytes are written to its socket.
enum SendMethod {
    /// The bytes are copied, or encrypted by TLS.
    Write,
    /// The bytes are passed to the kernel by reference, through a pipe.
    Splice(PagePipe),
}

impl SendMethod {
    /// Chooses the method that `wish` requests, or the fastest one available if the choice is automatic.
    fn choose(stream: &DataStream, wish: DataPathWish) -> io::Result<Self> {
        let pages = match (stream, wish) {
            (DataStream::Plain(_), DataPathWish::Auto | DataPathWish::Splice) => PagePipe::new(PIPE_CAPACITY),
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

    /// Sends the stream's payload from byte `position` on: at most `most` bytes, or the bytes that the pipe already
    /// holds if these are more. Returns how many bytes the socket accepted.
    fn send(&mut self, stream: &mut DataStream, position: u64, most: usize) -> io::Result<usize> {
        let Self::Splice(pages) = self else { return stream.write(payload::from(position, most)) };
        while pages.held() < most {
            // The pipe may be smaller than requested.
            if pages.put(payload::from(position + pages.held() as u64, most - pages.held()))? == 0 {
                break;
            }
        }
        pages.send(stream.socket())
    }
}

/// Sends until the phase's time is over, and then waits until the other end confirms that it has read everything. Sets
/// `path` to the name of the method that moved the bytes, for example [`data_path::SPLICE`].
pub(super) fn send(stream: &mut MeteredStream, run: &TcpRun<'_>, path: &mut Option<&'static str>) -> io::Result<()> {
    let context = run.context;
    let unsent_limit = run.watched.unsent_limit.as_ref();
    let wish = context.ask.data_path;
    let mut method = SendMethod::choose(stream.inner(), wish)?;
    *path = Some(method.name(stream.inner()));
    let rate_limit = RateLimit::of(context.ask);
    let in_kernel = match stream.inner() {
        DataStream::Plain(_) => UnsentLimit::bytes,
        DataStream::Tls(_) => UnsentLimit::record_bytes,
    };
    let block = context.ask.block_bytes.map_or(PIPE_CAPACITY, |bytes| bytes as usize);
    let (mut total, mut framing, mut taken) = (0, 0, 0);
    let mut limit = WRITE_TIMEOUT;
    stream.inner().socket().set_write_timeout(Some(limit))?;
    loop {
        let left = context.until().saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        if left < limit {
            limit = left.max(Duration::from_millis(1));
            stream.inner().socket().set_write_timeout(Some(limit))?;
        }
        let mut most = block.min(unsent_limit.map_or(PIPE_CAPACITY, in_kernel));
        if most == 0 {
            await_resume(run)?;
            continue;
        }
        if let Some(rate_limit) = &rate_limit {
            match rate_limit.next(total, context.now_ns()) {
                Ok(step) => most = most.min(step),
                Err(due_ns) => {
                    let due = context.begin + Duration::from_nanos(due_ns);
                    context.control.wait_until(due.min(context.until()), || run.is_over());
                    if run.is_over() {
                        return Err(io::ErrorKind::ConnectionAborted.into());
                    }
                    continue;
                }
            }
        }
        most = run.take_bytes(&mut taken, most);
        if most == 0 {
            break;
        }
        match method.send(stream.inner_mut(), total, most) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => {
                total += sent as u64;
                taken = taken.saturating_sub(sent as u64);
                framing += stream.inner().framing(sent);
                run.watched.framing.store(framing, Ordering::Relaxed);
                run.counter.set(total);
                stream.charge_and_wait(total).map_err(io::Error::other)?;
            }
            Err(e) if is_transient(&e) => {}
            // The kernel or a sandbox does not support zero-copy sends; no byte has left the pipe.
            Err(e) if wish == DataPathWish::Auto && matches!(method, SendMethod::Splice(_)) && is_unsupported(&e) => {
                method = SendMethod::Write;
                *path = Some(method.name(stream.inner()));
            }
            Err(e) => return Err(e),
        }
    }
    stream.inner().socket().set_write_timeout(Some(WRITE_TIMEOUT))?;
    loop {
        match stream.inner_mut().finish() {
            Ok(()) => break,
            Err(e) if is_transient(&e) => {}
            Err(e) => return Err(e),
        }
    }
    // The receiver closes its side when it has read the end of the stream. The phase's watcher limits this wait.
    let mut rest = [0; 512];
    let mut unexpected = 0;
    loop {
        match stream.inner().socket().read(&mut rest) {
            Ok(0) => return Ok(()),
            // A receiver sends only the alerts and key updates of TLS. More is refused, because bytes in this direction
            // are not charged.
            Ok(came) => {
                unexpected += came;
                if unexpected > stream.inner().max_answer() {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the receiver sent data, which only the sender may do",
                    ));
                }
            }
            Err(e) if is_transient(&e) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Waits while the stream is paused, at most until the end of the phase. Fails if the session was cancelled or a stream
/// failed.
fn await_resume(run: &TcpRun<'_>) -> io::Result<()> {
    let is_paused = || run.watched.unsent_limit.as_ref().is_some_and(|limit| limit.bytes() == 0);
    run.context.control.wait_until(run.context.until(), || !is_paused() || run.is_over());
    if run.is_over() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
}

/// Whether `failure` means that the kernel or a sandbox does not support zero-copy sends.
fn is_unsupported(failure: &io::Error) -> bool {
    matches!(failure.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

fn is_transient(failure: &io::Error) -> bool {
    matches!(failure.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
