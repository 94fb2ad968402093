//! The rows of the siege: each checks one promise, in its own file.

use crate::measured::Measured;
use crate::scale::Scale;

mod bad_reflectors;
mod confinement;
mod crash_charge;
mod descriptors;
mod disk_faults;
mod flood;
mod forged_identity;
mod fuzz;
mod granted_port;
mod iperf3_lane;
mod kill9;
mod leaks;
mod log_flood;
mod metrics_flood;
mod mistyped_id;
mod pairing;
mod quotas;
mod spoofed_udp;
mod tampering;

/// A promise, and the function that checks it.
pub(crate) struct Row {
    /// The name of the row, for `--only`.
    pub(crate) name: &'static str,
    /// The text of the promise, as the table shows it.
    pub(crate) promise: &'static str,
    /// Checks the promise. Every thread, process and namespace that the row creates must be gone when the row ends. A
    /// panic or an error counts as a missed promise.
    pub(crate) play: fn(Scale) -> anyhow::Result<Measured>,
}

/// Every row, in the order in which they run.
pub(crate) const ROWS: &[Row] = &[
    Row { name: "forged_identity", promise: "no client gets in without the key", play: forged_identity::play },
    Row { name: "mistyped_id", promise: "a mistyped Endpoint ID never matches", play: mistyped_id::play },
    Row { name: "pairing", promise: "pairing resists guess, race and interception", play: pairing::play },
    Row { name: "spoofed_udp", promise: "spoofed datagrams get nothing", play: spoofed_udp::play },
    Row { name: "granted_port", promise: "a granted port serves only its session", play: granted_port::play },
    Row { name: "iperf3_lane", promise: "the iperf3 lane resists unpaired clients", play: iperf3_lane::play },
    Row { name: "confinement", promise: "the unit and the iperf3 child are confined", play: confinement::play },
    Row { name: "flood", promise: "paired appliances are served in a flood", play: flood::play },
    Row { name: "descriptors", promise: "running out of descriptors is harmless", play: descriptors::play },
    Row { name: "log_flood", promise: "logs cannot be flooded", play: log_flood::play },
    Row { name: "metrics_flood", promise: "misuse of the metrics disturbs no test", play: metrics_flood::play },
    Row {
        name: "bad_reflectors",
        promise: "a hostile reflector cannot hurt the appliance",
        play: bad_reflectors::play,
    },
    Row {
        name: "disk_faults",
        promise: "acknowledged changes are on disk despite disk faults, and health reports the faults",
        play: disk_faults::play,
    },
    Row { name: "kill9", promise: "a kill loses nothing that was acknowledged", play: kill9::play },
    Row { name: "quotas", promise: "neither a race nor a kill exceeds a quota", play: quotas::play },
    Row { name: "crash_charge", promise: "a crash charges what flowed and a bounded surge", play: crash_charge::play },
    Row { name: "tampering", promise: "every change of an acknowledged line is detected", play: tampering::play },
    Row { name: "fuzz", promise: "parsers and session rules hold under arbitrary input", play: fuzz::play },
    Row { name: "leaks", promise: "nothing leaks", play: leaks::play },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_names_are_unique() {
        let mut names = ROWS.iter().map(|row| row.name).collect::<Vec<_>>();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
