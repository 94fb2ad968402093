//! Which options of `speed-test` exclude `--until-stable`: those that set the duration of a direction, and those that
//! need its full duration.

use super::Args;

/// The facts about a test, in addition to its options, that decide whether `--until-stable` is possible.
pub(super) struct RequestedLength {
    /// Whether the configuration sets the duration of a direction.
    pub(super) is_configured: bool,
    /// Whether the test sends datagrams.
    pub(super) sends_datagrams: bool,
    /// Whether an external program moves the payload.
    pub(super) has_program: bool,
    /// Whether the test sends latency probes.
    pub(super) does_probe: bool,
}

/// Why `--until-stable` is refused, as a clause; `None` if `--until-stable` is possible.
pub(super) fn conflict(args: &Args, length: &RequestedLength) -> Option<&'static str> {
    let has_threshold = args.min_download.is_some()
        || args.min_upload.is_some()
        || args.max_idle_latency.is_some()
        || args.max_loaded_latency.is_some()
        || args.max_loss.is_some()
        || args.max_loaded_loss.is_some();
    let conflicts = [
        (args.time.is_some(), "-t sets the time of each direction"),
        (length.is_configured, "the setting `duration` sets the time of each direction"),
        (args.bytes.is_some(), "-n ends each direction after a number of bytes"),
        (args.budget.is_some(), "--budget ends each direction after a number of bytes"),
        (length.has_program, "iperf3 sends for the whole time"),
        (length.sends_datagrams, "datagrams (-u) are sent for the whole time"),
        (has_threshold, "a threshold needs the whole time, so that each run is judged alike"),
        (!length.does_probe, "the latency under load must be known, and --probe-interval 0 sends no probes"),
    ];
    conflicts.into_iter().find_map(|(is_given, why)| is_given.then_some(why))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct SpeedTest {
        #[command(flatten)]
        args: Args,
    }

    fn refused(given: &[&str], length: &RequestedLength) -> Option<&'static str> {
        conflict(&SpeedTest::parse_from([&["speed-test", "--quick"], given].concat()).args, length)
    }

    const FREE: RequestedLength =
        RequestedLength { is_configured: false, sends_datagrams: false, has_program: false, does_probe: true };

    #[test]
    fn whatever_sets_the_length_or_needs_all_of_it_excludes_an_early_end() {
        let options: [&[&str]; 9] = [
            &["-t", "10"],
            &["-n", "1G"],
            &["--budget", "1GB"],
            &["--min-download", "1M"],
            &["--min-upload", "1M"],
            &["--max-idle-latency", "10"],
            &["--max-loaded-latency", "10"],
            &["--max-loss", "1%"],
            &["--max-loaded-loss", "1%"],
        ];
        for given in options {
            assert!(refused(given, &FREE).is_some(), "{given:?}");
        }
        assert!(refused(&[], &RequestedLength { is_configured: true, ..FREE }).is_some());
        assert!(refused(&[], &RequestedLength { sends_datagrams: true, ..FREE }).is_some());
        assert!(refused(&[], &RequestedLength { has_program: true, ..FREE }).is_some());
        assert!(refused(&[], &RequestedLength { does_probe: false, ..FREE }).is_some());
        let harmless: [&[&str]; 4] = [&[], &["--bidir"], &["-b", "5M"], &["-O", "1"]];
        for given in harmless {
            assert_eq!(refused(given, &FREE), None, "{given:?}");
        }
    }
}
