//! Reads the layers of a configuration: defaults, the file in /etc, the user's file, the `--config` file, environment
//! variables, flags. Each layer overrides the ones before it, setting by setting.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::names::{check_variables, nearest};
use super::setting::Given;
use super::{ConfigError, Configuration, Environment, FlagValues, Loaded, Origins, Setting, ValueOrigin};

/// What [`load_on`] needs to know about the host, the user and the environment. Tests replace these values.
pub struct Machine<'a> {
    /// The environment. An empty variable counts as not set.
    pub env: Environment<'a>,
    /// The names of all environment variables that are not empty.
    pub variables: &'a [String],
    /// The configuration file of the whole host.
    pub etc_file: PathBuf,
    /// The user's home folder.
    pub home: Option<PathBuf>,
    /// Whether the program runs as root.
    pub is_root: bool,
    /// The host's name.
    pub hostname: String,
    /// Whether there is a file or folder at a path.
    pub exists: &'a dyn Fn(&Path) -> bool,
    /// The folder against which relative paths of flags and variables are resolved.
    pub current_dir: PathBuf,
}

impl Machine<'_> {
    /// A folder of the XDG base directory specification: the value of `variable`, or `under_home` in the home folder. A
    /// relative value of `variable` is ignored, as the specification requires.
    pub fn xdg(&self, variable: &str, under_home: &str) -> Option<PathBuf> {
        self.absolute(variable).or_else(|| self.home.as_ref().map(|home| home.join(under_home)))
    }

    /// The value of an environment variable, if the value is an absolute path.
    pub fn absolute(&self, variable: &str) -> Option<PathBuf> {
        (self.env)(variable).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    /// The folder that systemd passes in the environment variable `variable`. If the variable lists several folders,
    /// separated by colons, returns the first one. Relative paths are ignored.
    pub fn systemd_folder(&self, variable: &str) -> Option<PathBuf> {
        let value = (self.env)(variable)?;
        std::env::split_paths(&value).find(|path| path.is_absolute())
    }

    /// The default state folder. It is systemd's STATE_DIRECTORY, if set. Otherwise it is `for_root` for root, and
    /// `under_xdg` in the XDG state folder for other users.
    pub fn state_dir(&self, for_root: &str, under_xdg: &str) -> Result<(PathBuf, ValueOrigin), ConfigError> {
        if let Some(path) = self.systemd_folder("STATE_DIRECTORY") {
            return Ok((path, ValueOrigin::Place("STATE_DIRECTORY")));
        }
        if self.is_root {
            return Ok((for_root.into(), ValueOrigin::Default));
        }
        let state = self.xdg("XDG_STATE_HOME", ".local/state").ok_or(ConfigError::NoStateDir)?;
        Ok((state.join(under_xdg), ValueOrigin::Default))
    }
}

/// Loads the configuration of a program from every layer on this machine.
///
/// # Errors
/// - A variable has the program's prefix, but the program does not read it.
/// - The file of `--config` or the file in /etc cannot be read. The file in /etc may be missing.
/// - A file is not TOML, or has an unknown key.
/// - A setting does not accept a value, even if another layer overrides this value.
pub fn load<C: Configuration>(flags: &FlagValues) -> Result<Loaded<C>, ConfigError> {
    let env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let variables = std::env::vars_os().filter(|(_, value)| !value.is_empty());
    let variables = variables.map(|(name, _)| name.to_string_lossy().into_owned()).collect::<Vec<_>>();
    let machine = Machine {
        home: env("HOME").map(PathBuf::from).or_else(|| etcetera::home_dir().ok()),
        env: &env,
        variables: &variables,
        etc_file: format!("/etc/packetparamedic/{}.toml", C::PROGRAM).into(),
        is_root: rustix::process::geteuid().is_root(),
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        exists: &Path::exists,
        // If the folder was removed, relative paths stay relative, and opening them fails.
        current_dir: std::env::current_dir().unwrap_or_default(),
    };
    load_on(flags, &machine)
}

/// Like [`load`], but takes the environment and the places of files from `machine`.
pub fn load_on<C: Configuration>(flags: &FlagValues, machine: &Machine<'_>) -> Result<Loaded<C>, ConfigError> {
    let origins = C::settings().iter().map(|setting| (setting.name, ValueOrigin::Default)).collect();
    let mut layers =
        Layers { config: C::defaults(), origins: Origins(origins), files: Vec::new(), warnings: Vec::new() };
    check_variables::<C>(machine.variables, machine.env)?;
    layers.read_file(&machine.etc_file, FileLayer::Host)?;
    if let Some(folder) = machine.xdg("XDG_CONFIG_HOME", ".config") {
        layers.read_file(&folder.join(format!("packetparamedic/{}.toml", C::PROGRAM)), FileLayer::User)?;
    }
    if let Some(path) = &flags.config {
        layers.read_file(&machine.current_dir.join(path), FileLayer::Named)?;
    }
    for setting in C::settings() {
        if let Some(value) = (machine.env)(setting.env).filter(|value| !value.is_empty()) {
            let origin = ValueOrigin::Environment(setting.env);
            let value = OsString::into_string(value)
                .map_err(|_| bad_value(setting, origin.clone(), "it is not UTF-8".to_owned()))?;
            layers.take(setting, vec![value], &machine.current_dir, origin)?;
        }
    }
    for setting in C::settings() {
        if let Some((values, flag)) = flags.values.get(setting.name) {
            layers.take(setting, values.clone(), &machine.current_dir, ValueOrigin::Flag(flag.clone()))?;
        }
    }
    layers.warnings.extend(layers.config.complete(&mut layers.origins, machine)?);
    layers.config.check(&layers.origins)?;
    layers.files.reverse();
    Ok(Loaded { config: layers.config, origins: layers.origins, files: layers.files, warnings: layers.warnings })
}

fn bad_value<C>(setting: &Setting<C>, origin: ValueOrigin, problem: String) -> ConfigError {
    ConfigError::BadValue { origin, setting: setting.name, problem, valid: setting.valid }
}

/// One of the three configuration files. Each file is a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileLayer {
    /// The file in /etc.
    Host,
    /// The user's file at its default place.
    User,
    /// The file named by `--config`.
    Named,
}

/// What happens if a configuration file cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IfUnreadable {
    /// The layer is left out without a message.
    Skip,
    /// The layer is ignored, with a warning to the user.
    Warn,
    Fail,
}

impl FileLayer {
    /// What happens if opening the file of this layer fails with an error of this `kind`.
    ///
    /// The host's file and the user's file need not exist. If the program may not read the user's file (`sudo -u`, a
    /// service without a home), it ignores the file with a warning. The host's file may hold limits, and the user named
    /// the file of `--config`. So it is an error if one of these two exists and cannot be read, or if the named file is
    /// missing.
    fn if_unreadable(self, kind: io::ErrorKind) -> IfUnreadable {
        use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
        match (self, kind) {
            (Self::Host | Self::User, NotFound | NotADirectory) => IfUnreadable::Skip,
            (Self::User, PermissionDenied) => IfUnreadable::Warn,
            _ => IfUnreadable::Fail,
        }
    }
}

/// The result of the layers that have been read so far. The layers are read in ascending precedence: a later layer
/// overrides the earlier ones.
struct Layers<C> {
    config: C,
    origins: Origins,
    files: Vec<PathBuf>,
    warnings: Vec<String>,
}

impl<C: Configuration> Layers<C> {
    fn take(
        &mut self,
        setting: &'static Setting<C>,
        values: Vec<String>,
        base: &Path,
        origin: ValueOrigin,
    ) -> Result<(), ConfigError> {
        (setting.read)(&mut self.config, &Given { values, base })
            .map_err(|problem| bad_value(setting, origin.clone(), problem))?;
        self.origins.set(setting.name, origin);
        Ok(())
    }

    fn read_file(&mut self, path: &Path, layer: FileLayer) -> Result<(), ConfigError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(source) => {
                let if_unreadable = layer.if_unreadable(source.kind());
                let error = ConfigError::Unreadable { path: path.to_owned(), source };
                match if_unreadable {
                    IfUnreadable::Skip => {}
                    IfUnreadable::Warn => self.warnings.push(format!("{error}; its settings are ignored")),
                    IfUnreadable::Fail => return Err(error),
                }
                return Ok(());
            }
        };
        let line_at = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        let table = DeTable::parse(&text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            line: error.span().map_or(1, |span| line_at(span.start)),
            problem: error.message().to_owned(),
        })?;
        let base = path.parent().unwrap_or(Path::new("/"));
        // In the order of the file, so that the error is the first fault of the file.
        let mut entries = table.get_ref().iter().collect::<Vec<_>>();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let line = line_at(key.span().start);
            let key = key.get_ref();
            let setting = C::settings().iter().find(|setting| setting.name == key.as_ref());
            let setting = setting.ok_or_else(|| ConfigError::UnknownKey {
                path: path.to_owned(),
                line,
                key: key.to_string(),
                nearest: nearest::<C>(key),
            })?;
            let origin = ValueOrigin::File { path: path.to_owned(), line };
            let values = texts(value.get_ref(), setting.is_list)
                .map_err(|problem| bad_value(setting, origin.clone(), problem))?;
            self.take(setting, values, base, origin)?;
        }
        self.files.push(path.to_owned());
        Ok(())
    }
}

/// Converts a TOML value to the texts that settings read. `max_streams = 8` and `max_streams = "8"` give the same text.
/// The value may be an array only if `is_list` is true.
fn texts(value: &DeValue<'_>, is_list: bool) -> Result<Vec<String>, String> {
    match value {
        DeValue::String(text) => Ok(vec![text.to_string()]),
        DeValue::Integer(number) if number.radix() == 10 => Ok(vec![number.as_str().to_owned()]),
        DeValue::Float(number) => Ok(vec![number.as_str().to_owned()]),
        DeValue::Boolean(value) => Ok(vec![value.to_string()]),
        DeValue::Array(values) if is_list => {
            let each = values.iter().map(|value| match value.get_ref() {
                DeValue::Array(_) => Err("it is an array in an array".to_owned()),
                value => texts(value, false),
            });
            each.collect::<Result<Vec<_>, _>>().map(|values| values.concat())
        }
        other => Err(format!("it is of type {}", other.type_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_users_own_file_may_be_unreadable() {
        use io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, NotFound, PermissionDenied};
        let table = [
            (FileLayer::Host, [IfUnreadable::Skip, IfUnreadable::Skip, IfUnreadable::Fail]),
            (FileLayer::User, [IfUnreadable::Skip, IfUnreadable::Skip, IfUnreadable::Warn]),
            (FileLayer::Named, [IfUnreadable::Fail; 3]),
        ];
        for (layer, expected) in table {
            let found = [NotFound, NotADirectory, PermissionDenied].map(|kind| layer.if_unreadable(kind));
            assert_eq!(found, expected, "{layer:?}");
            // A readable file with a fault is an error in each layer.
            for kind in [InvalidData, IsADirectory] {
                assert_eq!(layer.if_unreadable(kind), IfUnreadable::Fail, "{layer:?} {kind}");
            }
        }
    }
}
