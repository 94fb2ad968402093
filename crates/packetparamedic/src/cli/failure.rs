//! The failure of a command: its text, its machine code and its exit code. This module and its submodules define these
//! for every error of the libraries; other failures are defined where they occur.

mod address;
mod channels;
mod data_connections;
mod iperf3;
mod link;
mod monitors;
mod nothing_arrived;
mod reports;
mod rules;
mod schedules;
mod state;

use std::fmt;
use std::ops::{Deref, DerefMut};

use paramedic_appliance::ApplianceError;
use paramedic_engines::engine::Unavailable;
use paramedic_engines::thread_limit::ThreadLimitReached;
use paramedic_host::config::{ConfigError, Configuration};
use paramedic_report::document::{ErrorBody, ErrorDocument, ResultDocument};

use crate::config::Settings;

/// The exit code of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ExitStatus {
    /// The command succeeded.
    Done = 0,
    /// The test failed, or the reflector could not be reached.
    Failed = 1,
    /// The arguments or the configuration are not valid.
    Usage = 2,
    /// The test measured, but its result does not meet a requested threshold.
    BelowThreshold = 3,
    /// The device is not paired, or the reflector denied the test permanently.
    Denied = 4,
    /// This device or the other end is busy, or a quota is used up. A retry may succeed.
    Busy = 5,
    /// Ctrl-C or a signal interrupted the command.
    Interrupted = 130,
}

impl From<ExitStatus> for std::process::ExitCode {
    fn from(exit: ExitStatus) -> Self {
        Self::from(exit as u8)
    }
}

/// A failed command. Its text has three lines: what, because, try.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandFailure {
    /// The three lines (what, because, try), the machine code and the exit code.
    cause: Box<paramedic_host::failure::Failure<ExitStatus>>,
    /// What the test measured before the command failed; `None` if it measured nothing.
    pub measured_so_far: Option<Box<ResultDocument>>,
    /// Whether to print nothing, because the program that reads the output has closed it.
    pub is_quiet: bool,
}

impl Deref for CommandFailure {
    type Target = paramedic_host::failure::Failure<ExitStatus>;

    fn deref(&self) -> &Self::Target {
        &self.cause
    }
}

impl DerefMut for CommandFailure {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.cause
    }
}

impl CommandFailure {
    /// Creates a failure from its exit code, its machine code and its three lines: what, because, try.
    pub fn new(
        exit: ExitStatus,
        code: &'static str,
        what: impl Into<String>,
        because: impl fmt::Display,
        try_: impl Into<String>,
    ) -> Self {
        let cause = paramedic_host::failure::Failure::new(exit, code, what, because, try_);
        Self { cause: Box::new(cause), measured_so_far: None, is_quiet: false }
    }

    /// Ends a command whose output was closed by the program that reads it, as `| head` does. This is no error: nothing
    /// is printed, and the exit code is 0.
    pub fn reader_gone() -> Self {
        let cause =
            Self::new(ExitStatus::Done, "reader_gone", "the output is closed", "its reader has ended", "nothing");
        Self { is_quiet: true, ..cause }
    }

    /// Sets the time in milliseconds after which a retry may succeed; `None` if this time is not known.
    fn retry_after(mut self, ms: Option<u64>) -> Self {
        self.retry_after_ms = ms;
        self
    }

    /// Adds what the test measured before the command failed.
    pub fn measured(mut self, so_far: ResultDocument) -> Self {
        self.measured_so_far = Some(Box::new(so_far));
        self
    }

    /// Returns the failure as an error document, for output as JSON.
    pub fn document(&self) -> ErrorDocument {
        self.cause.document(self.measured_so_far.clone())
    }
}

impl fmt::Display for CommandFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.cause, f)
    }
}

impl std::error::Error for CommandFailure {}

/// Converts an error to the form in which a result document contains it.
pub(crate) fn describe(error: &ApplianceError) -> ErrorBody {
    CommandFailure::from(error).body()
}

const REPORT_IT: &str = "this is a fault of the program; please report it";

impl From<ApplianceError> for CommandFailure {
    fn from(error: ApplianceError) -> Self {
        Self::from(&error)
    }
}

impl From<&ApplianceError> for CommandFailure {
    fn from(error: &ApplianceError) -> Self {
        use ApplianceError as E;
        use ExitStatus::{Busy, Denied, Failed, Interrupted, Usage};
        match error {
            E::Address(error) => error.into(),
            E::Storage(error) => error.into(),
            E::Iperf3(error) => error.into(),
            E::Key(error) => error.into(),
            E::StateFolder { configured, source } => state::unusable_folder(configured, source),
            E::CannotSave(source) => state::cannot_save(Self::from(&**source)),
            E::Link { target, cause } => link::failure(target, cause),
            E::TestFolder { folder, source } => {
                let folder = folder.display();
                let try_ =
                    format!("check that this user may write to {folder}, or set another folder with --state-dir");
                Self::new(Usage, "state_dir_unusable", "cannot use the state folder", source, try_)
            }
            E::BackupFile { .. } => {
                let try_ = "name a file that does not exist, in a folder with free space that this user may write to";
                Self::new(Usage, "backup_unusable", "the backup was not made", error, try_)
            }
            E::OldStore { .. } => {
                let try_ = "name the folder with packetparamedic.db and identity.key, and run this as its owner";
                Self::new(Usage, "import_unusable", "cannot read the older store", error, try_)
            }
            E::IdentityInUse { .. } => {
                let try_ = "keep this identity, and pair with the reflectors of the older store: run `packetparamedic \
                            pair-reflector`";
                Self::new(Usage, "identity_in_use", "the older identity is not imported", error, try_)
            }
            E::IdentityOverTcp => {
                let try_ = "run `packetparamedic reflectors import` on the host of the service";
                Self::new(Denied, "identity_over_tcp", "the older identity is not imported", error, try_)
            }
            E::InConfiguration { object, source } => {
                let cause = Self::from(&**source);
                let because = format!("{object}: {}", cause.because);
                Self::new(cause.exit, cause.code, "the configuration is not applied", because, cause.try_.clone())
            }
            E::NoSuchProvider(wanted) => no_such("provider", wanted),
            E::NoSuchEngine(wanted) => no_such("engine", wanted),
            E::Unsupported(reason) => {
                let try_ = "run `packetparamedic speed-test --help` to see the valid requests";
                Self::new(Usage, "bad_request", "cannot request this test", reason, try_)
            }
            error @ E::ImportedKey => {
                let try_ = "send the text of the file identity.key of the older store";
                Self::new(Usage, "bad_request", "the pairings were not imported", error.to_string(), try_)
            }
            E::Origin(source) => {
                let try_ = "list the addresses and interfaces of this device with `ip address`, and name one with -B \
                            or --interface";
                Self::new(Usage, "bad_request", "cannot send from this address or interface", source, try_)
            }
            E::EngineUnavailable { engine, lacking: Unavailable { because, hint: try_ } } => {
                Self::new(Usage, "engine_lacking", format!("cannot run {engine} on this device"), because, try_)
            }
            E::CongestionControl(source) => {
                let try_ =
                    "choose another congestion control with -C, allow this one by sysctl, or run this command as root";
                Self::new(Usage, "bad_request", "this device cannot run that test", source, try_)
            }
            E::ThreadLimit(refused) => thread_limit("this device cannot run that test", refused),
            E::DeviceBusy => Self::new(
                Busy,
                "busy_here",
                "another test is running on this device",
                "two tests at once would disturb each other",
                "wait for it: omit --no-wait, or use a longer --wait",
            ),
            E::GrantExpired => Self::new(
                Busy,
                "busy_here",
                "another test of this device was running when the reflector granted this one",
                "two tests at once would disturb each other, so this device gave up the granted session",
                "run the test again when the other test has ended",
            ),
            E::Interrupted => Self::new(
                Interrupted,
                "interrupted",
                "the test was ended early",
                "Ctrl-C or a signal interrupted it",
                "run it to its end for a comparable result",
            ),
            E::NotResolved { host, source } => Self::new(
                Failed,
                "name_not_resolved",
                format!("cannot find the host {host}"),
                source,
                "check the spelling of the name, and the DNS resolver of this device",
            ),
            E::NoZone(host) => Self::new(
                Usage,
                "bad_address",
                format!("cannot reach {host}"),
                "a link-local address needs the name of its interface",
                format!("add the interface, as in [{host}%eth0]; `ip -6 address` lists the interfaces"),
            ),
            E::NoAddressOfFamily(host) => Self::new(
                Failed,
                "name_not_resolved",
                format!("cannot find the host {host}"),
                "it has no address of the requested IP family",
                "omit -4, -6 or -B",
            ),
            E::NoReflectorPaired => Self::new(
                Denied,
                "not_paired",
                "no reflector to measure against",
                "this device is not paired with any reflector",
                "run `reflector pair` on a reflector, then `packetparamedic pair-reflector` here",
            ),
            E::SeveralReflectorsPaired { names } => Self::new(
                Usage,
                "which_reflector",
                "no reflector is selected",
                format!("this device is paired with {}", names.join(", ")),
                "select one with --peer",
            ),
            E::NotPairedThere { target, presented } => Self::new(
                Denied,
                "not_paired",
                format!("the reflector at {target} is not paired with this device"),
                format!("no pairing of this device has the reflector's key {presented}"),
                "run `reflector pair` there, then `packetparamedic pair-reflector` here",
            ),
            E::TlsSetup(reason) => Self::new(Failed, "tls", "cannot set up TLS", reason, REPORT_IT),
            E::KeyDerivation(reason) => Self::new(Failed, "tls", "cannot derive keys", reason, REPORT_IT),
            E::NoDataConnection { address, mode, transport, source, datagrams } => {
                let (because, try_) = data_connections::explain(*address, *mode, *transport, source, *datagrams);
                let what = format!("cannot open data connections to {}", address.ip());
                Self::new(Failed, "no_data_connection", what, because, try_)
            }
            E::NoProbes(source) => Self::new(
                Failed,
                "no_probes",
                "cannot measure latency",
                source,
                "allow UDP, or a second TCP connection, in the firewalls on the path to the reflector",
            ),
            E::PhaseNotStarted { reason } => Self::new(
                Failed,
                "phase_not_started",
                "the reflector could not start a phase",
                reason,
                "follow the reason above; if it gives no advice, allow every data connection in the firewalls, or use \
                 --data-mode tunneled, which needs only the control port",
            ),
            E::PhaseOverdue(address) => Self::new(
                Failed,
                "stuck",
                format!("the test with {address} did not end in time"),
                "the reflector did not report the start or the end of a phase",
                "try again; if it happens again, see the reflector's log",
            ),
            E::ImpossibleReport { address, claim } => Self::new(
                Failed,
                "bad_report",
                format!("the reflector at {address} sent an impossible report"),
                claim,
                "update both programs; if it happens again, do not rely on the counts of this reflector",
            ),
            E::DataLost { load, reason } => Self::new(
                Failed,
                "data_lost",
                format!("the {load} ended early"),
                reason,
                "follow the reason above, or run the test again; if it fails again, look for a device on the path that \
                 closes connections",
            ),
            E::NothingArrived { directions, transport } => nothing_arrived::failure(directions, *transport),
            E::NothingMeasured => Self::new(
                Failed,
                "nothing_measured",
                "nothing was measured",
                "every phase ended without a sample",
                "measure longer with -t",
            ),
            E::Internal(reason) => Self::new(Failed, "internal", "cannot run the test", reason, REPORT_IT),
            E::Schedule(source) => schedules::not_accepted(source),
            E::Monitor(source) => monitors::not_accepted(source),
            E::Channel(source) => channels::not_accepted(source),
            E::Rule(source) => rules::not_accepted(source),
            E::Plan(_) => {
                let try_ = "run `packetparamedic plan set --download 250M --upload 40M`";
                Self::new(Usage, "bad_plan", "the plan is not accepted", error, try_)
            }
            E::ScheduleDisabled { .. } | E::ScheduleRuns { .. } | E::ServiceRuns { .. } => schedules::refused(error),
            E::EmptyPeriod { .. } | E::PeriodTooLong { .. } => reports::not_made(error),
            E::TokenName(_) => Self::new(
                Usage,
                "bad_request",
                "the token is not added",
                error,
                "choose a valid name, such as --name grafana",
            ),
            E::NoSuchSetupLink => Self::new(
                Denied,
                "no_such_link",
                "the setup link is not valid",
                error,
                "run `packetparamedic token setup` for a new one",
            ),
            E::PasswordLength { shortest, longest } => {
                let try_ = format!("choose a password of {shortest} to {longest} characters");
                Self::new(Usage, "bad_request", "the password is not set", error, try_)
            }
            E::BrokeOff(reason) => Self::new(Failed, "internal", "the test ended without a result", reason, REPORT_IT),
        }
    }
}

/// The failure of a command on a device whose limit of threads is reached.
pub(super) fn thread_limit(what: &str, refused: &ThreadLimitReached) -> CommandFailure {
    let try_ = format!("{}; or ask for fewer streams with -P", refused.hint());
    CommandFailure::new(ExitStatus::Failed, "thread_limit", what, refused, try_)
}

fn no_such(what: &str, wanted: &str) -> CommandFailure {
    CommandFailure::new(
        ExitStatus::Usage,
        "bad_usage",
        format!("there is no {what} {wanted}"),
        "the command line or the configuration names it, but this version does not have it",
        "run `packetparamedic speed-test --help` to see the valid ones",
    )
}

impl From<&ConfigError> for CommandFailure {
    fn from(error: &ConfigError) -> Self {
        let try_ = error.remedy(Settings::PROGRAM);
        Self::new(ExitStatus::Usage, "bad_config", "the configuration is not valid", error, try_)
    }
}

impl From<ConfigError> for CommandFailure {
    fn from(error: ConfigError) -> Self {
        Self::from(&error)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use paramedic_appliance::LinkFailure;
    use paramedic_appliance::alerts::RuleError;
    use paramedic_appliance::alerts::channel::ChannelError;
    use paramedic_appliance::error::Iperf3Failure;
    use paramedic_appliance::monitor::MonitorError;
    use paramedic_appliance::payload_transport::PayloadTransport;
    use paramedic_appliance::plan::PlanError;
    use paramedic_appliance::schedule::{RecurrenceError, ScheduleError};
    use paramedic_appliance::store::{StorageError, StorePlace};
    use paramedic_appliance::targets::HostPort;
    use paramedic_engines::thread_limit::ThreadLimit;
    use paramedic_iperf3::output::FailureKind;
    use paramedic_link::framed::LinkError;
    use paramedic_link::key_file::KeyFileError;
    use paramedic_link::measurement::DatagramsSeen;
    use paramedic_link::message::{CloseReason, Denial, DenialReason, EndReason};
    use paramedic_link::state_folder::StateFolderError;
    use paramedic_link::test_spec::{Direction, Load};
    use paramedic_link::{EndpointId, PeerText};
    use paramedic_report::document::example;
    use paramedic_report::fold::{EmptyDirection, Impossible};
    use sqlx::migrate::MigrateError;

    use super::*;

    fn unreachable() -> CommandFailure {
        CommandFailure::new(
            ExitStatus::Failed,
            "unreachable",
            "cannot reach reflector at 203.0.113.7:4000",
            "connection refused",
            "check that `reflector serve` runs there and that TCP 4000 is open",
        )
    }

    #[test]
    fn a_failure_says_three_things() {
        assert_eq!(
            unreachable().to_string(),
            "cannot reach reflector at 203.0.113.7:4000\n\
             because: connection refused\n\
             try: check that `reflector serve` runs there and that TCP 4000 is open"
        );
    }

    fn errors() -> Vec<(&'static str, ApplianceError)> {
        use ApplianceError as E;
        use StorageError as S;
        let place = || StorePlace::File("/state/packetparamedic.db".into());
        let url = || "postgres://ann@db.example/pp".to_owned();
        let on_server = || StorePlace::Server(url());
        let other = || io::Error::other("some reason");
        let wanted = || "attic".to_owned();
        let target = || "attic.lan".parse::<HostPort>().unwrap();
        let server = || "attic.lan:5201".parse::<HostPort>().unwrap();
        let key = EndpointId::from_bytes([7; 32]);
        let address = "203.0.113.7:4000".parse().unwrap();
        let detail = || PeerText::new("detail of the reflector");
        let seconds = Duration::from_secs;
        let saving = "saving the run";
        let at = |cause| E::Link { target: target(), cause };
        let closed = |reason| at(LinkFailure::Closed { reason, detail: detail() });
        let ended = |reason| at(LinkFailure::SessionEnded { reason, detail: detail() });
        let denied = |reason| at(LinkFailure::Denied(Denial { reason, detail: detail(), retry_after_ms: Some(1500) }));
        let client = |cause, reason: &str, has_login| {
            E::Iperf3(Iperf3Failure::Client { target: server(), cause, reason: reason.to_owned(), has_login })
        };
        use PayloadTransport::{Tcp, Udp};
        use paramedic_link::test_spec::DataMode::{DirectEphemeral as Direct, Tunneled};
        let timed_out = || io::Error::from(io::ErrorKind::TimedOut);
        let seen = |answered, from_elsewhere| Some(DatagramsSeen { answered, from_elsewhere });
        let no_data =
            |mode, transport, source, datagrams| E::NoDataConnection { address, mode, transport, source, datagrams };
        let folder = |source| E::StateFolder { configured: "/state".into(), source };
        let lacking = Unavailable { because: "it is not there".to_owned(), hint: "install it".to_owned() };
        let empty = |load, direction| EmptyDirection { load, direction, stopped_after: None };
        let two = vec![empty(Load::Download, Direction::Download), empty(Load::Bidir, Direction::Upload)];
        let stopped = EmptyDirection { stopped_after: Some(Duration::from_millis(2_400)), ..two[0] };
        let no_json = serde_json::from_str::<u8>("x").unwrap_err();
        vec![
            ("no such provider", E::NoSuchProvider("nonesuch".to_owned())),
            ("no such engine", E::NoSuchEngine("nonesuch".to_owned())),
            ("address", HostPort::parse("https://attic", 4000).unwrap_err().into()),
            ("database: folder", S::Folder { path: "/state".into(), source: other() }.into()),
            ("database: corrupt", S::Corrupt { place: place() }.into()),
            ("database: newer", S::Newer { place: place(), migration: 99 }.into()),
            ("database: altered", S::Altered { place: place(), source: MigrateError::Dirty(1).into() }.into()),
            ("database: full", S::Full { doing: saving, place: place() }.into()),
            ("database: locked", S::Locked { doing: saving }.into()),
            ("database: read-only", S::ReadOnly { doing: saving, place: place() }.into()),
            ("server: corrupt", S::Corrupt { place: on_server() }.into()),
            ("server: newer", S::Newer { place: on_server(), migration: 99 }.into()),
            (
                "server: altered",
                S::Altered { place: on_server(), source: MigrateError::VersionMismatch(1).into() }.into(),
            ),
            ("server: full", S::Full { doing: saving, place: on_server() }.into()),
            ("server: read-only", S::ReadOnly { doing: saving, place: on_server() }.into()),
            (
                "server: unreachable",
                S::Unreachable { doing: saving, server: url(), because: "connection refused".into() }.into(),
            ),
            (
                "server: refused",
                S::Refused { server: url(), because: "password authentication failed for user \"ann\"".into() }.into(),
            ),
            ("server: encoding", S::Encoding { server: url(), encoding: "LATIN1".into() }.into()),
            ("server: in use", S::InUse { server: url() }.into()),
            ("server: password file", S::PasswordFile { path: "/etc/password".into(), source: other() }.into()),
            ("server: no copy", S::NoCopy { server: url() }.into()),
            ("name taken", S::NameTaken { name: wanted() }.into()),
            ("no name", S::NoName.into()),
            ("no such reflector", S::NoSuchReflector { wanted: wanted() }.into()),
            (
                "ambiguous reflector",
                S::AmbiguousReflector { wanted: wanted(), names: vec!["a".into(), "b".into()] }.into(),
            ),
            ("no such run", S::NoSuchRun { wanted: wanted() }.into()),
            ("ambiguous run", S::AmbiguousRun { wanted: wanted() }.into()),
            ("unreadable result", S::Document { source: no_json }.into()),
            ("database: other", S::Sql { doing: saving, place: place(), source: sqlx::Error::PoolClosed }.into()),
            ("server: other", S::Sql { doing: saving, place: on_server(), source: sqlx::Error::PoolClosed }.into()),
            ("no more threads", E::ThreadLimit(ThreadLimitReached { limit: Some(ThreadLimit::User(25)) })),
            ("device busy", E::DeviceBusy),
            ("state folder", E::TestFolder { folder: "/state".into(), source: other() }),
            ("backup", E::BackupFile { file: "/backup.db".into(), source: other() }),
            (
                "older store",
                E::OldStore { folder: "/old".into(), source: Box::new(S::Corrupt { place: place() }.into()) },
            ),
            ("identity in use", E::IdentityInUse { own: key, pairings: 2 }),
            ("identity by TCP", E::IdentityOverTcp),
            (
                "in a configuration",
                E::InConfiguration {
                    object: "schedule nightly".to_owned(),
                    source: Box::new(E::Schedule(ScheduleError::NoBudget)),
                },
            ),
            ("result cannot be saved", E::from(S::ReadOnly { doing: saving, place: place() }).or_cannot_save()),
            ("unreachable", at(LinkFailure::Unreachable(io::ErrorKind::ConnectionRefused.into()))),
            ("unreachable in the handshake", at(LinkFailure::Unreachable(io::ErrorKind::TimedOut.into()))),
            ("no TLS", at(LinkFailure::NotAReflector("not TLS".to_owned()))),
            ("hung up", at(LinkFailure::HungUp)),
            ("no reflector", at(LinkFailure::NotAReflector("it does not speak the protocol pp-link/1".to_owned()))),
            ("silent handshake", at(LinkFailure::HandshakeTimeout(seconds(10)))),
            ("silent link", at(LinkFailure::Silent(seconds(10)))),
            ("no answer", at(LinkFailure::NoAnswer(seconds(15)))),
            ("silence in the queue", at(LinkFailure::Silent(seconds(10)))),
            ("stalled", at(LinkFailure::QueueStalled(seconds(180)))),
            ("too long", at(LinkFailure::WaitedTooLong(seconds(60)))),
            ("gone", at(LinkFailure::EndOfStream)),
            ("closed: version", closed(CloseReason::Version)),
            ("closed: protocol", closed(CloseReason::Protocol)),
            ("closed: removed", closed(CloseReason::PeerRemoved)),
            ("closed: shutdown", closed(CloseReason::Shutdown)),
            ("closed: unknown", closed(CloseReason::Unknown)),
            ("denied: bad request", denied(DenialReason::BadRequest)),
            ("denied: engine", denied(DenialReason::EngineNotOffered)),
            ("denied: mode", denied(DenialReason::ModeNotOffered)),
            ("denied: too long", denied(DenialReason::TooLong)),
            ("denied: streams", denied(DenialReason::TooManyStreams)),
            ("denied: asked", denied(DenialReason::AlreadyAsked)),
            ("denied: busy", denied(DenialReason::Busy)),
            ("denied: queue full", denied(DenialReason::QueueFull)),
            ("denied: tests per hour", denied(DenialReason::TestsPerHour)),
            ("denied: bytes per day", denied(DenialReason::BytesPerDay)),
            ("denied: no port", denied(DenialReason::NoPort)),
            ("denied: monitors", denied(DenialReason::TooManyMonitors)),
            ("denied: draining", denied(DenialReason::Draining)),
            ("denied: faulted", denied(DenialReason::Faulted)),
            ("denied: unknown", denied(DenialReason::Unknown)),
            ("interrupted", E::Interrupted),
            (
                "nothing arrived over TCP",
                E::NothingArrived { directions: two.clone(), transport: PayloadTransport::Tcp },
            ),
            (
                "nothing arrived over UDP",
                E::NothingArrived { directions: two[..1].to_vec(), transport: PayloadTransport::Udp },
            ),
            ("stopped", E::NothingArrived { directions: vec![stopped], transport: PayloadTransport::Tcp }),
            (
                "nothing arrived, and stopped",
                E::NothingArrived { directions: vec![stopped, two[1]], transport: PayloadTransport::Tcp },
            ),
            ("nothing measured", E::NothingMeasured),
            ("granted in vain", E::GrantExpired),
            ("nothing paired", E::NoReflectorPaired),
            ("several paired", E::SeveralReflectorsPaired { names: vec!["attic".to_owned(), "cellar".to_owned()] }),
            ("not paired there", E::NotPairedThere { target: target(), presented: key }),
            ("no data connection", no_data(Direct, Tcp, timed_out(), None)),
            ("no further connection", no_data(Tunneled, Tcp, timed_out(), None)),
            ("path takes less", no_data(Direct, Udp, io::Error::new(io::ErrorKind::InvalidInput, "too large"), None)),
            ("UDP unknown", no_data(Tunneled, Udp, timed_out(), None)),
            ("UDP dropped", no_data(Tunneled, Udp, timed_out(), seen(0, 0))),
            ("UDP dropped, direct", no_data(Direct, Udp, timed_out(), seen(0, 0))),
            ("UDP rewritten", no_data(Tunneled, Udp, timed_out(), seen(20, 3))),
            ("UDP answers dropped", no_data(Tunneled, Udp, timed_out(), seen(20, 0))),
            ("impossible report", E::ImpossibleReport { address, claim: Impossible::Time(23) }),
            ("stuck", E::PhaseOverdue(address)),
            ("engine lacks", E::EngineUnavailable { engine: "tcp".to_owned(), lacking }),
            (
                "congestion control refused",
                E::CongestionControl(io::Error::new(io::ErrorKind::NotFound, "no bbr here")),
            ),
            ("cannot be run", E::Internal("some reason".to_owned())),
            ("no server", E::Iperf3(Iperf3Failure::NoServerNamed)),
            ("no public key", E::Iperf3(Iperf3Failure::NotAPublicKey { file: "/key.pem".into() })),
            ("no password", E::Iperf3(Iperf3Failure::NoPassword { user: "mario".to_owned() })),
            ("a thread panicked", E::Internal("a thread panicked".to_owned())),
            ("iperf3 not started", E::Iperf3(Iperf3Failure::NotStarted(other()))),
            ("iperf3 reports nonsense", E::Iperf3(Iperf3Failure::ImpossibleReport { target: server() })),
            ("iperf3 busy", client(FailureKind::Busy, "the server is busy", false)),
            ("iperf3 wants a login", client(FailureKind::NotAuthorized, "not authorized", false)),
            ("iperf3 refuses the login", client(FailureKind::NotAuthorized, "not authorized", true)),
            ("iperf3 unreachable", client(FailureKind::Unreachable, "refused", false)),
            ("iperf3 out of time", client(FailureKind::BytesLeft, "the time was over", false)),
            ("iperf3 behind a silent path", client(FailureKind::PathSilent, "nothing came back for 6 s", false)),
            ("iperf3 lost", client(FailureKind::ControlLost, "closed", false)),
            ("iperf3 other", client(FailureKind::Other, "some reason", false)),
            ("key changed", at(LinkFailure::KeyChanged(key))),
            ("code of another", at(LinkFailure::CodeOfAnother(key))),
            ("code not proven", at(LinkFailure::CodeNotProven)),
            ("code refused", at(LinkFailure::CodeRefused)),
            ("not paired", at(LinkFailure::NotPaired)),
            ("lost", at(LinkFailure::Lost(LinkError::Io(io::ErrorKind::ConnectionReset.into())))),
            ("torn", at(LinkFailure::Lost(LinkError::Torn))),
            ("ended out of turn", at(LinkFailure::EndedOutOfTurn(detail()))),
            ("unexpected message", at(LinkFailure::UnexpectedMessage)),
            ("ended: bytes per day", ended(EndReason::BytesPerDay)),
            ("ended: removed", ended(EndReason::PeerRemoved)),
            ("ended: shutdown", ended(EndReason::Shutdown)),
            ("ended: deadline", ended(EndReason::Deadline)),
            ("unsupported", E::Unsupported("udp has no streams".to_owned())),
            ("imported key", E::ImportedKey),
            ("origin", E::Origin(other())),
            ("not resolved", E::NotResolved { host: target().host, source: other() }),
            ("no interface", E::NoZone("fe80::2".parse::<HostPort>().unwrap().host)),
            ("no address of the family", E::NoAddressOfFamily(target().host)),
            ("TLS", E::TlsSetup("some reason".to_owned())),
            ("keys", E::KeyDerivation("some reason".to_owned())),
            ("no probes", E::NoProbes(other())),
            ("phase not started", E::PhaseNotStarted { reason: "some reason".to_owned() }),
            ("data lost", E::DataLost { load: Load::Upload, reason: detail() }),
            (
                "key unusable",
                E::Key(KeyFileError::Io { doing: "read", path: "/state/identity.key".into(), source: other() }),
            ),
            ("key corrupt", E::Key(KeyFileError::Corrupt { path: "/state/identity.key".into() })),
            ("key exposed", E::Key(KeyFileError::Exposed { path: "/state/identity.key".into(), mode: 0o644 })),
            ("key is no file", E::Key(KeyFileError::NotAFile { path: "/state/identity.key".into() })),
            ("folder of another", folder(StateFolderError::Foreign { path: "/state".into(), owner: 1, user: 2 })),
            ("no folder", folder(StateFolderError::NotAFolder { path: "/state".into() })),
            ("broke off", E::BrokeOff("some reason".to_owned())),
            ("schedule exists", S::ScheduleExists { name: wanted() }.into()),
            ("no such schedule", S::NoSuchSchedule { wanted: wanted() }.into()),
            ("monitor exists", S::MonitorExists { name: wanted() }.into()),
            ("no such monitor", S::NoSuchMonitor { wanted: wanted() }.into()),
            ("channel exists", S::ChannelExists { name: wanted() }.into()),
            ("no such channel", S::NoSuchChannel { wanted: wanted() }.into()),
            ("channel without a topic", E::Channel(ChannelError::Topic(String::new()))),
            ("command channel by TCP", E::Channel(ChannelError::CommandRefused)),
            ("rule exists", S::RuleExists { name: wanted() }.into()),
            ("no such rule", S::NoSuchRule { wanted: wanted() }.into()),
            ("rule with the name of a route", E::Rule(RuleError::Reserved)),
            ("rule for a channel that is not there", E::Rule(RuleError::NoSuchChannel("phone".to_owned()))),
            ("monitor without a target", E::Monitor(MonitorError::Target("router".to_owned()))),
            ("plan without a rate", E::Plan(PlanError::Zero { direction: Direction::Upload })),
            ("schedule without a budget", E::Schedule(ScheduleError::NoBudget)),
            ("schedule with an unknown zone", E::Schedule(ScheduleError::Zone("Mars".to_owned()))),
            ("schedule that never occurs", E::Schedule(RecurrenceError::Never { text: "0 0 30 2 *".into() }.into())),
            ("empty period", E::EmptyPeriod { since: jiff::Timestamp::MIN, until: jiff::Timestamp::MIN }),
            ("long period", E::PeriodTooLong { most: 7 }),
            ("schedule is disabled", E::ScheduleDisabled { name: wanted() }),
            ("schedule runs", E::ScheduleRuns { name: wanted() }),
            ("service runs", E::ServiceRuns { state_dir: "/state".into() }),
            ("token exists", S::TokenExists { name: wanted() }.into()),
            ("no such token", S::NoSuchToken { wanted: wanted() }.into()),
            ("token without a name", E::TokenName(String::new())),
            ("link that was used", E::NoSuchSetupLink),
            ("short password", E::PasswordLength { shortest: 10, longest: 200 }),
        ]
    }

    #[test]
    fn every_cause_has_its_text_code_and_exit() {
        let table = errors().into_iter().map(|(cause, error)| {
            let failure = CommandFailure::from(error);
            let retry = failure.retry_after_ms.map(|ms| format!("retry after {ms} ms\n")).unwrap_or_default();
            format!("[{cause}] {} exit {}\n{failure}\n{retry}\n", failure.code, failure.exit as u8)
        });
        let table = table.collect::<String>();
        let expected = include_str!("failures.txt");
        assert_eq!(table, expected);
    }

    #[test]
    fn every_exit_has_the_code_that_scripts_rely_on() {
        use ExitStatus::{BelowThreshold, Busy, Denied, Done, Failed, Interrupted, Usage};
        let codes = [Done, Failed, Usage, BelowThreshold, Denied, Busy, Interrupted].map(|exit| exit as u8);
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 130]);
    }

    #[test]
    fn the_error_document_carries_what_was_measured_and_nothing_absent() {
        let bare = serde_json::to_value(unreachable().document()).unwrap();
        assert_eq!(
            bare,
            serde_json::json!({
                "schema": "packetparamedic.error/1",
                "code": "unreachable",
                "what": "cannot reach reflector at 203.0.113.7:4000",
                "because": "connection refused",
                "try": "check that `reflector serve` runs there and that TCP 4000 is open",
            })
        );
        let failure = unreachable().retry_after(Some(1500)).measured(example::bare());
        let full = serde_json::to_value(failure.document()).unwrap();
        assert_eq!(full["retry_after_ms"], 1500);
        assert_eq!(full["measured_so_far"]["schema"], "packetparamedic.result/1");
    }
}
