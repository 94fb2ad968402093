//! The failures of tests with iperf3.

use paramedic_appliance::error::Iperf3Failure;
use paramedic_iperf3::output::FailureKind;

use super::{CommandFailure, ExitStatus};

impl From<&Iperf3Failure> for CommandFailure {
    fn from(error: &Iperf3Failure) -> Self {
        use ExitStatus::{Busy, Denied, Failed, Usage};
        match error {
            Iperf3Failure::NoServerNamed => Self::new(
                Usage,
                "no_server",
                "no iperf3 server to measure against",
                "the request names no server",
                "name a host that runs `iperf3 -s`: --peer HOST or --peer HOST:PORT",
            ),
            Iperf3Failure::NotAPublicKey { .. } => {
                let try_ = "use the output of `openssl rsa -in private.pem -pubout` for the server's private key";
                Self::new(Usage, "bad_usage", error.to_string(), "it does not contain a public key in PEM", try_)
            }
            Iperf3Failure::NoPassword { .. } => {
                let try_ = "set --password-file FILE, or PACKETPARAMEDIC_IPERF3_PASSWORD in the environment";
                Self::new(Usage, "bad_usage", error.to_string(), "no password was given", try_)
            }
            Iperf3Failure::NotStarted(source) => Self::new(
                Failed,
                "iperf3_failed",
                "cannot start iperf3",
                source,
                "check that this user may run iperf3 and write to the folder for temporary files",
            ),
            Iperf3Failure::ImpossibleReport { target } => Self::new(
                Failed,
                "bad_report",
                format!("the test with the iperf3 server at {target} has no result"),
                "the server reported impossible counts",
                "check that it is an iperf3 server that you trust; add --raw to keep the report of the server",
            ),
            Iperf3Failure::Client { target, cause, reason, has_login } => {
                let failed = || format!("the test with the iperf3 server at {target} failed");
                match cause {
                    FailureKind::Busy => {
                        let what = format!("the iperf3 server at {target} is busy");
                        let try_ = "it serves one test at a time: wait for it with --wait 60s, or try again later";
                        Self::new(Busy, "busy", what, reason, try_).retry_after(Some(1_000))
                    }
                    FailureKind::NotAuthorized => {
                        let what = format!("the iperf3 server at {target} refused this device");
                        let try_ = if *has_login {
                            "check the user, the password, the public key, and that both clocks agree within 10 s; a \
                             server of version 3.17 or later must run with --use-pkcs1-padding to accept an older \
                             client"
                        } else {
                            "it requires a login: set --username, --password-file and --rsa-public-key"
                        };
                        Self::new(Denied, "not_authorized", what, reason, try_)
                    }
                    FailureKind::Unreachable => {
                        let what = format!("cannot reach an iperf3 server at {target}");
                        let try_ = "check that `iperf3 -s` runs there and that its port is open";
                        Self::new(Failed, "unreachable", what, reason, try_)
                    }
                    FailureKind::ControlLost => {
                        let try_ = "check that it is an iperf3 server, and read the output of the server: it may be \
                                    busy or require a login";
                        Self::new(Failed, "data_lost", failed(), reason, try_)
                    }
                    FailureKind::BytesLeft => {
                        let try_ = "give the test more time with -t, or fewer bytes with -n";
                        Self::new(Failed, "data_lost", failed(), reason, try_)
                    }
                    FailureKind::PathSilent => {
                        let what = format!("the path to the iperf3 server at {target} fell silent");
                        let try_ = "check with `ping` that the host is up and can be reached, then run the test again";
                        Self::new(Failed, "silent", what, reason, try_)
                    }
                    FailureKind::Other => {
                        let try_ = "try `iperf3` with the same options on this device";
                        Self::new(Failed, "iperf3_failed", failed(), reason, try_)
                    }
                }
            }
        }
    }
}
