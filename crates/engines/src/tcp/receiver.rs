//! The receiving end of a stream: counts and discards bytes. The code is the same at both ends of a session.

#![expect(clippy::disallowed_methods, reason = "receives in wall time")]

use std::io::{self, Read};
use std::time::Instant;

use paramedic_link::test_spec::DataPathWish;

use super::ready::{TcpReport, TcpRun};
use super::{data_path, payload};
use crate::data_stream::{CHUNK, DataStream};
use crate::metered_stream::MeteredStream;

/// The buffer size of a read whose bytes the kernel discards. The buffer is never written to, so it uses no memory.
const DISCARD_SIZE: usize = 4 * CHUNK;
/// The buffer size of a read whose bytes are copied. The buffer should fit in a processor's cache.
const COPY_SIZE: usize = CHUNK;

/// Receives until the other end has finished the stream. `run.counter` and `received` include what was received before
/// a failure.
pub(super) fn receive(stream: &mut MeteredStream, run: &TcpRun<'_>, received: &mut TcpReport) -> io::Result<()> {
    let context = run.context;
    let is_clear = matches!(stream.inner(), DataStream::Plain(_));
    let mut in_kernel = is_clear && !context.ask.verify_payload && context.ask.data_path != DataPathWish::Plain;
    received.own = Some(match (is_clear, in_kernel) {
        (false, _) => data_path::TLS,
        (true, true) => data_path::TRUNC,
        (true, false) => data_path::PLAIN,
    });
    let mut scratch = vec![0; if in_kernel { DISCARD_SIZE } else { COPY_SIZE }];
    let mut total = 0;
    loop {
        let taken = if context.ask.verify_payload {
            verify(stream, &mut scratch, total)
        } else {
            stream.discard(&mut scratch, in_kernel)
        };
        match taken {
            Ok(0) => break,
            Ok(came) => {
                total += came as u64;
                run.counter.set(total);
                received.last = Some(Instant::now());
                stream.charge_and_wait(total).map_err(io::Error::other)?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // The kernel or a sandbox does not support discarding in the kernel.
            Err(e)
                if in_kernel
                    && context.ask.data_path == DataPathWish::Auto
                    && matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
            {
                in_kernel = false;
                received.own = Some(data_path::PLAIN);
            }
            Err(e) => return Err(e),
        }
    }
    if let Some(early) = context.ended_early(Instant::now()) {
        return Err(early);
    }
    // Closing this side is the confirmation that the sender waits for.
    stream.inner_mut().finish()
}

/// Reads bytes, and verifies them against the expected payload from position `position` of the stream on. Returns their
/// number.
fn verify(stream: &mut MeteredStream, scratch: &mut [u8], position: u64) -> io::Result<usize> {
    let came = stream.read(scratch)?;
    match payload::first_wrong(position, &scratch[..came]) {
        None => Ok(came),
        Some(wrong) => {
            let what = format!("byte {wrong} of the stream does not match the expected payload");
            Err(io::Error::new(io::ErrorKind::InvalidData, what))
        }
    }
}
