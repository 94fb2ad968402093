//! Makes command line flags from the list of settings.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

use super::{Configuration, Setting};

/// What the command line gives: the file of `--config`, and the values of settings.
#[derive(Clone, Debug, Default)]
pub struct FlagValues {
    /// The file of `--config`. It overrides the user's file and the file in /etc.
    pub config: Option<PathBuf>,
    /// The values that the command line gives to each setting, and the flag that gave them. The key is the setting's
    /// name.
    pub(super) values: BTreeMap<&'static str, (Vec<String>, String)>,
}

impl FlagValues {
    /// Sets the value of a setting from a flag that the subcommand itself defines. `flag` includes its dashes.
    pub fn set(&mut self, setting: &'static str, flag: &str, value: impl Into<String>) {
        self.values.insert(setting, (vec![value.into()], flag.to_owned()));
    }

    /// Adds the values of another group of flags. They override values that are already there.
    pub fn extend(&mut self, other: FlagValues) {
        self.config = other.config.or(self.config.take());
        self.values.extend(other.values);
    }
}

/// The settings that a subcommand takes as flags.
pub trait FlagGroup: 'static {
    /// The program's configuration.
    type Config: Configuration;

    /// Whether the command's own subcommands accept the flags, too.
    const IS_GLOBAL: bool;

    /// Whether a setting belongs to the group.
    fn has(setting: &str) -> bool;
}

/// `--config` and the flags of a group of settings. A subcommand includes them with `#[command(flatten)]`.
pub struct Flags<G> {
    /// The settings on the command line.
    pub values: FlagValues,
    group: PhantomData<G>,
}

fn settings_of<G: FlagGroup>() -> impl Iterator<Item = (&'static Setting<G::Config>, &'static str)> {
    let settings = G::Config::settings().iter().filter(|setting| G::has(setting.name));
    settings.filter_map(|setting| Some((setting, setting.flag?)))
}

impl<G: FlagGroup> FromArgMatches for Flags<G> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        // Reads only the flags of the group: a subcommand may define a different flag with the name of a setting.
        let values = settings_of::<G>().filter_map(|(setting, flag)| {
            let values = matches.try_get_many::<String>(setting.name).ok()??;
            Some((setting.name, (values.cloned().collect(), format!("--{flag}"))))
        });
        let config = matches.try_get_one::<PathBuf>("config").ok().flatten().cloned();
        Ok(Self { values: FlagValues { config, values: values.collect() }, group: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<G: FlagGroup> clap::Args for Flags<G> {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .global(G::IS_GLOBAL)
            .help("Also read this configuration file; it overrides the user's file and the file in /etc");
        let defaults = G::Config::defaults();
        let args = settings_of::<G>().map(|(setting, flag)| {
            let default = match setting.plain(&defaults) {
                // The setting has no default, or one that depends on the machine.
                value if value.is_empty() => String::new(),
                value => format!(" [default: {value}]"),
            };
            Arg::new(setting.name)
                .long(flag)
                .value_name(setting.placeholder)
                .action(if setting.is_list { ArgAction::Append } else { ArgAction::Set })
                .global(G::IS_GLOBAL)
                // The variable is on a line of its own, so that clap does not wrap it.
                .help(format!("{}\n[env: {}]{default}", setting.help, setting.env))
        });
        command.arg(config).args(args)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
