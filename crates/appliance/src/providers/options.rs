//! The options that a provider declares, and their values from a client of the library.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// An option of one provider. Its name is unique among all providers.
#[derive(Debug)]
pub struct ProviderOption {
    /// The name; the command line puts `--` before it.
    pub name: &'static str,
    /// The placeholder of the value in `--help`.
    pub value_name: &'static str,
    /// The line for `--help`.
    pub help: &'static str,
    /// Where the value comes from.
    pub source: OptionSource,
    /// The option that this one requires.
    pub requires: Option<&'static str>,
}

/// Where the value of an option comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionSource {
    /// The text after the flag.
    Text,
    /// The content of the file after the flag.
    File {
        /// The most bytes that are read.
        max_bytes: u64,
    },
    /// The first line of the file after the flag, or of standard input (`-`). Without the flag: the environment
    /// variable.
    Secret {
        /// The environment variable.
        variable: &'static str,
        /// The most bytes that are read.
        max_bytes: u64,
    },
}

/// The values of a provider's options. They are passed separately from the request. They are never stored or printed,
/// and are overwritten when dropped.
#[derive(Clone, Default)]
pub struct OptionValues {
    values: BTreeMap<&'static str, OptionValue>,
}

/// The value of one option.
#[derive(Clone)]
pub struct OptionValue {
    /// The value.
    pub text: Zeroizing<String>,
    /// The file that it was read from.
    pub file: Option<PathBuf>,
}

impl OptionValues {
    /// Sets the value of an option.
    pub fn set(&mut self, option: &ProviderOption, value: OptionValue) {
        self.values.insert(option.name, value);
    }

    /// The text of an option, if it has a value.
    pub fn text(&self, name: &str) -> Option<&Zeroizing<String>> {
        self.values.get(name).map(|value| &value.text)
    }

    /// The file that the value of an option was read from.
    pub fn file(&self, name: &str) -> Option<&Path> {
        self.values.get(name)?.file.as_deref()
    }

    /// The first value that belongs to none of `options`.
    pub(crate) fn first_outside(&self, options: &[ProviderOption]) -> Option<&'static str> {
        self.values.keys().copied().find(|name| options.iter().all(|option| option.name != *name))
    }
}

/// Only the names: values are secret.
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
