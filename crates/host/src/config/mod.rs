//! The configuration of a program: one list of settings, read from flags, environment variables and files. Each program
//! implements [`Configuration`] for its own type. The precedence of these sources, the template file and the error
//! messages are the same for both programs. This module reads files and the environment. It creates nothing and never
//! prints.

mod error;
mod flags;
mod layers;
mod names;
mod setting;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use paramedic_report::lines::wrapped;

pub use error::ConfigError;
pub use flags::{FlagGroup, FlagValues, Flags};
pub use layers::{Machine, load, load_on};
pub use names::nearest_name;
pub use setting::{Given, Setting, list};

/// The configuration of a program, with its list of settings.
pub trait Configuration: Clone + Sized + 'static {
    /// The program's name in lower case. Its configuration file is `PROGRAM.toml`. The environment variable of a
    /// setting is the program's name and the setting's name in upper case, joined by `_`.
    const PROGRAM: &'static str;

    /// Every setting, in the order in which the template and the output list them.
    fn settings() -> &'static [Setting<Self>];

    /// Environment variables with the program's prefix that do not belong to settings, for example secrets.
    fn other_variables() -> Vec<&'static str> {
        Vec::new()
    }

    /// A configuration with every default that does not depend on the machine.
    fn defaults() -> Self;

    /// A configuration with the values for the template: the defaults of a typical machine, and an example for each
    /// setting without a default.
    fn example() -> Self;

    /// Sets the values that depend on the machine, unless a file, a variable or a flag has set them. Returns warnings
    /// for the user.
    fn complete(&mut self, origins: &mut Origins, machine: &Machine<'_>) -> Result<Vec<String>, ConfigError>;

    /// Checks values that depend on each other.
    fn check(&self, _origins: &Origins) -> Result<(), ConfigError> {
        Ok(())
    }
}

/// Where the value of a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueOrigin {
    /// The default: no file, variable or flag has set the value.
    Default,
    /// An environment variable that names a folder, and that systemd or the login session sets.
    Place(&'static str),
    /// A line of a configuration file.
    File {
        /// The absolute path of the file.
        path: PathBuf,
        /// The number of the line in the file, from 1.
        line: usize,
    },
    /// The environment variable of the setting.
    Environment(&'static str),
    /// A command line flag, with its dashes.
    Flag(String),
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueOrigin::Default => f.write_str("default"),
            ValueOrigin::Place(variable) | ValueOrigin::Environment(variable) => f.write_str(variable),
            ValueOrigin::File { path, line } => write!(f, "{}:{line}", path.display()),
            ValueOrigin::Flag(flag) => f.write_str(flag),
        }
    }
}

/// The origin of each setting's value, by the setting's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<&'static str, ValueOrigin>);

impl Origins {
    /// The origin of a setting's value.
    pub fn of(&self, setting: &str) -> ValueOrigin {
        self.0.get(setting).cloned().unwrap_or(ValueOrigin::Default)
    }

    /// Whether the origin of the setting's value is [`ValueOrigin::Default`].
    pub fn is_default(&self, setting: &str) -> bool {
        self.of(setting) == ValueOrigin::Default
    }

    /// Whether a flag, the variable of the setting or a file has set the setting.
    pub fn is_chosen(&self, setting: &str) -> bool {
        !matches!(self.of(setting), ValueOrigin::Default | ValueOrigin::Place(_))
    }

    /// Records the origin of a setting's value.
    pub fn set(&mut self, setting: &'static str, origin: ValueOrigin) {
        self.0.insert(setting, origin);
    }

    /// Every setting's origin, ordered by the settings' names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &ValueOrigin)> {
        self.0.iter().map(|(name, origin)| (*name, origin))
    }
}

/// A configuration, and where each of its values came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded<C> {
    /// The configuration; everything in it is valid.
    pub config: C,
    /// Where each value came from.
    pub origins: Origins,
    /// The files that were read, the one with the highest precedence first.
    pub files: Vec<PathBuf>,
    /// Warnings for the user about a valid configuration. The texts do not begin with `warning:`.
    pub warnings: Vec<String>,
}

impl<C: Configuration> Loaded<C> {
    /// The whole configuration as TOML. With `with_origin`, a comment names each value's origin.
    pub fn show(&self, with_origin: bool) -> String {
        let mut text = String::new();
        for setting in C::settings() {
            text += &match (setting.show)(&self.config) {
                Some(value) if with_origin => {
                    format!("{} = {value}  # {}\n", setting.name, self.origins.of(setting.name))
                }
                Some(value) => format!("{} = {value}\n", setting.name),
                None => format!("# {} is not set\n", setting.name),
            };
        }
        text
    }

    /// One sentence that says which files were read.
    pub fn summary(&self) -> String {
        let files = self.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
        let files = if files.is_empty() { "no file".to_owned() } else { files.join(", ") };
        format!("the configuration is valid (read: {files})")
    }
}

/// A configuration file in which every setting is explained and commented out.
pub fn template<C: Configuration>() -> String {
    const WIDTH: usize = 100;
    let mut text =
        format!("# The configuration of {}. Flags override environment variables, which override files.\n", C::PROGRAM);
    let example = C::example();
    for setting in C::settings() {
        text.push('\n');
        for paragraph in [setting.help, &format!("Valid: {}.", setting.valid)] {
            for line in wrapped(paragraph, WIDTH, 0) {
                text += &format!("# {line}\n");
            }
        }
        let flag = setting.flag.map_or_else(String::new, |flag| format!(" Flag: --{flag}."));
        text += &format!("# Environment: {}.{flag}\n", setting.env);
        if let Some(value) = (setting.show)(&example) {
            text += &format!("#{} = {value}\n", setting.name);
        }
    }
    text
}

/// Looks up an environment variable: takes its name, and returns its value, or `None` if it is not set.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

#[cfg(test)]
mod tests;
