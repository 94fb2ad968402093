//! The settings: reflectors, schedules, monitors, plan, tokens, and what the service is.

pub(super) mod about;
pub(super) mod monitors;
pub(super) mod plan;
pub(super) mod reflectors;
pub(super) mod schedules;
pub(super) mod tokens;

use super::layout::{Layout, Section};
use super::visitor::Visitor;

/// The pages of the settings, in their order, with their paths.
const TABS: [(&str, &str); 6] = [
    ("Reflectors", reflectors::PATH),
    ("Schedules", schedules::PATH),
    ("Monitors", monitors::PATH),
    ("Plan", plan::PATH),
    ("Tokens", tokens::PATH),
    ("About", about::PATH),
];

/// What every page of the settings has.
pub(super) struct SettingsFrame {
    /// The name of the page.
    pub(super) tab: &'static str,
}

impl SettingsFrame {
    fn of(path: &str, visitor: &Visitor) -> (Self, Layout) {
        let tab = TABS.iter().find(|(_, own)| *own == path).map_or("", |(name, _)| name);
        (Self { tab }, visitor.layout(&format!("{tab} · Settings"), Section::Settings).at(path))
    }

    /// The names of the pages with their paths.
    pub(super) fn tabs(&self) -> [(&'static str, &'static str); 6] {
        TABS
    }
}
