//! The receiving end of one stream: bytes are counted and forgotten. The same at both ends of a session.

use std::io::{self, Read};
use std::time::Instant;

use paramedic_link::test_spec::DataPathWish;

use super::ready::{TcpReport, TcpRun};
use super::stream_charge::StreamCharge;
use super::{data_path, payload};
use crate::data_stream::{CHUNK, DataStream};

/// Room for what one call takes. Where the kernel throws the bytes away it is never written to, and so costs nothing.
const ROOM: usize = 4 * CHUNK;
/// The same where every byte is copied there: it should stay in a processor's cache.
const COPY_ROOM: usize = CHUNK;

/// Receives until the other end is done. What came before a failure stands in the counter and `received` all the same.
pub(super) fn receive(stream: &mut DataStream, run: &TcpRun<'_>, received: &mut TcpReport) -> io::Result<()> {
    let context = run.context;
    let is_clear = matches!(stream, DataStream::Plain(_));
    let mut in_kernel = is_clear && !context.ask.verify_payload && context.ask.data_path != DataPathWish::Plain;
    received.own = Some(match (is_clear, in_kernel) {
        (false, _) => data_path::TLS,
        (true, true) => data_path::TRUNC,
        (true, false) => data_path::PLAIN,
    });
    let mut scratch = vec![0; if in_kernel { ROOM } else { COPY_ROOM }];
    let (mut total, mut charge) = (0, StreamCharge::default());
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
                charge.settle(context.control, stream, total)?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // A kernel, or what stands in for one, that does not discard for us.
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
    // What the sender waits for.
    stream.finish()
}

/// Reads, and holds what came beside what the stream carries from `position` on.
fn verify(stream: &mut DataStream, scratch: &mut [u8], position: u64) -> io::Result<usize> {
    let came = stream.read(scratch)?;
    match payload::first_wrong(position, &scratch[..came]) {
        None => Ok(came),
        Some(wrong) => {
            let what = format!("byte {wrong} of the stream is not the one that was to come");
            Err(io::Error::new(io::ErrorKind::InvalidData, what))
        }
    }
}
