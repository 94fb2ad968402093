//! What an engine is: both ends of one kind of test, behind one trait. The shells around it own links and sessions.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use paramedic_link::PeerText;
use paramedic_link::admission::{Preamble, SessionKeys};
use paramedic_link::engine_terms::EngineTerms;
use paramedic_link::measurement::{PhaseTally, Sample};
use paramedic_link::test_spec::{DataMode, Direction, TestSpec};

use crate::data_stream::DataStream;
use crate::dialer::Dialer;
use crate::session_control::SessionControl;
use crate::udp_port::DatagramHandler;

/// One kind of test, both ends of it.
pub trait Engine: Sync {
    /// The id on the wire and on the command line.
    fn id(&self) -> &'static str;

    /// One line for `--help`.
    fn about(&self) -> &'static str;

    /// Whether it puts load on the path. One that doesn't is asked for a single phase, which stays idle.
    fn loads(&self) -> bool;

    /// The ways its data can take.
    fn data_modes(&self) -> &'static [DataMode];

    /// What of `spec` this engine does not do, in a clause; asked at both ends before anything is opened.
    fn unsupported(&self, _spec: &TestSpec) -> Option<&'static str> {
        None
    }

    /// Whether this host has what the appliance's end needs. Returns what this end supports, preferred first, in the
    /// engine's own words; the request carries it as [`TestSpec::engine_support`].
    fn check_client(&self) -> Result<Vec<PeerText>, Unavailable> {
        Ok(Vec::new())
    }

    /// Whether this host has what the reflector's end needs, tried out with `scratch`, a folder to work in. Blocking, for
    /// some seconds at worst.
    fn check_server(&self, _scratch: &Path) -> Result<(), Unavailable> {
        Ok(())
    }

    /// The reflector's end. Claims what it needs (the port, where `order.claim` names one) before anything is
    /// promised; `AddrInUse` means that a stranger's program holds the port.
    fn server(&self, setup: ServerSetup) -> io::Result<Box<dyn ServerEnd>>;

    /// The appliance's end.
    fn client(&self, setup: ClientSetup) -> io::Result<Box<dyn ClientEnd>>;
}

/// The first of the things that were asked and can't be had: why not.
pub fn first_refusal(asked: impl IntoIterator<Item = (bool, &'static str)>) -> Option<&'static str> {
    asked.into_iter().find_map(|(is_asked, why)| is_asked.then_some(why))
}

/// What the reflector's end of a session works with.
pub struct ServerSetup {
    /// What was granted.
    pub spec: TestSpec,
    /// What its data is proven with.
    pub keys: Arc<SessionKeys>,
    /// In direct mode: the address and port of the range to claim.
    pub claim: Option<SocketAddr>,
    /// The appliance's address, as the link came in.
    pub peer: IpAddr,
    /// What ends it, and what its bytes are charged to.
    pub control: Arc<SessionControl>,
    /// A folder to work in, which is there and ours alone.
    pub scratch: PathBuf,
}

/// What the appliance's end of a session works with.
pub struct ClientSetup {
    /// What was granted.
    pub spec: TestSpec,
    /// What its data is proven with.
    pub keys: Arc<SessionKeys>,
    /// How its data connections are made.
    pub dialer: Arc<Dialer>,
    /// What ends it.
    pub control: Arc<SessionControl>,
    /// The terms of the reflector's end, from [`Serve::terms`].
    pub terms: Option<EngineTerms>,
    /// A folder to work in, which is there and ours alone.
    pub scratch: PathBuf,
}

/// Why a host can't play an end of an engine: something is not there, or not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{because}")]
pub struct Unavailable {
    /// Because of what.
    pub because: String,
    /// What to do about it.
    pub hint: String,
}

/// What happens while a phase runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhaseProgress {
    /// Every stream stands; the phase begins.
    Started,
    /// An interval of the direction that this end receives: what counts.
    Received(Direction, Sample),
    /// An interval of the direction that this end sends, in its own clock: to hold beside what counts.
    Sent(Direction, Sample),
}

/// Where progress goes. Called from a thread that moves no bytes; must not block for long.
pub type PhaseObserver<'a> = &'a (dyn Fn(PhaseProgress) + Sync);

/// The reflector's end of one session. Dropping it frees every socket and thread of it.
pub trait ServerEnd: Send + Sync {
    /// What the appliance's end of the engine has to know of this end; the grant carries it.
    fn terms(&self) -> Option<EngineTerms> {
        None
    }

    /// The handler of the session's datagrams at its port, for an engine that has datagrams of its own.
    fn datagram_handler(&self) -> Option<Arc<dyn DatagramHandler>> {
        None
    }

    /// Takes a data connection that proved at the control port that it belongs to this session (tunneled mode). A
    /// stream index that was there before is refused by dropping the connection.
    fn admit(&self, preamble: Preamble, stream: DataStream);

    /// Runs phase number `phase` of the spec to its end, on the calling thread and others: waits, for a bounded time,
    /// until its streams stand, reports [`PhaseProgress::Started`], moves the data. Ends early when the session is cancelled;
    /// always says what was counted.
    fn run(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally;
}

/// The appliance's end of one session. Dropping it frees every socket and thread of it.
pub trait ClientEnd: Send + Sync {
    /// Opens the streams of phase number `phase`, at most four handshakes at once; blocking, bounded in time.
    fn connect(&self, phase: u8) -> io::Result<()>;

    /// Runs the phase to its end once the reflector has started it. Ends early when the session is cancelled; always says
    /// what was counted.
    fn run(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally;

    /// Why the streams of phase number `phase` do not stand after all, if this end knows.
    fn explain_failure(&self, _phase: u8) -> Option<String> {
        None
    }

    /// The program that moves the data, and its version, where it is another one than ours.
    fn program(&self) -> Option<String> {
        None
    }

    /// What a program that moved the data said of phase number `phase` in its own words, as JSON.
    fn raw(&self, _phase: u8) -> Option<String> {
        None
    }
}
