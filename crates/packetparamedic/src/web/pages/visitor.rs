//! The viewer of a page, read from the request: the viewer's scope and choice of colours, and the notice about the last
//! change.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::header::COOKIE;
use axum::http::request::Parts;
use paramedic_appliance::store::AccessScope;

use super::super::extract::decoded;
use super::super::guard::Caller;
use super::layout::{Layout, Section, Theme};
use super::notice::Notice;

/// The name of the cookie that contains the viewer's choice of colours.
pub(super) const THEME_COOKIE: &str = "packetparamedic_theme";

/// The viewer of a page.
#[derive(Clone, Debug, Default)]
pub(super) struct Visitor {
    /// What the viewer may do; `None` if the viewer needs a login and has none.
    pub(super) scope: Option<AccessScope>,
    is_logged_in: bool,
    notice: Option<Notice>,
    theme: Theme,
    path: String,
    /// The query parameters in the address of the page.
    query: Vec<(String, String)>,
}

impl Visitor {
    /// Reads the viewer from the head of a request.
    pub(super) fn of(parts: &Parts) -> Self {
        let caller = parts.extensions.get::<Caller>();
        let query = query(parts.uri.query().unwrap_or_default());
        let parameter = |wanted| query.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        Self {
            scope: caller.and_then(|caller| caller.scope),
            is_logged_in: caller.is_some_and(|caller| caller.login.is_some()),
            notice: parameter(Notice::PARAMETER).and_then(Notice::of_word),
            theme: theme(&parts.headers),
            path: path_without_notice(parts),
            query,
        }
    }

    /// The value of the query parameter `wanted` in the address of the page; `None` without this parameter.
    pub(super) fn parameter(&self, wanted: &str) -> Option<&str> {
        self.query.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
    }

    /// Whether the viewer may change settings.
    pub(super) fn is_admin(&self) -> bool {
        self.scope == Some(AccessScope::Admin)
    }

    /// Whether the viewer may start and cancel tests.
    pub(super) fn may_run(&self) -> bool {
        self.scope >= Some(AccessScope::Run)
    }

    /// Creates the layout of a page for this viewer.
    pub(super) fn layout(&self, title: &str, section: Section) -> Layout {
        Layout {
            is_logged_in: self.is_logged_in,
            is_admin: self.is_admin(),
            notice: self.notice,
            theme: self.theme,
            path: self.path.clone(),
            ..Layout::new(title, section)
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Visitor {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(parts))
    }
}

/// Parses the query parameters of an address. Leaves out a parameter that is not valid percent-encoded UTF-8.
fn query(text: &str) -> Vec<(String, String)> {
    let parameter = |part: &str| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        Some((decoded(name)?, decoded(&value.replace('+', " "))?))
    };
    text.split('&').filter(|part| !part.is_empty()).filter_map(parameter).collect()
}

fn path_without_notice(parts: &Parts) -> String {
    let path = parts.uri.path();
    let is_kept = |part: &&str| !part.is_empty() && part.split('=').next() != Some(Notice::PARAMETER);
    let query = parts.uri.query().unwrap_or_default().split('&').filter(is_kept).collect::<Vec<_>>().join("&");
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

fn theme(headers: &HeaderMap) -> Theme {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == THEME_COOKIE).and_then(|(_, word)| Theme::of_word(word)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    #[test]
    fn a_request_says_the_theme_the_notice_and_the_way_back() {
        let request = Request::get("/history?target=caf%C3%A9+1&done=paired&bad=%zz")
            .header(COOKIE, "a=b; packetparamedic_theme=dark");
        let visitor = Visitor::of(&request.body(()).unwrap().into_parts().0);
        assert_eq!((visitor.theme, visitor.notice), (Theme::Dark, Some(Notice::Paired)));
        assert_eq!(visitor.parameter("target"), Some("café 1"));
        assert_eq!(visitor.parameter("bad"), None);
        assert_eq!(visitor.path, "/history?target=caf%C3%A9+1&bad=%zz");
        assert!(!visitor.may_run() && !visitor.is_admin());
    }

    #[test]
    fn a_notice_that_is_not_of_the_list_is_none() {
        let request = Request::get("/?done=%3Cscript%3E").body(()).unwrap();
        assert_eq!(Visitor::of(&request.into_parts().0).notice, None);
    }
}
