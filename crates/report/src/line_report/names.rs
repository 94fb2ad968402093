//! The names in a report on a line: shortened and without control characters, or replaced by numbers if the report is
//! redacted.

use paramedic_link::PeerText;

use super::input::ReportRun;

/// The longest name that a report shows in full, in characters.
const MAX_CHARS: usize = 48;

/// Turns the names of other ends, monitors and interfaces into the names that the report shows.
#[derive(Debug)]
pub(super) struct Names {
    is_redacted: bool,
    other_ends: Vec<String>,
    monitors: Vec<String>,
    interfaces: Vec<String>,
}

impl Names {
    pub(super) fn new(is_redacted: bool) -> Self {
        Self { is_redacted, other_ends: Vec::new(), monitors: Vec::new(), interfaces: Vec::new() }
    }

    /// The name of the other end of `run`. In a redacted report, a numbered name such as `server 1`.
    pub(super) fn other_end(&mut self, run: &ReportRun) -> String {
        let key = run.endpoint_id.as_ref().or(run.address.as_ref()).or(run.other_end.as_ref());
        let Some(key) = key else { return "not reached".to_owned() };
        if self.is_redacted {
            return numbered("server", key, &mut self.other_ends);
        }
        shown(run.other_end.as_deref().unwrap_or(key))
    }

    /// The name of a monitor. In a redacted report, a numbered name such as `monitor 1`.
    pub(super) fn monitor(&mut self, name: &str) -> String {
        if self.is_redacted { numbered("monitor", name, &mut self.monitors) } else { shown(name) }
    }

    /// The name of a network interface. In a redacted report, a numbered name such as `interface 1`, because the real
    /// name may contain a hardware address.
    pub(super) fn interface(&mut self, name: &str) -> String {
        if self.is_redacted { numbered("interface", name, &mut self.interfaces) } else { shown(name) }
    }

    /// An address, an Endpoint ID or a target of a monitor as the report shows it; `None` in a redacted report.
    pub(super) fn detail(&self, text: &str) -> Option<String> {
        (!self.is_redacted).then(|| shown(text))
    }
}

/// `kind` followed by the position of `key` in `known`, counted from 1. Adds `key` to `known` if it is not there yet.
fn numbered(kind: &str, key: &str, known: &mut Vec<String>) -> String {
    let at = known.iter().position(|own| own == key).unwrap_or_else(|| {
        known.push(key.to_owned());
        known.len() - 1
    });
    format!("{kind} {}", at + 1)
}

/// Untrusted text as the report shows it: shortened, without control characters and invisible characters.
pub(super) fn shown(text: &str) -> String {
    let short = PeerText::harmless(text, MAX_CHARS);
    match short.as_str() {
        "" => "(no name)".to_owned(),
        _ if text.chars().nth(MAX_CHARS).is_some() => short + "…",
        _ => short,
    }
}

/// The code of an error, a warning or an engine as the report shows it. A code is a word in lower case; any other text
/// becomes `(unknown)`.
pub(super) fn code(text: &str) -> String {
    let is_code =
        text.len() <= 40 && text.bytes().all(|byte| byte.is_ascii_lowercase() || b"_0123456789".contains(&byte));
    if is_code && !text.is_empty() { text.to_owned() } else { "(unknown)".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::example;

    #[test]
    fn a_redacted_name_is_a_number_that_stays_the_same() {
        let (full, bare) = (ReportRun::of(&example::full()), ReportRun::of(&example::bare()));
        let other = ReportRun { endpoint_id: None, address: Some("203.0.113.9:5201".to_owned()), ..full.clone() };
        let mut names = Names::new(true);
        let all = [&full, &other, &bare].map(|run| names.other_end(run));
        assert_eq!(all, ["server 1", "server 2", "server 1"]);
        assert_eq!((names.monitor("attic"), names.monitor("attic")), ("monitor 1".into(), "monitor 1".into()));
        assert_eq!(names.detail("203.0.113.9"), None);
        assert_eq!(Names::new(false).other_end(&full), "attic");
    }

    #[test]
    fn hostile_names_are_short_and_harmless() {
        let long = "x".repeat(10_000);
        assert_eq!(shown(&long).chars().count(), MAX_CHARS + 1);
        assert_eq!(shown("\u{202e}evil\u{7}"), "evil");
        assert_eq!(shown("\u{200b}"), "(no name)");
        assert_eq!(
            (code("probes_lost"), code("<b>"), code("")),
            ("probes_lost".into(), "(unknown)".into(), "(unknown)".into())
        );
    }
}
