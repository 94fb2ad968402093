//! The settings as command line flags, made from the list of settings. Reading values is the list's business.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

use super::Config;
use super::settings::SETTINGS;

/// The flags that were given: `--config`, and every setting. Flatten it into a subcommand that serves.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config`: a further file, above those of the user and of /etc.
    pub config: Option<PathBuf>,
    pub(super) values: BTreeMap<&'static str, Vec<String>>,
}

/// What the other subcommands take: where the configuration and the folders are. The same flags, fewer of them.
#[derive(Clone, Debug, Default)]
pub struct PlaceFlags(pub Flags);

/// Whether a setting is one of [`PlaceFlags`].
fn is_place(name: &str) -> bool {
    matches!(name, "state_dir" | "runtime_dir")
}

/// `is_global`: whether the command's own subcommands take them as well.
fn augment(command: Command, is_global: bool, is_wanted: impl Fn(&str) -> bool) -> Command {
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .global(is_global)
        .help("Also read this configuration file; it overrides those of the user and in /etc");
    let defaults = Config::defaults();
    let wanted = SETTINGS.iter().filter(|setting| is_wanted(setting.name));
    let args = wanted.map(|setting| {
        let default = match setting.plain(&defaults) {
            // Folders and lists that are empty until something is known of the machine.
            value if value.is_empty() => String::new(),
            value => format!(" [default: {value}]"),
        };
        let action = if setting.is_list { ArgAction::Append } else { ArgAction::Set };
        Arg::new(setting.name)
            .long(setting.flag)
            .value_name(setting.placeholder)
            .action(action)
            .global(is_global)
            // On a line of its own, so that no wrapping tears it.
            .help(format!("{}\n[env: {}]{default}", setting.help, setting.env))
    });
    command.arg(config).args(args)
}

/// Only what is wanted: another subcommand may have a flag of its own with a setting's name.
fn said(matches: &ArgMatches, is_wanted: impl Fn(&str) -> bool) -> Flags {
    let values = SETTINGS.iter().filter(|setting| is_wanted(setting.name)).filter_map(|setting| {
        let values = matches.try_get_many::<String>(setting.name).ok()??;
        Some((setting.name, values.cloned().collect()))
    });
    Flags { config: matches.try_get_one::<PathBuf>("config").ok().flatten().cloned(), values: values.collect() }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(said(matches, |_| true))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = said(matches, |_| true);
        Ok(())
    }
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        augment(command, false, |_| true)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for PlaceFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(said(matches, is_place)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self(said(matches, is_place));
        Ok(())
    }
}

impl clap::Args for PlaceFlags {
    fn augment_args(command: Command) -> Command {
        augment(command, true, is_place)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        flags: Flags,
    }

    #[derive(Parser)]
    struct Elsewhere {
        #[command(flatten)]
        place: PlaceFlags,
        #[arg(long)]
        name: Option<String>,
    }

    #[test]
    fn every_setting_is_a_flag_whose_help_names_its_variable() {
        let help = <Cli as clap::CommandFactory>::command().render_long_help().to_string();
        for setting in SETTINGS {
            assert!(help.contains(&format!("--{} <{}>", setting.flag, setting.placeholder)), "{help}");
            assert!(help.contains(&format!("[env: {}]", setting.env)), "{help}");
        }
        assert!(help.contains("[default: 10m]"), "{help}");
    }

    #[test]
    fn a_list_may_be_said_more_than_once_and_a_single_value_may_not() {
        let cli = Cli::try_parse_from(["x", "--listen", "1", "--listen", "2", "--config", "f"]).unwrap();
        assert_eq!(cli.flags.values["listen"], ["1", "2"]);
        assert_eq!(cli.flags.config, Some(PathBuf::from("f")));
        assert!(Cli::try_parse_from(["x", "--mode", "a", "--mode", "b"]).is_err());
    }

    #[test]
    fn the_other_subcommands_take_the_places_alone() {
        let cli = Elsewhere::try_parse_from(["x", "--state-dir", "/s", "--name", "attic Pi"]).unwrap();
        assert_eq!(cli.name.as_deref(), Some("attic Pi"));
        assert_eq!(cli.place.0.values.keys().collect::<Vec<_>>(), [&"state_dir"]);
        assert!(Elsewhere::try_parse_from(["x", "--listen", "1"]).is_err());
    }
}
