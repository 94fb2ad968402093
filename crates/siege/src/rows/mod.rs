//! The one list of promises: a file a row.

use crate::measured::Measured;
use crate::scale::Scale;

mod bad_reflectors;
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
mod mistyped_id;
mod pairing;
mod quotas;
mod spoofed_udp;
mod tampering;

/// One promise, and what shows it.
pub(crate) struct Row {
    /// The row's name, for `--only`.
    pub(crate) name: &'static str,
    /// The promise, as the table says it.
    pub(crate) promise: &'static str,
    /// Plays the row. Every thread, process and namespace that it starts ends with it. A panic or an error is a missed
    /// promise.
    pub(crate) play: fn(Scale) -> anyhow::Result<Measured>,
}

/// Every row, in the order in which they are played.
pub(crate) const ROWS: &[Row] = &[
    Row { name: "forged_identity", promise: "no client gets in without the key", play: forged_identity::play },
    Row { name: "mistyped_id", promise: "a mistyped Endpoint ID never matches", play: mistyped_id::play },
    Row { name: "pairing", promise: "pairing resists guess, race and interception", play: pairing::play },
    Row { name: "spoofed_udp", promise: "spoofed datagrams get nothing", play: spoofed_udp::play },
    Row { name: "granted_port", promise: "a granted port is its owner's", play: granted_port::play },
    Row { name: "iperf3_lane", promise: "the iperf3 lane survives its neighbours", play: iperf3_lane::play },
    Row { name: "flood", promise: "paired appliances are served in a flood", play: flood::play },
    Row { name: "descriptors", promise: "running out of descriptors is harmless", play: descriptors::play },
    Row { name: "log_flood", promise: "logs cannot be flooded", play: log_flood::play },
    Row {
        name: "bad_reflectors",
        promise: "a hostile reflector cannot hurt the appliance",
        play: bad_reflectors::play,
    },
    Row {
        name: "disk_faults",
        promise: "what is acknowledged is on disk, whatever the disk does, and health says what it does",
        play: disk_faults::play,
    },
    Row { name: "kill9", promise: "a kill loses nothing that was acknowledged", play: kill9::play },
    Row { name: "quotas", promise: "no race and no kill gets more than is allowed", play: quotas::play },
    Row { name: "tampering", promise: "no change of an acknowledged line goes unnoticed", play: tampering::play },
    Row { name: "fuzz", promise: "parsers and session rules hold under arbitrary input", play: fuzz::play },
    Row { name: "leaks", promise: "nothing leaks", play: leaks::play },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_has_a_name_of_its_own() {
        let mut names = ROWS.iter().map(|row| row.name).collect::<Vec<_>>();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
