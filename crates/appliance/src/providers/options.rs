//! The options that a provider declares, and the values that a user gives them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// An option of one provider. No other provider has an option with this name.
#[derive(Debug)]
pub struct ProviderOption {
    /// The name of the option. The command line puts `--` before it.
    pub name: &'static str,
    /// The placeholder for the value in `--help`.
    pub value_name: &'static str,
    /// The line about the option in `--help`.
    pub help: &'static str,
    /// Where the value of the option comes from.
    pub source: OptionSource,
    /// The name of the option that this one needs; `None` if it needs none.
    pub requires: Option<&'static str>,
}

/// Where the value of an option comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionSource {
    /// The value is the text that follows the flag.
    Text,
    /// The value is the content of the file that the flag names.
    File {
        /// The maximum number of bytes of the file.
        max_bytes: u64,
    },
    /// The value is the first line of the file that the flag names (`-` is standard input). Without the flag, the value
    /// is that of an environment variable.
    Secret {
        /// The name of the environment variable.
        variable: &'static str,
        /// The maximum number of bytes of the line.
        max_bytes: u64,
    },
}

/// The values of a provider's options. Because they may be secret, they are passed separately from the request, are
/// never stored or printed, and are overwritten in memory when dropped.
#[derive(Clone, Default)]
pub struct OptionValues {
    values: BTreeMap<&'static str, OptionValue>,
}

/// The value of one option.
#[derive(Clone)]
pub struct OptionValue {
    /// The text of the value.
    pub text: Zeroizing<String>,
    /// The file from which the value was read; `None` if it was not read from a file.
    pub file: Option<PathBuf>,
}

impl OptionValues {
    /// Sets the value of an option.
    pub fn set(&mut self, option: &ProviderOption, value: OptionValue) {
        self.values.insert(option.name, value);
    }

    /// The value of the option `name` as text; `None` if the option has no value.
    pub fn text(&self, name: &str) -> Option<&Zeroizing<String>> {
        self.values.get(name).map(|value| &value.text)
    }

    /// The file from which the value of the option `name` was read; `None` if the value was not read from a file.
    pub fn file(&self, name: &str) -> Option<&Path> {
        self.values.get(name)?.file.as_deref()
    }

    /// The name of the first option that has a value here and is not in `options`.
    pub(crate) fn first_outside(&self, options: &[ProviderOption]) -> Option<&'static str> {
        self.values.keys().copied().find(|name| options.iter().all(|option| option.name != *name))
    }
}

/// Prints only the names of the options, because their values can be secret.
impl fmt::Debug for OptionValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: ProviderOption = ProviderOption {
        name: "token",
        value_name: "FILE",
        help: "",
        source: OptionSource::Secret { variable: "TOKEN", max_bytes: 8 },
        requires: None,
    };

    #[test]
    fn debug_output_has_names_without_values() {
        let mut values = OptionValues::default();
        let value = OptionValue { text: Zeroizing::new("s3cret".to_owned()), file: Some("/somewhere".into()) };
        values.set(&TOKEN, value);
        assert_eq!(format!("{values:?}"), r#"{"token"}"#);
        assert_eq!(values.text("token").unwrap().as_str(), "s3cret");
        assert_eq!(values.file("token"), Some(Path::new("/somewhere")));
        assert!(values.text("other").is_none());
    }

    #[test]
    fn a_value_of_another_provider_is_found() {
        let mut values = OptionValues::default();
        assert_eq!(values.first_outside(&[]), None);
        values.set(&TOKEN, OptionValue { text: Zeroizing::default(), file: None });
        assert_eq!(values.first_outside(&[TOKEN]), None);
        assert_eq!(values.first_outside(&[]), Some("token"));
    }
}
