//! What every page has: its head, the navigation, the notice of a change, the theme; and functions that answer with a
//! page.

use askama::Template;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use paramedic_host::version;

use super::super::extract::encoded;
use super::assets::AssetPaths;
use super::notice::Notice;

/// The sections of the navigation, in their order, with their paths.
pub(super) const SECTIONS: &[(Section, &str, &str)] = &[
    (Section::Now, "Now", "/"),
    (Section::History, "History", "/history"),
    (Section::Monitors, "Monitors", "/monitors"),
    (Section::Alerts, "Alerts", "/alerts"),
    (Section::Report, "Report", "/report"),
    (Section::Settings, "Settings", "/settings"),
];

/// A section of the navigation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    /// The section with the present state of the line.
    Now,
    /// The section with the results of past tests.
    History,
    /// The section with the monitors, which probe their targets continuously.
    Monitors,
    /// The section with the alerts and their rules.
    Alerts,
    /// The section with the report on the line.
    Report,
    /// The section with the settings.
    Settings,
    /// No section: the page is outside of the navigation, such as an error or the login.
    Elsewhere,
}

/// A link in a navigation of a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct NavigationLink {
    /// The text of the link.
    pub(super) name: &'static str,
    /// The path to which the link leads.
    pub(super) path: &'static str,
    /// Whether the link leads to this page, or to the section of this page.
    pub(super) is_current: bool,
}

/// The colours of the pages, as the viewer chose them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Theme {
    /// The colours that the viewer's system prefers.
    #[default]
    System,
    /// Light colours.
    Light,
    /// Dark colours.
    Dark,
}

impl Theme {
    /// All themes, in the order in which the pages offer them.
    pub(super) const ALL: [Self; 3] = [Self::System, Self::Light, Self::Dark];

    /// The word for this theme, in the cookie and in the page.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }

    /// Returns the theme whose word is `word`; `None` if no theme has this word.
    pub(super) fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|theme| theme.word() == word)
    }
}

/// The parts of a page that every page has. `templates/base.html` shows them.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// The title of the page, also its first heading.
    pub(super) title: String,
    /// The section to which the page belongs.
    pub(super) section: Section,
    /// Whether the viewer is logged in, and so can log out.
    pub(super) is_logged_in: bool,
    /// Whether the viewer may change settings.
    pub(super) is_admin: bool,
    /// The notice that confirms the viewer's last change; `None` if the page follows no change.
    pub(super) notice: Option<Notice>,
    /// The colours of the page.
    pub(super) theme: Theme,
    /// The path of this page. After a login or a change of the theme, the browser returns to this path.
    pub(super) path: String,
    /// After how many seconds a browser without JavaScript loads the page again; `None` for never.
    pub(super) refresh_s: Option<u32>,
    /// The paths of the files that the page loads.
    pub(super) assets: AssetPaths,
}

impl Layout {
    /// Creates the layout of a page for a viewer without a login.
    pub(super) fn new(title: &str, section: Section) -> Self {
        Self {
            title: title.to_owned(),
            section,
            is_logged_in: false,
            is_admin: false,
            notice: None,
            theme: Theme::default(),
            path: "/".to_owned(),
            refresh_s: None,
            assets: AssetPaths::current(),
        }
    }

    /// Sets the path of the page. The answer to a form needs the path of the page that contains the form.
    pub(super) fn at(self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    /// The links of the navigation, one for each section.
    pub(super) fn sections(&self) -> Vec<NavigationLink> {
        let link = |(section, name, path): &(Section, &'static str, &'static str)| NavigationLink {
            name,
            path,
            is_current: *section == self.section,
        };
        SECTIONS.iter().map(link).collect()
    }

    /// The words of all themes, each with whether it is the current theme.
    pub(super) fn themes(&self) -> Vec<(&'static str, bool)> {
        Theme::ALL.into_iter().map(|theme| (theme.word(), theme == self.theme)).collect()
    }

    /// The version of the program.
    pub(super) fn version(&self) -> &'static str {
        version::VERSION
    }

    /// The path of the login page, with a parameter that leads back to this page after the login.
    pub(super) fn login_path(&self) -> String {
        login_path(&self.path)
    }
}

/// The path of the login page, with a parameter that leads to `next` after the login.
pub(super) fn login_path(next: &str) -> String {
    format!("/login?next={}", encoded(next))
}

/// Returns `text` if it is a path of this service; otherwise `None`, so that a redirection never leads to another host.
pub(super) fn own_path(text: &str) -> Option<&str> {
    let is_path = text.starts_with('/') && !text.starts_with("//") && text.len() <= 2000;
    // Browsers take a backslash for a slash, and drop control characters.
    (is_path && text.chars().all(|c| c.is_ascii_graphic() && c != '\\')).then_some(text)
}

/// Answers with the page that `template` renders.
pub(super) fn page(template: &impl Template) -> Response {
    page_with(StatusCode::OK, template)
}

/// Answers with the page that `template` renders, with the status `status`.
pub(super) fn page_with(status: StatusCode, template: &impl Template) -> Response {
    match template.render() {
        Ok(html) => (status, Html(html)).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page cannot be made");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Redirects to another page of this service after a change. The address of that page names the notice that the page
/// shows.
pub(super) fn done(path: &str, notice: Notice) -> Response {
    let (path, fragment) =
        path.split_once('#').map_or((path, String::new()), |(path, part)| (path, format!("#{part}")));
    let separator = if path.contains('?') { '&' } else { '?' };
    see_other(&format!("{path}{separator}{}={}{fragment}", Notice::PARAMETER, notice.word()))
}

/// Redirects to another page of this service.
pub(super) fn see_other(path: &str) -> Response {
    let location = HeaderValue::from_str(path).unwrap_or_else(|_| HeaderValue::from_static("/"));
    (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_another_host_is_none_of_this_service() {
        for path in ["/", "/settings", "/runs/1?points=3", "/a/b%20c"] {
            assert_eq!(own_path(path), Some(path));
        }
        for wrong in
            ["", "settings", "//evil.example", "/\\evil.example", "https://evil.example/", "/a\nb", "/a b", "/é"]
        {
            assert_eq!(own_path(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_change_leads_to_a_page_with_its_notice() {
        let location = |path| done(path, Notice::Paired).headers()[header::LOCATION].to_str().unwrap().to_owned();
        assert_eq!(location("/settings"), "/settings?done=paired");
        assert_eq!(location("/settings?tab=2#plan"), "/settings?tab=2&done=paired#plan");
    }
}
