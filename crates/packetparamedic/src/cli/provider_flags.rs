//! The command-line flags of the options that providers declare. The value of an option comes from the flag itself,
//! from a file, from standard input or from an environment variable.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, value_parser};
use paramedic_appliance::providers::PROVIDERS;
use paramedic_appliance::providers::options::{OptionSource, OptionValue, OptionValues, ProviderOption};
use zeroize::Zeroizing;

use super::failure::{CommandFailure, ExitStatus};

/// The provider options that the user gave, each with its text or its file.
#[derive(Default)]
pub(super) struct ProviderFlags {
    given: BTreeMap<&'static str, ProvidedValue>,
}

enum ProvidedValue {
    Text(String),
    File(PathBuf),
}

/// The options of all providers, each with the id of its provider.
fn all_options() -> impl Iterator<Item = (&'static str, &'static ProviderOption)> {
    PROVIDERS.iter().flat_map(|provider| provider.options().iter().map(|option| (provider.id(), option)))
}

impl clap::Args for ProviderFlags {
    fn augment_args(command: Command) -> Command {
        all_options().fold(command, |command, (_, option)| {
            let flag = Arg::new(option.name).long(option.name).value_name(option.value_name).help(option.help);
            let flag = match option.source {
                OptionSource::Text => flag.value_parser(value_parser!(String)),
                OptionSource::File { .. } | OptionSource::Secret { .. } => flag.value_parser(value_parser!(PathBuf)),
            };
            command.arg(match option.requires {
                Some(other) => flag.requires(other),
                None => flag,
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for ProviderFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for (_, option) in all_options() {
            let given = match option.source {
                OptionSource::Text => matches.get_one::<String>(option.name).cloned().map(ProvidedValue::Text),
                OptionSource::File { .. } | OptionSource::Secret { .. } => {
                    matches.get_one::<PathBuf>(option.name).cloned().map(ProvidedValue::File)
                }
            };
            self.given.extend(given.map(|given| (option.name, given)));
        }
        Ok(())
    }
}

impl ProviderFlags {
    /// Returns the name of one of the provider options that the user gave; `None` if the user gave none.
    pub(super) fn first_given(&self) -> Option<&'static str> {
        self.given.keys().next().copied()
    }

    /// Returns the values of all given flags. A secret of `provider` whose flag is not given comes from the
    /// environment.
    pub(super) fn values(&self, provider: &str) -> Result<OptionValues, CommandFailure> {
        let mut values = OptionValues::default();
        for (owner, option) in all_options() {
            let value = match (self.given.get(option.name), option.source) {
                (Some(ProvidedValue::Text(text)), _) => {
                    Some(OptionValue { text: Zeroizing::new(text.clone()), file: None })
                }
                (Some(ProvidedValue::File(path)), source) => {
                    let text = read(path, source).map_err(|error| unreadable(path, &error))?;
                    Some(OptionValue { text, file: Some(path.clone()) })
                }
                (None, OptionSource::Secret { variable, .. }) if owner == provider => {
                    let secret = std::env::var(variable).ok().map(Zeroizing::new);
                    secret.filter(|secret| !secret.is_empty()).map(|text| OptionValue { text, file: None })
                }
                (None, _) => None,
            };
            if let Some(value) = value {
                values.set(option, value);
            }
        }
        Ok(values)
    }
}

fn read(path: &Path, source: OptionSource) -> io::Result<Zeroizing<String>> {
    match source {
        OptionSource::Secret { max_bytes, .. } if path.as_os_str() == "-" => first_line(io::stdin(), max_bytes),
        OptionSource::Secret { max_bytes, .. } => first_line(File::open(path)?, max_bytes),
        OptionSource::File { max_bytes } => {
            let mut text = Zeroizing::new(String::new());
            File::open(path)?.take(max_bytes).read_to_string(&mut text)?;
            Ok(text)
        }
        OptionSource::Text => Ok(Zeroizing::default()),
    }
}

fn first_line(source: impl Read, max_bytes: u64) -> io::Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(String::new());
    BufReader::new(source.take(max_bytes)).read_line(&mut line)?;
    Ok(Zeroizing::new(line.trim_end_matches(['\r', '\n']).to_owned()))
}

fn unreadable(path: &Path, error: &io::Error) -> CommandFailure {
    let what = format!("cannot read {}", path.display());
    let try_ = "check the path, and that this user may read it";
    CommandFailure::new(ExitStatus::Usage, "unreadable", what, error, try_)
}
