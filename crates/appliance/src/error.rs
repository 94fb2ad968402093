//! The errors of the appliance's library: one variant for each cause. The program that uses the library chooses the
//! text and the exit code.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
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

use crate::alerts::RuleError;
use crate::alerts::channel::ChannelError;
use crate::monitor::MonitorError;
use crate::payload_transport::PayloadTransport;
use crate::plan::PlanError;
use crate::schedule::ScheduleError;
use crate::store::StorageError;
use crate::targets::{Host, HostPort, NotAHostPort};

/// Why a call of the appliance's library failed.
#[derive(Debug, thiserror::Error)]
pub enum ApplianceError {
    /// An address cannot be parsed.
    #[error(transparent)]
    Address(#[from] NotAHostPort),
    /// The database of pairings and results cannot be used, or does not have the requested entry.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The configured state folder cannot be used.
    #[error("cannot use the state folder {}: {source}", .configured.display())]
    StateFolder {
        /// The path of the folder, as configured.
        configured: PathBuf,
        /// Why the folder cannot be used.
        source: StateFolderError,
    },
    /// The key file cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The test lock or the working folder cannot be created in the state folder.
    #[error("{}: {source}", .folder.display())]
    TestFolder {
        /// The path of the state folder.
        folder: PathBuf,
        /// Why the lock or the working folder cannot be created.
        source: io::Error,
    },
    /// A backup cannot be written.
    #[error("{}: {source}", .file.display())]
    BackupFile {
        /// The path of the backup file.
        file: PathBuf,
        /// Why the backup file cannot be written.
        source: io::Error,
    },
    /// The store of an earlier installation, which is to be imported, cannot be read.
    #[error("{}: {source}", .folder.display())]
    OldStore {
        /// The folder of the earlier installation's store.
        folder: PathBuf,
        /// Why that store cannot be read.
        source: Box<ApplianceError>,
    },
    /// The identity of an older store is not imported, because this device has pairings under its own identity.
    #[error("this device keeps its own Endpoint ID {own}, because it has pairings under it (reflectors: {pairings})")]
    IdentityInUse {
        /// The Endpoint ID of this device.
        own: EndpointId,
        /// The number of reflectors that are paired with this device.
        pairings: usize,
    },
    /// The identity of an older store is not imported over TCP. With the key of the identity, this device proves that
    /// it has stored the commands of its alert channels itself. So only a user of this host may replace the key.
    #[error("an identity can be imported only through the service's unix socket, or into this user's own store")]
    IdentityOverTcp,
    /// An object of a configuration, such as a schedule or a monitor, cannot be applied.
    #[error("{object}: {source}")]
    InConfiguration {
        /// The kind and the name of the object, such as `schedule nightly`.
        object: String,
        /// Why the object cannot be applied.
        source: Box<ApplianceError>,
    },
    /// The state folder cannot be written, so the result of the test could not be saved.
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
    /// The key that came with pairings to import is not a valid key.
    #[error("the key that came with the pairings is not a valid key")]
    ImportedKey,
    /// This device does not have the requested local address or network interface.
    #[error("cannot send from the requested address or interface: {0}")]
    Origin(io::Error),
    /// This device does not have what the engine needs.
    #[error("{engine}: {lacking}")]
    EngineUnavailable {
        /// The id of the engine.
        engine: String,
        /// What this device does not have.
        lacking: Unavailable,
    },
    /// The kernel of this device does not allow the requested congestion control.
    #[error("the kernel refused the requested congestion control: {0}")]
    CongestionControl(io::Error),
    /// The kernel of this device allows no further thread or process.
    #[error("{0}")]
    ThreadLimit(ThreadLimitReached),
    /// Another test is running on this device.
    #[error("another test is running on this device")]
    DeviceBusy,
    /// The reflector granted the test, but another test ran on this device until the grant expired.
    #[error("the reflector's grant expired while another test was running on this device")]
    GrantExpired,
    /// A signal or a cancellation ended the test.
    #[error("interrupted")]
    Interrupted,
    /// The link to a reflector could not be opened, or an open link failed.
    #[error("{target}: {cause}")]
    Link {
        /// The address of the reflector, as configured.
        target: HostPort,
        /// Why the link failed.
        cause: LinkFailure,
    },
    /// The name of the host could not be resolved.
    #[error("{host}: {source}")]
    NotResolved {
        /// The host name that could not be resolved.
        host: Host,
        /// The error that the system's resolver returned.
        source: io::Error,
    },
    /// The address is link-local and does not name the network interface to use.
    #[error("the link-local address {0} needs the name of its interface")]
    NoZone(Host),
    /// The host has no address of the requested IP family, or of the IP family of the requested local address.
    #[error("{0} has no address of the requested IP family")]
    NoAddressOfFamily(Host),
    /// No reflector is paired with this device.
    #[error("no reflector is paired")]
    NoReflectorPaired,
    /// Several reflectors are paired, and the request names none.
    #[error("several reflectors are paired, and the request names none of them")]
    SeveralReflectorsPaired {
        /// The names of the paired reflectors.
        names: Vec<String>,
    },
    /// The program at the address presented a key that is not paired with this device.
    #[error("the reflector at {target} has the Endpoint ID {presented}, which is not paired with this device")]
    NotPairedThere {
        /// The address to which the appliance connected.
        target: HostPort,
        /// The Endpoint ID of the key that the other end presented.
        presented: EndpointId,
    },
    /// TLS could not be set up on this device.
    #[error("cannot set up TLS: {0}")]
    TlsSetup(String),
    /// No keys for a session or a pairing could be derived from the TLS connection of the link.
    #[error("cannot derive keys from the TLS connection: {0}")]
    KeyDerivation(String),
    /// The data connections of a phase could not be opened.
    #[error("cannot open data connections to {address}: {source}")]
    NoDataConnection {
        /// The address and port to which the data connections go.
        address: SocketAddr,
        /// The data mode of the session.
        mode: DataMode,
        /// The protocol that carries the payload.
        transport: PayloadTransport,
        /// Why the connections could not be opened.
        source: io::Error,
        /// The reflector's counts of the datagrams of the session; `None` if the reflector does not count them.
        datagrams: Option<DatagramsSeen>,
    },
    /// Latency probes reach the reflector neither over UDP nor over TCP.
    #[error("latency probes do not reach the reflector: {0}")]
    NoProbes(io::Error),
    /// The reflector could not start a phase.
    #[error("the reflector could not start a phase of the test: {reason}")]
    PhaseNotStarted {
        /// Why the phase did not start. If the appliance does not know the cause, this is the reason that the reflector
        /// gave.
        reason: String,
    },
    /// The reflector at this address did not report the start or the end of a phase in time.
    #[error("the reflector at {0} did not report the start or the end of a phase in time")]
    PhaseOverdue(SocketAddr),
    /// The reflector reported a count that cannot be true.
    #[error("{address}: {claim}")]
    ImpossibleReport {
        /// The address of the reflector.
        address: SocketAddr,
        /// Why the report cannot be true.
        claim: Impossible,
    },
    /// A phase of the test ended early.
    #[error("the {load} ended early: {reason}")]
    DataLost {
        /// The load of the phase.
        load: Load,
        /// Why the phase ended early, in the words of the appliance or of the reflector, whichever noticed the failure.
        reason: PeerText,
    },
    /// In some directions almost no payload arrived, or the payload stopped before the end of the phase.
    #[error("too little payload arrived in {} directions of the test", .directions.len())]
    NothingArrived {
        /// The directions in which payload was missing, each with its phase.
        directions: Vec<EmptyDirection>,
        /// The protocol that carries the payload.
        transport: PayloadTransport,
    },
    /// No phase of the test measured anything.
    #[error("nothing was measured")]
    NothingMeasured,
    /// A fault of this program or of the operating system.
    #[error("{0}")]
    Internal(String),
    /// The task of the test panicked, which is a fault of this program.
    #[error("the test ended without a result: {0}")]
    BrokeOff(String),
    /// The schedule is not valid.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The definition of a monitor is not accepted.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The definition of a channel is not accepted.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The definition of a rule is not accepted.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The period of a report is empty.
    #[error("the period from {since} to {until} is empty")]
    EmptyPeriod {
        /// The start of the period of the report.
        since: Timestamp,
        /// The end of the period of the report, at most the present time.
        until: Timestamp,
    },
    /// The period of a report has too many results.
    #[error("the period has more than {most} results")]
    PeriodTooLong {
        /// The maximum number of results in a report.
        most: usize,
    },
    /// The plan (what the contract with the Internet provider promises) is not accepted.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The schedule is disabled, so it cannot be run.
    #[error("the schedule {name} is disabled")]
    ScheduleDisabled {
        /// The name of the schedule.
        name: String,
    },
    /// A run of the schedule is already waiting or running.
    #[error("a run of the schedule {name} is already waiting or running")]
    ScheduleRuns {
        /// The name of the schedule.
        name: String,
    },
    /// The text is not a valid name for a token.
    #[error("{0:?} is not a valid name; valid: 1 to 60 ASCII letters, digits, dots, dashes and underscores")]
    TokenName(String),
    /// The link for setting the administrator's password is not valid, or is no longer valid.
    #[error("the setup link was used, has expired, or was replaced by a newer one")]
    NoSuchSetupLink,
    /// The password is too short or too long.
    #[error("a password must have {shortest} to {longest} characters")]
    PasswordLength {
        /// The minimum length of a password, in characters.
        shortest: usize,
        /// The maximum length of a password, in characters.
        longest: usize,
    },
    /// Another service is running with the same state folder.
    #[error("another service is running with the state folder {}", .state_dir.display())]
    ServiceRuns {
        /// The path of the state folder.
        state_dir: PathBuf,
    },
    /// A test against an iperf3 server failed.
    #[error(transparent)]
    Iperf3(#[from] Iperf3Failure),
}

impl ApplianceError {
    /// Converts this error to [`ApplianceError::CannotSave`] if its cause is that the state folder cannot be written.
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

    /// Converts the I/O error `source`. If the host refused another thread, the result is
    /// [`ApplianceError::ThreadLimit`]. In all other cases, `otherwise` makes the error.
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
    /// No address of the reflector accepted a connection.
    #[error("the reflector is unreachable: {0}")]
    Unreachable(io::Error),
    /// The reflector presented this key, which is not the key with which it was paired.
    #[error("the reflector presented the key {0}, which is not the paired one")]
    KeyChanged(EndpointId),
    /// The pairing code was made for another reflector than the one that answered.
    #[error("the reflector that answered has the key {0}, and the pairing code is for another reflector")]
    CodeOfAnother(EndpointId),
    /// The program that answered is not a reflector.
    #[error("the other end is not a reflector: {0}")]
    NotAReflector(String),
    /// The reflector closed the connection during the TLS handshake.
    #[error("the reflector closed the connection during the TLS handshake")]
    HungUp,
    /// The reflector accepted the connection, but sent nothing in the TLS handshake for this long. The appliance tried
    /// ordinary and small TCP segments.
    #[error("the reflector sent nothing in the handshake for {} s", .0.as_secs())]
    HandshakeTimeout(Duration),
    /// Nothing was received from the reflector for this long.
    #[error("nothing was received from the reflector for {} s", .0.as_secs())]
    Silent(Duration),
    /// The reflector did not answer a request within this time.
    #[error("the reflector sent no answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    /// The position of the request in the reflector's queue did not improve for this long.
    #[error("the position in the reflector's queue did not improve for {} s", .0.as_secs())]
    QueueStalled(Duration),
    /// The reflector was busy for this long, which is the longest time that the request may wait.
    #[error("the reflector was busy for {} s", .0.as_secs())]
    WaitedTooLong(Duration),
    /// The connection to the reflector failed.
    #[error("the connection to the reflector was lost: {0}")]
    Lost(LinkError),
    /// The reflector closed the connection without a `close` message.
    #[error("the reflector closed the link")]
    EndOfStream,
    /// The reflector closed the link with a `close` message.
    #[error("the reflector closed the link ({reason:?}): {detail}")]
    Closed {
        /// The reason that the reflector gave.
        reason: CloseReason,
        /// The text that the reflector sent with the reason.
        detail: PeerText,
    },
    /// The reflector denied the test.
    #[error("the reflector denied the test ({:?}): {}", .0.reason, .0.detail)]
    Denied(Denial),
    /// The reflector ended the session.
    #[error("the reflector ended the session ({reason:?}): {detail}")]
    SessionEnded {
        /// The reason that the reflector gave.
        reason: EndReason,
        /// The text that the reflector sent with the reason.
        detail: PeerText,
    },
    /// The reflector ended a session while the appliance waited for another answer.
    #[error("the reflector ended the session instead of answering: {0}")]
    EndedOutOfTurn(PeerText),
    /// The reflector sent a message that is not valid at this point of the protocol.
    #[error("the reflector sent an unexpected message")]
    UnexpectedMessage,
    /// The reflector did not prove that it knows the pairing code.
    #[error("the reflector did not prove that it knows the pairing code")]
    CodeNotProven,
    /// The reflector did not accept the pairing code.
    #[error("the reflector did not accept the pairing code")]
    CodeRefused,
    /// The reflector is not paired with this device.
    #[error("the reflector is not paired with this device")]
    NotPaired,
}

impl LinkFailure {
    /// Converts this failure of the link to `target` into an error.
    pub(crate) fn at(self, target: &HostPort) -> ApplianceError {
        ApplianceError::Link { target: target.clone(), cause: self }
    }
}

/// Why a test against an iperf3 server failed.
#[derive(Debug, thiserror::Error)]
pub enum Iperf3Failure {
    /// The request names no server.
    #[error("the request names no iperf3 server")]
    NoServerNamed,
    /// The file with the server's public key does not contain a public key.
    #[error("{} is not a public key", .file.display())]
    NotAPublicKey {
        /// The path of the file with the public key.
        file: PathBuf,
    },
    /// The request names a user but no password.
    #[error("the request has no password for the user {user}")]
    NoPassword {
        /// The name of the user.
        user: String,
    },
    /// The iperf3 client could not be started.
    #[error("cannot start iperf3: {0}")]
    NotStarted(std::io::Error),
    /// The server reported counts that cannot be true.
    #[error("the iperf3 server at {target} sent an impossible report")]
    ImpossibleReport {
        /// The address of the iperf3 server.
        target: HostPort,
    },
    /// The iperf3 client reported an error.
    #[error("the test against the iperf3 server at {target} failed: {reason}")]
    Client {
        /// The address of the iperf3 server.
        target: HostPort,
        /// The kind of the client's error.
        cause: FailureKind,
        /// The error text of the iperf3 client.
        reason: String,
        /// Whether the request had a user and a password.
        has_login: bool,
    },
}

impl Iperf3Failure {
    /// Creates the failure of a test whose server accepts no connection at any of its addresses.
    pub(crate) fn unreachable(target: &HostPort, source: &io::Error) -> Self {
        let (target, cause, reason) = (target.clone(), FailureKind::Unreachable, source.to_string());
        Self::Client { target, cause, reason, has_login: false }
    }

    /// Whether the failure means that no server answers at the address.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Client { cause: FailureKind::Unreachable, .. })
    }
}
