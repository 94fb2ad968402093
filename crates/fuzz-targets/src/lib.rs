//! The fuzz targets: functions that take any bytes, and panic if the code under test breaks a guarantee. The crate in
//! `fuzz/` runs them under libFuzzer. `tests/replay.rs` and the row `fuzz` of the siege run them with the stable
//! compiler.
//!
//! A target calls the public interface of the crate under test if that interface accepts the input. Otherwise the crate
//! exposes the function as `#[doc(hidden)] pub`. A cargo feature would not hide the function better: the siege links
//! this crate, so a build of the whole workspace would turn the feature on in both programs, and each crate would be
//! compiled twice.

#![forbid(unsafe_code)]

mod audit;
mod control;
mod datagrams;
mod framing;
mod iperf3;
mod mutation;
mod scratch;
mod seeds;
mod sessions;
mod texts;

pub use audit::{audit_line, audit_verify};
pub use control::{admin_line, appliance_config, config};
pub use datagrams::{echo_datagram, udp_datagram};
pub use framing::{frame, message, preamble};
pub use iperf3::iperf3_output;
pub use mutation::Mutator;
pub use seeds::{Seed, crashes, folder, seeds};
pub use sessions::sessions;
pub use texts::{endpoint_id, key_file, pairing_code};

/// A fuzz target: a function to run on generated inputs, and the seeds from which the inputs are generated.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of the target's function in this crate, of its file in `fuzz/fuzz_targets`, and of its folders in
    /// `seeds/` and `crashes/`.
    pub name: &'static str,
    /// Runs the target on one input. A panic means that it found a fault.
    pub run: fn(&[u8]),
    /// Returns the generated seeds, most of them from test vectors, fixtures and documents of the repository. The
    /// folder `seeds/` contains the other seeds.
    pub recorded: fn() -> Vec<Seed>,
}

/// All fuzz targets. A target that is missing here is neither tested nor listed by `fuzz-targets list`.
pub const TARGETS: &[Target] = &[
    Target { name: "frame", run: frame, recorded: seeds::frames },
    Target { name: "message", run: message, recorded: seeds::messages },
    Target { name: "preamble", run: preamble, recorded: seeds::preambles },
    Target { name: "endpoint_id", run: endpoint_id, recorded: seeds::endpoint_ids },
    Target { name: "pairing_code", run: pairing_code, recorded: seeds::none },
    Target { name: "key_file", run: key_file, recorded: seeds::none },
    Target { name: "audit_line", run: audit_line, recorded: seeds::audit_logs },
    Target { name: "audit_verify", run: audit_verify, recorded: seeds::none },
    Target { name: "admin_line", run: admin_line, recorded: seeds::none },
    Target { name: "config", run: config, recorded: seeds::configurations::<reflector::config::Config> },
    Target {
        name: "appliance_config",
        run: appliance_config,
        recorded: seeds::configurations::<packetparamedic::config::Settings>,
    },
    Target { name: "iperf3_output", run: iperf3_output, recorded: seeds::iperf3_outputs },
    Target { name: "echo_datagram", run: echo_datagram, recorded: seeds::datagrams },
    Target { name: "udp_datagram", run: udp_datagram, recorded: seeds::datagrams },
    Target { name: "sessions", run: sessions, recorded: seeds::none },
];

/// Finds the fuzz target with this name; `None` if there is none.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
