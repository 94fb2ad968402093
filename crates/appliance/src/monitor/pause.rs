//! Why a monitor does not probe, or does not count its probes. While a monitor is paused, its target is not part of an
//! outage.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Declares the reasons, each with its name in documents, in one list.
macro_rules! pause_reasons {
    ($($(#[$doc:meta])+ $variant:ident => $word:literal),+ $(,)?) => {
        /// Why a monitor is paused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        pub enum PauseReason {
            $($(#[$doc])+ #[serde(rename = $word)] $variant),+
        }

        impl PauseReason {
            /// The name of the reason in documents.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }
    };
}

pause_reasons! {
    /// The user disabled the monitor.
    Disabled => "disabled",
    /// The monitor has just begun, or connects again.
    Connecting => "connecting",
    /// The reflector has reached its limit of monitor sessions, in total or for this device.
    TooManyMonitors => "too_many_monitors",
    /// The reflector shuts down.
    Draining => "draining",
    /// At the reflector, this device or all devices together have used up the daily quota of bytes.
    BytesPerDay => "bytes_per_day",
    /// The reflector cannot write its audit log or state.
    ReflectorFaulted => "reflector_faulted",
    /// The reflector denied the session for another reason.
    Denied => "denied",
    /// The reflector does not know this device.
    NotPaired => "not_paired",
    /// No paired reflector has this name.
    TargetGone => "target_gone",
    /// The reflector has a different key from the one with which it was paired.
    KeyChanged => "key_changed",
    /// The reflector's version does not support monitor sessions.
    NotSupported => "not_supported",
    /// The connection to the reflector works, but no probe (a UDP datagram) is answered.
    UdpBlocked => "udp_blocked",
    /// The target has not answered any probe since the monitor began to probe it.
    NoAnswer => "no_answer",
    /// This host has no default route.
    NoGateway => "no_gateway",
    /// The name of the target cannot be resolved.
    NotResolved => "not_resolved",
    /// This host cannot open the socket that the monitor needs.
    LocalFailure => "local_failure",
}
