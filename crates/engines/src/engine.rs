//! The traits that an engine implements, for the reflector's end and for the appliance's end of a test. The caller owns
//! links and sessions.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use paramedic_link::PeerText;
use paramedic_link::admission::{Preamble, SessionKeys};
use paramedic_link::engine_terms::EngineTerms;
use paramedic_link::measurement::{PhaseTally, Sample};
use paramedic_link::phase_detail::TcpSample;
use paramedic_link::test_spec::{DataMode, Direction, TestSpec};

use crate::dialer::Dialer;
use crate::metered_stream::MeteredStream;
use crate::session_control::SessionControl;
use crate::udp_port::DatagramHandler;

/// An engine: one kind of test, such as TCP streams or latency probes.
pub trait Engine: Sync {
    /// The engine's id, as in messages and on the command line, for example `tcp`.
    fn id(&self) -> &'static str;

    /// The description of the engine for `--help`, in one line.
    fn about(&self) -> &'static str;

    /// Whether the engine puts load on the path. An engine without load runs a single idle phase.
    fn loads(&self) -> bool;

    /// The data modes that the engine supports.
    fn data_modes(&self) -> &'static [DataMode];

    /// Why this engine cannot run `spec`, as a clause. `None` if it can. Called at both ends before any I/O.
    fn unsupported(&self, _spec: &TestSpec) -> Option<&'static str> {
        None
    }

    /// Checks whether this host has what the appliance's end needs. Returns the names of the engine's features that
    /// this end supports, preferred first. The test request carries these names as [`TestSpec::engine_support`].
    fn check_client(&self) -> Result<Vec<PeerText>, Unavailable> {
        Ok(Vec::new())
    }

    /// Checks whether the reflector's end can run on this host, by a trial in the folder `scratch`. Blocks for a few
    /// seconds at most.
    fn check_server(&self, _scratch: &Path) -> Result<(), Unavailable> {
        Ok(())
    }

    /// Opens the reflector's end of a session. Claims its resources (the port, if `setup.claim` names one) at once, so
    /// that the reflector can promise them in its grant. The error `AddrInUse` means that another process holds the
    /// port.
    fn server(&self, setup: ServerSetup) -> io::Result<Box<dyn EngineServer>>;

    /// Opens the appliance's end of a session that the reflector has granted.
    fn client(&self, setup: ClientSetup) -> io::Result<Box<dyn EngineClient>>;
}

/// Returns why a test is refused. Each item of `options` stands for an option that the engine does not support: whether
/// the test requests this option, and why the engine refuses it. Returns the reason of the first requested option, or
/// `None` if the test requests none of them.
pub fn first_refusal(options: impl IntoIterator<Item = (bool, &'static str)>) -> Option<&'static str> {
    options.into_iter().find_map(|(is_requested, why)| is_requested.then_some(why))
}

/// The parameters of [`Engine::server`].
pub struct ServerSetup {
    /// The test that the reflector has granted.
    pub spec: TestSpec,
    /// The keys that authenticate the test's data.
    pub keys: Arc<SessionKeys>,
    /// The address and port at which the engine listens in direct mode; `None` in tunneled mode.
    pub claim: Option<SocketAddr>,
    /// The source address of the appliance's link, as the reflector sees it.
    pub peer: IpAddr,
    /// The session's control: cancels the session and counts its bytes.
    pub control: Arc<SessionControl>,
    /// An existing private folder for temporary files.
    pub scratch: PathBuf,
}

/// The parameters of [`Engine::client`].
pub struct ClientSetup {
    /// The test that the reflector has granted.
    pub spec: TestSpec,
    /// The keys that authenticate the test's data.
    pub keys: Arc<SessionKeys>,
    /// Opens the session's data connections.
    pub dialer: Arc<Dialer>,
    /// The session's control: cancels the session.
    pub control: Arc<SessionControl>,
    /// The terms from [`EngineServer::terms`] of the reflector's end, as received in the grant.
    pub terms: Option<EngineTerms>,
    /// An existing private folder for temporary files.
    pub scratch: PathBuf,
}

/// Why an end of an engine cannot run on this host: something is missing or not permitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{because}")]
pub struct Unavailable {
    /// The reason why the engine cannot run, as a clause.
    pub because: String,
    /// What the user can do to make the engine available.
    pub hint: String,
}

/// The error if some streams of a phase could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{opened} of {streams} streams were opened: {cause}")]
pub struct StreamsMissing {
    /// The number of streams that were opened.
    pub opened: u16,
    /// The number of streams that the phase needs.
    pub streams: u16,
    /// The first failure to open a stream.
    pub cause: io::Error,
}

impl StreamsMissing {
    /// The [`StreamsMissing`] inside an error of [`EngineClient::connect`]. `None` for any other error, for example one
    /// that occurred before any stream was tried.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

/// Whether `error` means that a connection was refused: by the other host, by a firewall, or because there is no route.
/// Unlike a timeout, a refusal arrives at once.
pub fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, PermissionDenied};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | PermissionDenied)
}

impl From<StreamsMissing> for io::Error {
    fn from(missing: StreamsMissing) -> Self {
        Self::new(missing.cause.kind(), missing)
    }
}

/// An event of a running phase, which the phase reports to its [`PhaseObserver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhaseProgress {
    /// All streams are connected; the phase begins.
    Started,
    /// A sample of the direction that this end receives. The results are computed from the samples of the receivers.
    Received(Direction, Sample),
    /// A sample of the direction that this end sends, timed by this end's clock. It serves only for comparison with the
    /// receiver's samples.
    Sent(Direction, Sample),
    /// What this end's kernel recorded about a stream, if the test requests it (`TestSpec::phase_detail`). Reported
    /// after all streams have ended.
    Detail(Direction, TcpSample),
}

/// A callback that receives the progress of a phase. It is called from a thread that moves no bytes, and must not block
/// for long.
pub type PhaseObserver<'a> = &'a (dyn Fn(PhaseProgress) + Sync);

/// The reflector's end of one session. Dropping it closes its sockets and ends its threads.
pub trait EngineServer: Send + Sync {
    /// The parameters that the appliance's end needs from this end, if any. The reflector's grant carries them.
    fn terms(&self) -> Option<EngineTerms> {
        None
    }

    /// The handler of the session's datagrams at the UDP port, if the engine uses datagrams.
    fn datagram_handler(&self) -> Option<Arc<dyn DatagramHandler>> {
        None
    }

    /// Takes a data connection that was authenticated at the control port (tunneled mode). A second connection with the
    /// same stream index is dropped.
    fn admit(&self, preamble: Preamble, stream: MeteredStream);

    /// Runs phase number `phase` on the calling thread and on others. Waits for a bounded time until the phase's
    /// streams are connected, reports [`PhaseProgress::Started`], and moves the data. Ends early when the session is
    /// cancelled. Always returns the counts, even if the phase failed.
    fn run(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally;
}

/// The appliance's end of one session. Dropping it closes its sockets and ends its threads.
pub trait EngineClient: Send + Sync {
    /// Opens the streams of phase number `phase`, or starts a program that opens them. Blocks for a bounded time. If
    /// some streams could not be opened, the error contains a [`StreamsMissing`].
    fn connect(&self, phase: u8) -> io::Result<()>;

    /// The number of streams of phase number `phase` that are open so far and wait for the phase to begin.
    fn opened(&self, _phase: u8) -> u16 {
        0
    }

    /// The number of open streams of phase number `phase` that the other end has confirmed: it has acknowledged the
    /// bytes that this end sent to open the stream.
    fn acknowledged(&self, phase: u8) -> u16 {
        self.opened(phase)
    }

    /// Runs phase number `phase`, which the reflector has started. Ends early when the session is cancelled. Always
    /// returns the counts, even if the phase failed.
    fn run(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally;

    /// The reason why the streams of phase number `phase` failed, if this end knows it.
    fn explain_failure(&self, _phase: u8) -> Option<String> {
        None
    }

    /// The name and version of the external program that moves the data, if there is one.
    fn program(&self) -> Option<String> {
        None
    }

    /// The JSON output of the external program for phase number `phase`, if such a program moves the data.
    fn raw(&self, _phase: u8) -> Option<String> {
        None
    }
}
