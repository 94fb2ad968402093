//! The receiving end of one stream: bytes are counted and forgotten. The same at both ends of a session.

use std::io;
use std::time::Instant;

use super::phase::{Counter, Course};
use crate::data_stream::{CHUNK, DataStream};

/// Room for what one call takes. Where the kernel throws the bytes away it is never written to, and so costs nothing.
const ROOM: usize = 4 * CHUNK;

/// How bytes are moved, as a result names it.
pub(super) const TRUNC: &str = "trunc";
/// The same, with a copy of every byte.
pub(super) const PLAIN: &str = "plain";
/// The same, inside TLS.
pub(super) const TLS: &str = "tls";

/// What was received.
#[derive(Default)]
pub(super) struct Received {
    /// When the last byte came.
    pub(super) last: Option<Instant>,
    /// `trunc`, `plain` or `tls`.
    pub(super) data_path: Option<&'static str>,
}

/// Receives until the other end is done. What came before a failure stands in `counter` and `received` all the same.
pub(super) fn receive(
    stream: &mut DataStream,
    course: &Course<'_>,
    counter: &Counter,
    received: &mut Received,
) -> io::Result<()> {
    let mut in_kernel = matches!(stream, DataStream::Plain(_));
    received.data_path = Some(if in_kernel { TRUNC } else { TLS });
    let mut scratch = vec![0; if in_kernel { ROOM } else { 0 }];
    let mut total = 0;
    loop {
        match stream.discard(&mut scratch, in_kernel) {
            Ok(0) => break,
            Ok(came) => {
                total += came as u64;
                counter.set(total);
                received.last = Some(Instant::now());
                course.tether.spend(came as u64).map_err(io::Error::other)?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // A kernel, or what stands in for one, that does not discard for us.
            Err(e) if in_kernel && matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                in_kernel = false;
                received.data_path = Some(PLAIN);
            }
            Err(e) => return Err(e),
        }
    }
    if let Some(early) = course.ended_early(Instant::now()) {
        return Err(early);
    }
    // What the sender waits for.
    stream.finish()
}
