//! Finds options of `speed-test` that have no effect with the chosen provider and engine. Such an option is refused,
//! because the user expects an effect.

use super::Args;

/// The facts about a test that decide whether an option has an effect.
pub(super) struct RequestedSetup<'a> {
    /// The id of the provider.
    pub(super) provider: &'a str,
    /// The id of the engine.
    pub(super) engine: &'a str,
    /// Whether the engine loads the path.
    pub(super) has_load: bool,
    /// Whether the provider can send latency probes.
    pub(super) may_probe: bool,
    /// Whether this test sends latency probes.
    pub(super) does_probe: bool,
    /// Whether an external program moves the payload.
    pub(super) has_program: bool,
}

/// What an option needs to have an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// The option needs a phase with load.
    Load,
    /// The option needs an idle phase before the load.
    IdlePhase,
    /// The option needs a provider that sends latency probes.
    Probes,
    /// The option needs a phase with load, or latency probes.
    Packets,
    /// The option needs an external program that moves the payload.
    Program,
}

/// An option: its name on the command line, a function that returns whether it was given, and what it needs to have an
/// effect.
type OptionNeeds = (&'static str, fn(&Args) -> bool, Needs);

const OPTIONS: &[OptionNeeds] = &[
    ("-n", |args| args.bytes.is_some(), Needs::Load),
    ("--until-stable", |args| args.until_stable, Needs::Load),
    ("--budget", |args| args.budget.is_some(), Needs::Load),
    ("-P", |args| args.parallel.is_some(), Needs::Load),
    ("-O", |args| args.omit.is_some(), Needs::Load),
    ("--download", |args| args.download, Needs::Load),
    ("--upload", |args| args.upload, Needs::Load),
    ("--bidir", |args| args.bidir, Needs::Load),
    ("-C", |args| args.congestion.is_some(), Needs::Load),
    ("-w", |args| args.window.is_some(), Needs::Load),
    ("-l", |args| args.length.is_some(), Needs::Load),
    ("-M", |args| args.set_mss.is_some(), Needs::Load),
    ("-S", |args| args.tos.is_some(), Needs::Packets),
    ("--dscp", |args| args.dscp.is_some(), Needs::Packets),
    ("-b", |args| args.bitrate.is_some(), Needs::Load),
    ("--data-path", |args| args.data_path.is_some(), Needs::Load),
    ("--verify-payload", |args| args.verify_payload, Needs::Load),
    ("--intervals", |args| args.intervals, Needs::Load),
    ("--idle", |args| args.idle.is_some_and(|idle| !idle.is_zero()), Needs::IdlePhase),
    ("--probe-interval", |args| args.probe_interval.is_some(), Needs::Probes),
    ("--raw", |args| args.raw, Needs::Program),
];

/// Returns the first given option that has no effect, with the reason; `None` if every given option has an effect.
pub(super) fn without_effect(args: &Args, setting: &RequestedSetup<'_>) -> Option<String> {
    let given = OPTIONS.iter().filter(|(_, is_given, _)| is_given(args));
    given.map(|(option, _, needs)| (option, needs)).find_map(|(option, needs)| {
        let why = needs.missing(setting)?;
        Some(format!("{option} has no effect: {why}"))
    })
}

impl Needs {
    /// Why the option has no effect; `None` if the option has an effect.
    fn missing(self, setting: &RequestedSetup<'_>) -> Option<String> {
        let RequestedSetup { provider, engine, has_load, may_probe, does_probe, has_program } = setting;
        match self {
            Self::Load if !has_load => Some(format!("the engine {engine} sends no load")),
            Self::Packets if !(*has_load || (*may_probe && *does_probe)) => {
                Some(format!("the engine {engine} sends no load, and there are no latency probes"))
            }
            Self::IdlePhase if !has_load => Some(format!("the engine {engine} has one idle phase; -t sets its length")),
            Self::IdlePhase | Self::Probes if !may_probe => {
                Some(format!("the provider {provider} does not measure latency"))
            }
            Self::IdlePhase if !does_probe => Some("--probe-interval 0 sends no probes".to_owned()),
            Self::Program if !has_program => Some(format!("the engine {engine} does not use iperf3")),
            Self::Load | Self::IdlePhase | Self::Probes | Self::Packets | Self::Program => None,
        }
    }
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

    fn args(given: &[&str]) -> Args {
        SpeedTest::parse_from([&["speed-test"], given].concat()).args
    }

    /// A test for which no option has an effect.
    fn nothing() -> RequestedSetup<'static> {
        RequestedSetup {
            provider: "p",
            engine: "e",
            has_load: false,
            may_probe: false,
            does_probe: false,
            has_program: false,
        }
    }

    #[test]
    fn every_option_of_the_table_is_refused_where_it_has_no_effect_and_only_there() {
        let values = |option: &str| match option {
            "--data-path" => vec!["plain"],
            "-C" => vec!["cubic"],
            "--dscp" => vec!["EF"],
            "--until-stable" | "--download" | "--upload" | "--bidir" | "--verify-payload" | "--intervals" | "--raw" => {
                vec![]
            }
            _ => vec!["5"],
        };
        let all = RequestedSetup { has_load: true, may_probe: true, does_probe: true, has_program: true, ..nothing() };
        for (option, ..) in OPTIONS {
            let args = args(&[&[*option], &values(option)[..]].concat());
            let refused = without_effect(&args, &nothing()).unwrap();
            assert!(refused.starts_with(&format!("{option} has no effect: ")), "{refused}");
            assert_eq!(without_effect(&args, &all), None, "{option}");
        }
        assert_eq!(without_effect(&args(&[]), &nothing()), None);
        assert_eq!(without_effect(&args(&["--idle", "0"]), &nothing()), None, "the requested value holds anyway");
    }
}
