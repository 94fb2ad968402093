//! The failures of a link to a reflector, and of a request that the reflector denied.

use std::{fmt, io};

use paramedic_appliance::LinkFailure;
use paramedic_appliance::targets::HostPort;
use paramedic_link::framed::LinkError;
use paramedic_link::message::{CloseReason, Denial, DenialReason, EndReason};
use paramedic_report::quantity;

use super::{CommandFailure, ExitStatus};

/// The advice in an error message if the reflector removed this device.
const PAIR_AGAIN: &str =
    "pair again: run `reflector pair` on the reflector's host, then `packetparamedic pair-reflector` here";
/// The advice in an error message if the reflector is shutting down.
const AFTER_START: &str = "run the test again when the reflector has started again";

pub(super) fn failure(target: &HostPort, cause: &LinkFailure) -> CommandFailure {
    use ExitStatus::{Busy, Denied, Failed};
    use LinkFailure as E;
    let new = |exit, code, what: String, because: &dyn fmt::Display, try_: &str| {
        CommandFailure::new(exit, code, what, because, try_)
    };
    let cannot_open = || format!("cannot open a link with {target}");
    let lost = || format!("lost the connection to the reflector at {target}");
    let not_served = || format!("the reflector at {target} did not serve the test");
    let see_log = "run `reflector status` on the reflector's host, and read the reflector's log";
    let same_version = "update both programs to the same version";
    match cause {
        E::Unreachable(error) => {
            let try_ = format!("check that `reflector serve` runs there and that TCP {} is open", target.port);
            new(Failed, "unreachable", format!("cannot reach reflector at {target}"), &plain(error), &try_)
        }
        E::KeyChanged(presented) => new(
            Denied,
            "key_changed",
            format!("the reflector at {target} has a key other than the paired one"),
            &format_args!("it presented the key {presented}"),
            "if its operator rotated the identity, run `reflector pair` there and `packetparamedic pair-reflector` \
             here; otherwise the connection may be intercepted",
        ),
        E::CodeOfAnother(presented) => new(
            Denied,
            "wrong_code",
            format!("the code is not from the reflector at {target}"),
            &format_args!("that reflector is {presented}"),
            "check the address, and run `reflector pair` on the right reflector",
        ),
        E::NotAReflector(reason) => new(
            Failed,
            "no_reflector",
            format!("the service at {target} is not a reflector"),
            reason,
            "check the address and the port; the default port of a reflector is 4000",
        ),
        E::HungUp => new(
            Failed,
            "no_reflector",
            cannot_open(),
            &"it closed the connection during the TLS handshake",
            "check the address, and run `reflector status` on its host to see whether its connection limit is reached",
        ),
        E::HandshakeTimeout(time) => {
            let try_ = format!(
                "check that a reflector runs there; if it does, the path may drop large packets: test the path with \
                 `ping -M do -s 1472 {}`, which sends 1500 bytes, and correct the MTU or the firewall that drops ICMP",
                target.host
            );
            let because = format!(
                "it accepted the connection but sent nothing for {} s, neither with ordinary nor with small segments",
                time.as_secs()
            );
            new(Failed, "silent", cannot_open(), &because, &try_)
        }
        E::Silent(time) => new(
            Failed,
            "silent",
            lost(),
            &format_args!("nothing was received from it for {} s", time.as_secs()),
            "check the network path, and try again; the reflector ends the session on its own",
        ),
        E::NoAnswer(time) => new(
            Failed,
            "silent",
            lost(),
            &format_args!("it sent no answer within {} s", time.as_secs()),
            "try again; run `reflector status` on the reflector's host, and read the reflector's log",
        ),
        E::QueueStalled(time) => new(
            Busy,
            "busy",
            not_served(),
            &format_args!("the position in its queue did not improve for {}", length(*time)),
            "try again later, or use a longer --wait",
        ),
        E::WaitedTooLong(time) => new(
            Busy,
            "busy",
            not_served(),
            &format_args!("the reflector was busy for {}", length(*time)),
            "use a longer --wait, or try again later",
        ),
        E::Lost(LinkError::Io(error)) => new(Failed, "reflector_gone", lost(), &plain(error), see_log),
        E::Lost(error) => new(Failed, "reflector_gone", lost(), error, see_log),
        E::EndOfStream => new(Failed, "reflector_gone", lost(), &"the reflector closed the link", see_log),
        E::Closed { reason, detail } => {
            let (code, exit, try_) = match reason {
                CloseReason::Version => ("version", Failed, "update both programs to the same version"),
                CloseReason::PeerRemoved => ("not_paired", Denied, PAIR_AGAIN),
                CloseReason::Shutdown => ("draining", Busy, AFTER_START),
                CloseReason::Protocol | CloseReason::Unknown => ("protocol", Failed, same_version),
            };
            new(exit, code, format!("the reflector at {target} closed the link"), detail, try_)
        }
        E::Denied(denial) => denied(target, denial),
        E::SessionEnded { reason, detail } => {
            let (code, exit, try_) = match reason {
                EndReason::BytesPerDay => {
                    ("bytes_per_day", Busy, "try again tomorrow, or raise max_bytes_per_day on the reflector")
                }
                EndReason::PeerRemoved => ("not_paired", Denied, PAIR_AGAIN),
                EndReason::Shutdown => ("draining", Busy, AFTER_START),
                EndReason::Finished
                | EndReason::Deadline
                | EndReason::Silence
                | EndReason::NotStarted
                | EndReason::LinkClosed
                | EndReason::Failed
                | EndReason::Unknown => ("session_ended", Failed, "try again; see the reflector's log"),
            };
            new(exit, code, format!("the reflector at {target} ended the test"), detail, try_)
        }
        E::EndedOutOfTurn(detail) => new(
            Failed,
            "protocol",
            format!("cannot understand the reflector at {target}"),
            &format_args!("it ended the session: {detail}"),
            same_version,
        ),
        E::UnexpectedMessage => new(
            Failed,
            "protocol",
            format!("cannot understand the reflector at {target}"),
            &"it sent a message that is not valid at this point of the protocol",
            same_version,
        ),
        E::CodeNotProven => new(
            Denied,
            "wrong_code",
            format!("the reflector at {target} could not prove that it knows the code"),
            &"its answer does not match this code",
            "run `reflector pair` on the right reflector, and enter the new code",
        ),
        E::CodeRefused => new(
            Denied,
            "wrong_code",
            format!("the reflector at {target} did not accept the code"),
            &"the code is wrong, used, expired or revoked, or there were five wrong codes from this network",
            "run `reflector pair` there again and enter the new code; after five wrong codes, wait ten minutes",
        ),
        E::NotPaired => new(
            Denied,
            "not_paired",
            format!("the reflector at {target} does not know this device"),
            &"this device was never paired with it, or was removed",
            "run `reflector pair` there, then `packetparamedic pair-reflector` here",
        ),
    }
}

fn denied(target: &HostPort, denial: &Denial) -> CommandFailure {
    let (code, try_) = match denial.reason {
        DenialReason::BadRequest => ("bad_request", "change the request, or update both programs to the same version"),
        DenialReason::EngineNotOffered => ("engine_not_offered", "choose another --engine, or update the reflector"),
        DenialReason::ModeNotOffered => {
            ("mode_not_offered", "use --data-mode tunneled, or set REFLECTOR_MODE=direct_ephemeral on the reflector")
        }
        DenialReason::TooLong => {
            ("too_long", "request a shorter test with -t, or raise max_test_duration on the reflector")
        }
        DenialReason::TooManyStreams => {
            ("too_many_streams", "request fewer streams with -P, or raise max_streams on the reflector")
        }
        DenialReason::AlreadyAsked => ("already_asked", "let the running test finish first"),
        DenialReason::Busy => ("busy", "omit --no-wait to wait in the queue, or try again later"),
        DenialReason::QueueFull => ("queue_full", "try again later"),
        DenialReason::TestsPerHour => {
            ("tests_per_hour", "try again later, or raise max_tests_per_hour on the reflector")
        }
        DenialReason::BytesPerDay => {
            ("bytes_per_day", "try again tomorrow, or raise max_bytes_per_day on the reflector")
        }
        DenialReason::NoPort => {
            ("no_port", "try again later, use --data-mode tunneled, or widen data_port_range on the reflector")
        }
        DenialReason::TooManyMonitors => ("too_many_monitors", "raise max_monitors on the reflector"),
        DenialReason::Draining => ("draining", AFTER_START),
        DenialReason::Faulted => ("reflector_faulted", "run `reflector status` on the reflector's host"),
        DenialReason::Unknown => ("denied", "update this program: the reflector is newer"),
    };
    let exit = if denial.reason.is_worth_a_retry() { ExitStatus::Busy } else { ExitStatus::Denied };
    let what = format!("the reflector at {target} did not grant the test");
    CommandFailure::new(exit, code, what, &denial.detail, try_).retry_after(denial.retry_after_ms)
}

fn length(duration: std::time::Duration) -> String {
    quantity::millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// Describes an I/O error in plain words, without the error number of the operating system.
fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "the connection was reset".to_owned(),
        io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "no route to the host".to_owned(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => "the other end closed the connection".to_owned(),
        _ => error.to_string(),
    }
}
