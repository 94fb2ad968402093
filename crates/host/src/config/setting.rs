//! One setting of a configuration, and its value as text before it is checked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use paramedic_link::PeerText;
use paramedic_report::quantity;
use toml::Value;

use crate::log;

/// One setting of the configuration `C`: its names, and how its value is read and shown.
pub struct Setting<C> {
    /// The setting's key in TOML.
    pub name: &'static str,
    /// The environment variable that sets the value.
    pub env: &'static str,
    /// The long flag without its dashes, if the setting has one.
    pub flag: Option<&'static str>,
    /// The placeholder of the value in `--help`.
    pub placeholder: &'static str,
    /// What the setting does, in one or two sentences.
    pub help: &'static str,
    /// A text that says which values the setting accepts, such as `1 to 64`.
    pub valid: &'static str,
    /// Whether the setting takes several values: a TOML array, a repeated flag, or text with commas.
    pub is_list: bool,
    /// Checks a value and puts it into the configuration. The error says what is wrong with the value.
    pub read: fn(&mut C, &Given<'_>) -> Result<(), String>,
    /// Returns the value as TOML; `None` if the setting is not set and has no default.
    pub show: fn(&C) -> Option<Value>,
}

impl<C> Setting<C> {
    /// The value in `config` as text without TOML's quotes; empty if the setting is not set.
    pub fn plain(&self, config: &C) -> String {
        match (self.show)(config) {
            None => String::new(),
            Some(Value::String(text)) => text,
            Some(Value::Array(values)) => values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
            Some(other) => other.to_string(),
        }
    }
}

/// Makes a TOML array of texts.
pub fn list<T: ToString>(values: &[T]) -> Value {
    Value::Array(values.iter().map(|value| Value::String(value.to_string())).collect())
}

/// The value of a setting as a layer (a file, a variable or a flag) gives it: text that is not checked yet.
pub struct Given<'a> {
    pub(super) values: Vec<String>,
    /// The folder against which a relative path is resolved.
    pub(super) base: &'a Path,
}

impl Given<'_> {
    /// The value of a setting that is not a list, without surrounding white space.
    pub fn one(&self) -> &str {
        self.values.first().map_or("", |value| value.trim())
    }

    /// Every value of a list. Commas and white space separate values.
    pub fn each(&self) -> impl Iterator<Item = &str> {
        self.values.iter().flat_map(|value| value.split([',', ' ', '\n', '\t'])).filter(|part| !part.is_empty())
    }

    /// The value as text, which must not be empty.
    pub fn text(&self) -> Result<&str, String> {
        match self.one() {
            "" => Err("it is empty".to_owned()),
            text => Ok(text),
        }
    }

    /// The value as a path. A relative path is resolved against the folder of its file, or, if a flag or variable gives
    /// it, against the current folder.
    pub fn path(&self) -> Result<PathBuf, String> {
        self.text().map(|path| self.base.join(path))
    }

    /// The value as a name that can be sent to a peer unchanged.
    pub fn name(&self) -> Result<PeerText, String> {
        let name = PeerText::new(self.text()?);
        if name.as_str() == self.one() { Ok(name) } else { Err("it is too long or has control characters".to_owned()) }
    }

    /// The value as a whole number from `min` to `max`. `_` may separate its digits.
    pub fn number<T: TryFrom<u64>>(&self, min: u64, max: u64) -> Result<T, String> {
        let digits = self.one().replace('_', "");
        let number = digits.parse::<u64>().map_err(|_| format!("{:?} is not a whole number", self.one()))?;
        within(number, min, max, ToString::to_string)?;
        T::try_from(number).map_err(|_| format!("{number} is too large"))
    }

    /// The value as a boolean: `true` or `false`; also yes and no, on and off, 1 and 0.
    pub fn yes_or_no(&self) -> Result<bool, String> {
        match self.one() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            other => Err(format!("unknown value {other:?}")),
        }
    }

    /// The choice whose name is the given value. `choices` contains each choice with its name.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, String> {
        let found = choices.iter().find(|(name, _)| *name == self.one());
        found.map(|(_, value)| *value).ok_or_else(|| format!("unknown value {:?}", self.one()))
    }

    /// The value as a size in bytes from `min` to `max`.
    pub fn bytes(&self, min: u64, max: u64) -> Result<u64, String> {
        let bytes = quantity::parse_bytes(self.one()).map_err(|error| error.to_string())?;
        within(bytes, min, max, |bytes| quantity::exact_bytes(*bytes)).map(|()| bytes)
    }

    /// The value as a duration from `min` to `max`. The value must have a unit, as in `60s`.
    pub fn duration(&self, min: Duration, max: Duration) -> Result<Duration, String> {
        within_duration(quantity::parse_duration(self.one()), min, max)
    }

    /// The value as a duration from `min` to `max`. A value without a unit is in seconds.
    pub fn seconds(&self, min: Duration, max: Duration) -> Result<Duration, String> {
        within_duration(quantity::parse_seconds(self.one()), min, max)
    }

    /// The value as a filter of log events. Fails if [`log::is_filter`] does not accept the filter.
    pub fn log_filter(&self) -> Result<String, String> {
        let filter = self.one();
        if log::is_filter(filter) { Ok(filter.to_owned()) } else { Err(format!("{filter:?} is not a log filter")) }
    }

    /// The value as a log format.
    pub fn log_format(&self) -> Result<log::LogFormat, String> {
        log::LogFormat::from_name(self.one()).ok_or_else(|| format!("unknown value {:?}", self.one()))
    }
}

fn within_duration(
    parsed: Result<Duration, quantity::QuantityError>,
    min: Duration,
    max: Duration,
) -> Result<Duration, String> {
    let duration = parsed.map_err(|error| error.to_string())?;
    within(duration, min, max, |duration| quantity::exact_duration(*duration)).map(|()| duration)
}

fn within<T: PartialOrd>(value: T, min: T, max: T, print: impl Fn(&T) -> String) -> Result<(), String> {
    if value < min {
        return Err(format!("{} is below {}", print(&value), print(&min)));
    }
    if value > max {
        return Err(format!("{} is above {}", print(&value), print(&max)));
    }
    Ok(())
}
