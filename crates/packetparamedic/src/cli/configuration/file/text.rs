//! Finds the line of each key in the text of a configuration file, and reads the values of the keys.

use std::borrow::Cow;

use paramedic_host::config::nearest_name;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::super::options::FileOption;

/// The error about an unknown key lists the valid keys only if there are at most this many.
const LISTED_KEYS: usize = 10;
/// The key that enables or disables an object, such as a schedule or a monitor.
pub(super) const ENABLED: &str = "enabled";

/// A key of a configuration file, with its position in the text.
pub(super) type FileKey<'a> = Spanned<Cow<'a, str>>;

/// A fault in a configuration file.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct FileFault {
    /// The line of the fault; the first line is 1.
    pub(in super::super) line: usize,
    /// What is wrong, and at which key.
    pub(in super::super) problem: String,
}

/// The text of a configuration file. Computes the line of a fault.
pub(super) struct FileText<'a>(pub(super) &'a str);

impl FileText<'_> {
    pub(super) fn fault(&self, at: usize, problem: impl Into<String>) -> FileFault {
        let line = 1 + self.0.bytes().take(at).filter(|byte| *byte == b'\n').count();
        FileFault { line, problem: problem.into() }
    }

    /// Creates a fault in the value of `key`, at the line of `key`. `problem` describes what is wrong with the value.
    pub(super) fn fault_of(&self, key: &FileKey<'_>, problem: &str) -> FileFault {
        self.fault(key.span().start, format!("{}: {problem}", key.get_ref()))
    }

    pub(super) fn unknown(&self, key: &FileKey<'_>, known: &[&str]) -> FileFault {
        let suggestion = match nearest_name(key.get_ref(), known.iter().copied()) {
            Some(nearest) => format!("did you mean {nearest:?}?"),
            None if known.len() > LISTED_KEYS => "valid: the options of the command that adds the object".to_owned(),
            None => format!("valid: {}", known.join(", ")),
        };
        self.fault(key.span().start, format!("unknown key {:?}; {suggestion}", key.get_ref()))
    }
}

/// Returns the entries of a table in the order of the file, so that the first fault of the file is reported.
pub(super) fn in_order<'a, 'b>(table: &'b DeTable<'a>) -> Vec<(&'b FileKey<'a>, &'b Spanned<DeValue<'a>>)> {
    let mut entries = table.iter().collect::<Vec<_>>();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// Returns a value as text. Fails if the value is not a text.
pub(super) fn text_of(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        other => Err(format!("it is of type {}; valid: a text", other.type_str())),
    }
}

/// Returns a value as text. Fails if the value is neither a text nor a decimal whole number.
pub(super) fn value_of(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        other => Err(format!("it is of type {}; valid: a text or a number", other.type_str())),
    }
}

/// Returns the texts of a value that is a list of texts, or a single text. Fails for any other value.
pub(super) fn texts_of(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    match value {
        DeValue::Array(texts) => texts.iter().map(|text| text_of(text.get_ref())).collect(),
        one => Ok(vec![text_of(one)?]),
    }
}

/// Returns a value that is true or false. Fails for any other value.
pub(super) fn switch_of(value: &DeValue<'_>) -> Result<bool, String> {
    match value {
        DeValue::Boolean(value) => Ok(*value),
        other => Err(format!("it is of type {}; valid: true or false", other.type_str())),
    }
}

/// The entry `enabled = false` of a disabled object; `None` if the object is enabled, which is the default.
pub(super) fn disabled(enabled: bool) -> Option<(String, FileOption)> {
    (!enabled).then(|| (ENABLED.to_owned(), FileOption::Flag(false)))
}
