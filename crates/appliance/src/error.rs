//! Why the appliance failed to do something: one variant per cause. The client of the library chooses the text and the
//! exit code.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use paramedic_engines::engine::Unavailable;
use paramedic_engines::thread_limit::ThreadLimitReached;
use paramedic_iperf3::output::FailureKind;
use paramedic_link::framed::LinkError;
use paramedic_link::key_file::KeyFileError;
use paramedic_link::measurement::DatagramsSeen;
use paramedic_link::message::{CloseReason, Denial, EndReason};
use paramedic_link::state_folder::StateFolderError;
use paramedic_link::test_spec::{DataMode, Load};
use paramedic_link::{EndpointId, PeerText};
use paramedic_report::fold::{EmptyDirection, Impossible};

use crate::monitor::MonitorError;
use crate::payload_transport::PayloadTransport;
use crate::schedule::ScheduleError;
use crate::store::StorageError;
use crate::targets::{Host, HostPort, NotAHostPort};

/// Why a call of the appliance failed.
#[derive(Debug, thiserror::Error)]
pub enum ApplianceError {
    /// The text of an address cannot be parsed.
    #[error(transparent)]
    Address(#[from] NotAHostPort),
    /// The database of pairings and results could not be used, or an entry was not found in it.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The configured state folder cannot be used.
    #[error("the state folder {}: {source}", .configured.display())]
    StateFolder {
        /// The configured folder.
        configured: PathBuf,
        /// The cause.
        source: StateFolderError,
    },
    /// The key file cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The test lock or the working folder in the state folder could not be created.
    #[error("{}: {source}", .folder.display())]
    TestFolder {
        /// The state folder.
        folder: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The state folder cannot be written, so the result of a test could not be saved.
    #[error("the result could not be saved: {0}")]
    CannotSave(Box<ApplianceError>),
    /// No provider has this id.
    #[error("unknown provider {0}")]
    NoSuchProvider(String),
    /// No engine has this id.
    #[error("unknown engine {0}")]
    NoSuchEngine(String),
    /// The provider or the engine cannot run the requested test, or the request contradicts itself.
    #[error("the request is not supported: {0}")]
    Unsupported(String),
    /// The device does not have the requested local address or interface.
    #[error("cannot send from the requested address or interface: {0}")]
    Origin(io::Error),
    /// This device lacks what an engine needs.
    #[error("{engine}: {lacking}")]
    EngineUnavailable {
        /// The engine's id.
        engine: String,
        /// What is missing.
        lacking: Unavailable,
    },
    /// The kernel of this device refused the requested congestion control.
    #[error("the congestion control was refused: {0}")]
    CongestionControl(io::Error),
    /// This device refused a thread or a process.
    #[error("{0}")]
    ThreadLimit(ThreadLimitReached),
    /// Another test of this device is running.
    #[error("another test is running on this device")]
    DeviceBusy,
    /// Another test of this device was running when the reflector granted this one, until the grant expired.
    #[error("the grant expired while another test was running on this device")]
    GrantExpired,
    /// The user ended the test.
    #[error("interrupted")]
    Interrupted,
    /// The link to a reflector could not be opened, or it failed.
    #[error("{target}: {cause}")]
    Link {
        /// The reflector's address, as configured.
        target: HostPort,
        /// The cause.
        cause: LinkFailure,
    },
    /// The host's name could not be resolved.
    #[error("{host}: {source}")]
    NotResolved {
        /// The host.
        host: Host,
        /// The resolver's error.
        source: io::Error,
    },
    /// A link-local address without its interface.
    #[error("{0} needs an interface")]
    NoZone(Host),
    /// The host has no address of the requested IP family.
    #[error("{0} has no address of the requested family")]
    NoAddressOfFamily(Host),
    /// This device is paired with no reflector.
    #[error("no reflector is paired")]
    NoReflectorPaired,
    /// This device is paired with several reflectors, and the request names none.
    #[error("several reflectors are paired")]
    SeveralReflectorsPaired {
        /// Their names.
        names: Vec<String>,
    },
    /// A reflector answers at the address, but this device is not paired with it.
    #[error("{target} is {presented}, which is not paired")]
    NotPairedThere {
        /// The address.
        target: HostPort,
        /// The key that it presented.
        presented: EndpointId,
    },
    /// TLS could not be set up.
    #[error("cannot set up TLS: {0}")]
    TlsSetup(String),
    /// No keys could be derived from the link.
    #[error("cannot derive keys: {0}")]
    KeyDerivation(String),
    /// The data connections of a phase could not be opened.
    #[error("cannot open data connections to {address}: {source}")]
    NoDataConnection {
        /// The address and port of the data.
        address: SocketAddr,
        /// The data mode.
        mode: DataMode,
        /// What carries the payload.
        transport: PayloadTransport,
        /// The cause.
        source: io::Error,
        /// The datagrams of the session that reached the reflector, if it counts them.
        datagrams: Option<DatagramsSeen>,
    },
    /// Latency probes reach the reflector neither over UDP nor over TCP.
    #[error("latency probes do not reach the reflector: {0}")]
    NoProbes(io::Error),
    /// The reflector could not start a phase.
    #[error("the phase was not started: {reason}")]
    PhaseNotStarted {
        /// The reason: this end's if it has one, otherwise the reflector's.
        reason: String,
    },
    /// An end did not report the begin or the end of a phase in time.
    #[error("{0} did not report the begin or the end of a phase in time")]
    PhaseOverdue(SocketAddr),
    /// A report of the reflector cannot be true.
    #[error("{address}: {claim}")]
    ImpossibleReport {
        /// The reflector's address.
        address: SocketAddr,
        /// Why it cannot be true.
        claim: Impossible,
    },
    /// A phase ended early.
    #[error("the {load} ended early: {reason}")]
    DataLost {
        /// The phase.
        load: Load,
        /// The reason, from the end that detected the failure.
        reason: PeerText,
    },
    /// Almost no payload arrived in some directions, or none any more.
    #[error("nothing arrived in {} directions", .directions.len())]
    NothingArrived {
        /// The directions, each with its phase.
        directions: Vec<EmptyDirection>,
        /// The transport of the payload.
        transport: PayloadTransport,
    },
    /// Every phase ended without a sample.
    #[error("nothing was measured")]
    NothingMeasured,
    /// A fault of this program or of the operating system.
    #[error("{0}")]
    Internal(String),
    /// The task of the test panicked: a fault of this program.
    #[error("the test ended without a result: {0}")]
    BrokeOff(String),
    /// A schedule is not accepted.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A monitor is not accepted.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The schedule is disabled.
    #[error("the schedule {name} is disabled")]
    ScheduleDisabled {
        /// Its name.
        name: String,
    },
    /// A run of the schedule waits or runs.
    #[error("a run of the schedule {name} waits or runs already")]
    ScheduleRuns {
        /// Its name.
        name: String,
    },
    /// Another service uses the state folder.
    #[error("a service runs with the state folder {}", .state_dir.display())]
    ServiceRuns {
        /// The state folder.
        state_dir: PathBuf,
    },
    /// A test with an iperf3 server failed.
    #[error(transparent)]
    Iperf3(#[from] Iperf3Failure),
}

impl ApplianceError {
    /// The same as [`ApplianceError::CannotSave`] if the state folder cannot be written.
    #[must_use]
    pub fn or_cannot_save(self) -> Self {
        let is_unwritable = match &self {
            Self::Storage(error) => error.is_unwritable(),
            Self::StateFolder { source, .. } => matches!(source, StateFolderError::Io { .. }),
            Self::Key(error) => matches!(error, KeyFileError::Io { doing: "create", .. }),
            Self::TestFolder { .. } => true,
            _ => false,
        };
        if is_unwritable { Self::CannotSave(Box::new(self)) } else { self }
    }

    /// The error of an operation: `otherwise`, unless this device refused a thread.
    pub(crate) fn of_io(source: io::Error, otherwise: impl FnOnce(io::Error) -> Self) -> Self {
        match ThreadLimitReached::of(&source) {
            Some(refused) => Self::ThreadLimit(refused.clone()),
            None => otherwise(source),
        }
    }
}

/// Why a link to a reflector could not be opened, or failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkFailure {
    /// None of its addresses accepted a connection.
    #[error("unreachable: {0}")]
    Unreachable(io::Error),
    /// It presented another key than the one that was paired.
    #[error("it presented the key {0}, which is not the paired one")]
    KeyChanged(EndpointId),
    /// The pairing code was made for another key.
    #[error("the pairing code was made for another key than {0}")]
    CodeOfAnother(EndpointId),
    /// Something other than a reflector answered.
    #[error("not a reflector: {0}")]
    NotAReflector(String),
    /// It closed the connection during the TLS handshake.
    #[error("it hung up during the TLS handshake")]
    HungUp,
    /// It accepted the connection, and for this time nothing came back in the handshake, with small segments neither.
    #[error("no answer in the handshake for {} s", .0.as_secs())]
    HandshakeTimeout(Duration),
    /// Nothing was received from it for this time.
    #[error("nothing was received for {} s", .0.as_secs())]
    Silent(Duration),
    /// It did not answer within this time.
    #[error("no answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    /// Its queue did not move for this time.
    #[error("its queue did not move for {} s", .0.as_secs())]
    QueueStalled(Duration),
    /// It was busy for longer than the request waits.
    #[error("it was busy for {} s", .0.as_secs())]
    WaitedTooLong(Duration),
    /// The connection failed.
    #[error("lost: {0}")]
    Lost(LinkError),
    /// The connection ended without a `close` message.
    #[error("it closed the link")]
    EndOfStream,
    /// It closed the link.
    #[error("it closed the link ({reason:?}): {detail}")]
    Closed {
        /// Its reason.
        reason: CloseReason,
        /// The text that it sent.
        detail: PeerText,
    },
    /// It denied the test.
    #[error("it denied the test ({:?}): {}", .0.reason, .0.detail)]
    Denied(Denial),
    /// It ended the session.
    #[error("it ended the session ({reason:?}): {detail}")]
    SessionEnded {
        /// Its reason.
        reason: EndReason,
        /// The text that it sent.
        detail: PeerText,
    },
    /// It ended a session instead of sending the expected answer.
    #[error("it ended the session when another answer was due: {0}")]
    EndedOutOfTurn(PeerText),
    /// It sent a message that is not valid in this state.
    #[error("it sent an unexpected message")]
    UnexpectedMessage,
    /// It could not prove that it knows the pairing code.
    #[error("it did not prove that it knows the code")]
    CodeNotProven,
    /// It did not accept the pairing code.
    #[error("it did not accept the code")]
    CodeRefused,
    /// It does not know this device.
    #[error("it does not know this device")]
    NotPaired,
}

impl LinkFailure {
    /// The failure of the link to this target.
    pub(crate) fn at(self, target: &HostPort) -> ApplianceError {
        ApplianceError::Link { target: target.clone(), cause: self }
    }
}

/// Why a test with an iperf3 server failed.
#[derive(Debug, thiserror::Error)]
pub enum Iperf3Failure {
    /// The request names no server.
    #[error("no iperf3 server is named")]
    NoServerNamed,
    /// The public key file of the server does not contain a public key.
    #[error("{} is not a public key", .file.display())]
    NotAPublicKey {
        /// The file.
        file: PathBuf,
    },
    /// The request names a user without a password.
    #[error("no password for the user {user}")]
    NoPassword {
        /// The user.
        user: String,
    },
    /// The client could not be started.
    #[error("cannot start iperf3: {0}")]
    NotStarted(std::io::Error),
    /// The server's report cannot be true.
    #[error("the iperf3 server at {target} sent an impossible report")]
    ImpossibleReport {
        /// The server.
        target: HostPort,
    },
    /// The client reported an error.
    #[error("the iperf3 server at {target}: {reason}")]
    Client {
        /// The server.
        target: HostPort,
        /// The kind of error.
        cause: FailureKind,
        /// The client's own text.
        reason: String,
        /// Whether the request had a login.
        has_login: bool,
    },
}

impl Iperf3Failure {
    /// No address of the server accepts a connection.
    pub(crate) fn unreachable(target: &HostPort, source: &io::Error) -> Self {
        let (target, cause, reason) = (target.clone(), FailureKind::Unreachable, source.to_string());
        Self::Client { target, cause, reason, has_login: false }
    }

    /// Whether there is no server at the address.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Client { cause: FailureKind::Unreachable, .. })
    }
}
