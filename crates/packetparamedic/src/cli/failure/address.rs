//! The failures of commands whose argument is not a valid address.

use paramedic_appliance::targets::{Fault, NotAHostPort};

use super::{CommandFailure, ExitStatus};

impl From<NotAHostPort> for CommandFailure {
    fn from(error: NotAHostPort) -> Self {
        Self::from(&error)
    }
}

impl From<&NotAHostPort> for CommandFailure {
    fn from(error: &NotAHostPort) -> Self {
        let try_ = match &error.fault {
            Fault::Empty | Fault::Port | Fault::Name | Fault::V4 => {
                "give HOST or HOST:PORT, as in reflector.example.net, 203.0.113.7:4000 or [2001:db8::7]:4000"
            }
            Fault::Url => "give only the host, without https:// and without a path",
            Fault::Brackets | Fault::V6 => "write an IPv6 address in brackets, as in [2001:db8::7]:4000",
            Fault::Character(c) if !c.is_ascii() => "write the name in its ASCII form, which begins with xn--",
            Fault::Character(_) => "use a name of letters, digits, dots and dashes",
        };
        let what = format!("invalid address {}", error.text);
        Self::new(ExitStatus::Usage, "bad_address", what, &error.fault, try_)
    }
}
