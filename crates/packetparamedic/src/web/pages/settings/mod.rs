//! The settings: reflectors, schedules, monitors, plan, channels, tokens, and the page about the service.

pub(super) mod about;
pub(super) mod channels;
pub(super) mod monitors;
pub(super) mod plan;
pub(super) mod reflectors;
pub(super) mod schedules;
pub(super) mod tokens;

use super::layout::{Layout, NavigationLink, Section};
use super::visitor::Visitor;

/// The pages of the settings, in their order, with their paths.
const TABS: [(&str, &str); 7] = [
    ("Reflectors", reflectors::PATH),
    ("Schedules", schedules::PATH),
    ("Monitors", monitors::PATH),
    ("Plan", plan::PATH),
    ("Channels", channels::PATH),
    ("Tokens", tokens::PATH),
    ("About", about::PATH),
];

/// The parts that every page of the settings has.
pub(super) struct SettingsFrame {
    /// The links to the pages of the settings.
    pub(super) tabs: Vec<NavigationLink>,
}

impl SettingsFrame {
    fn of(path: &str, visitor: &Visitor) -> (Self, Layout) {
        let tabs = TABS.map(|(name, own)| NavigationLink { name, path: own, is_current: own == path }).to_vec();
        let name = tabs.iter().find(|tab| tab.is_current).map_or("", |tab| tab.name);
        (Self { tabs }, visitor.layout(&format!("{name} · Settings"), Section::Settings).at(path))
    }
}
