//! The appliance's end of `tcp`: opens the streams and runs the phases.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use paramedic_link::admission::{Preamble, SessionKeys};
use paramedic_link::measurement::PhaseTally;
use paramedic_link::test_spec::{Direction, TestSpec};
use rustix::rand::GetRandomFlags;

use super::ready::{self, TcpStreams};
use super::{socket_options, with_window};
use crate::data_stream::DataStream;
use crate::dialer::Dialer;
use crate::engine::{ClientSetup, EngineClient, PhaseObserver, StreamsMissing, is_refusal};
use crate::metered_stream::MeteredStream;
use crate::phase::{self, NO_SUCH_PHASE, nothing_moved, streams_of};
use crate::session_control::SessionControl;
use crate::socket::{self, SocketOptions};
use crate::thread_limit;

/// The maximum number of data connections that the appliance opens at once. Each connection needs a handshake at the
/// reflector.
const MAX_CONCURRENT_DIALS: u16 = 4;

pub(super) struct TcpClient {
    spec: TestSpec,
    keys: Arc<SessionKeys>,
    dialer: Arc<Dialer>,
    options: SocketOptions,
    control: Arc<SessionControl>,
    streams: TcpStreams,
}

impl TcpClient {
    pub(super) fn new(setup: ClientSetup) -> io::Result<Self> {
        let ClientSetup { spec, keys, dialer, control, .. } = setup;
        let options = socket_options(&spec)?;
        let streams = TcpStreams::new(&spec, Arc::clone(&control));
        Ok(Self { spec, keys, dialer, options, control, streams })
    }

    pub(super) fn dial(&self, phase: u8, stream: u16) -> io::Result<DataStream> {
        let mut nonce = [0; Preamble::NONCE_LEN];
        rustix::rand::getrandom(&mut nonce, GetRandomFlags::empty())?;
        let preamble = Preamble { session: self.keys.session(), phase, stream, nonce };
        self.dialer.dial(&self.control, &preamble.seal(&self.keys), &self.options)
    }
}

impl EngineClient for TcpClient {
    fn connect(&self, phase: u8) -> io::Result<()> {
        let spec = self.spec.phases.get(usize::from(phase));
        let spec = spec.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, NO_SUCH_PHASE))?;
        let streams = streams_of(&self.spec, spec);
        let next = AtomicU16::new(0);
        let failure = Mutex::new(None);
        let dial_on = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= streams {
                    return;
                }
                match self.dial(phase, index) {
                    Ok(connected) => {
                        let metered = MeteredStream::new(connected, Arc::clone(&self.control));
                        ready::admit(&self.streams, &self.control, phase, index, metered);
                    }
                    Err(error) => {
                        // A refusal costs no time, so while no stream is open, the remaining streams are tried, too, to
                        // learn whether all are refused. Otherwise all threads stop after their current dial.
                        if !is_refusal(&error) || self.opened(phase) > 0 {
                            next.store(streams, Ordering::Relaxed);
                        }
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            // This thread dials, too, so a failure to start the other threads only slows the dialing down.
            for _ in 1..streams.min(MAX_CONCURRENT_DIALS) {
                thread_limit::spawn_scoped(scope, "tcp-dial", dial_on).ok();
            }
            dial_on();
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(cause) => {
                let opened = self.opened(phase);
                drop(self.streams.take(phase));
                Err(StreamsMissing { opened, streams, cause }.into())
            }
            None => Ok(()),
        }
    }

    fn opened(&self, phase: u8) -> u16 {
        self.streams.count(phase, |_| true)
    }

    fn acknowledged(&self, phase: u8) -> u16 {
        self.streams.count(phase, |ready| {
            // If the kernel does not count acknowledged bytes, every open stream counts.
            let counts = socket::counts(ready.stream.inner().socket());
            counts.is_none_or(|(acknowledged, _)| acknowledged >= Preamble::LEN as u64)
        })
    }

    fn run(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally {
        let Some(spec) = self.spec.phases.get(usize::from(phase)) else {
            return nothing_moved(None, &self.control, NO_SUCH_PHASE);
        };
        match self.streams.take(phase) {
            Ok(streams) => {
                let tally = phase::run(&self.spec, spec, Direction::Upload, &self.control, streams, report);
                with_window(tally, &self.options)
            }
            Err(_) => nothing_moved(Some(spec), &self.control, "not all data connections of the phase are open"),
        }
    }
}
