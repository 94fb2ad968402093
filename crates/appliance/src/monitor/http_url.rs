//! The URL that a monitor or a channel requests. Resolves no name, and makes no connection.

use std::fmt;

use hyper::Uri;
use hyper::http::uri::Scheme;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::targets::{Host, HostPort};

/// The longest URL, in bytes.
const MAX_URL: usize = 2_000;
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// An `http` or `https` URL without user, password and fragment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
pub struct HttpUrl {
    is_https: bool,
    server: HostPort,
    /// The path and the query of the URL.
    path: String,
}

impl HttpUrl {
    /// Parses an `http` or `https` URL. Returns `None` if the text is no such URL, or if it has a user, a password or a
    /// fragment.
    pub fn parse(text: &str) -> Option<Self> {
        // A fragment is for browsers only. Characters outside ASCII need percent-encoding (RFC 3986, section 2).
        if text.len() > MAX_URL || !text.is_ascii() || text.contains('#') {
            return None;
        }
        let uri = text.parse::<Uri>().ok()?;
        let is_https = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return None,
        };
        // A user or a password in the URL would be a secret that lists and logs show. `HostPort` rejects the `@` that
        // would follow it.
        let server = HostPort::parse(uri.authority()?.as_str(), default_port(is_https)).ok()?;
        if server.host.lacks_zone() {
            return None;
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Some(Self { is_https, server, path: path.to_owned() })
    }

    /// Whether TLS protects the request.
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// The host and the port of the server.
    pub fn server(&self) -> &HostPort {
        &self.server
    }

    /// The path and the query, in the form of an HTTP request line (RFC 9112, section 3.2.1).
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The scheme, the host and the port, as in `https://example.org:8443`. The default port of the scheme is left out.
    pub fn origin(&self) -> String {
        let scheme = if self.is_https { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }

    /// The server as the `Host` header names it: without the default port (RFC 9110, section 7.2).
    pub fn authority(&self) -> String {
        let host = match &self.server.host {
            // The zone is meaningful only on this host (RFC 6874, section 1).
            Host::V6 { address, .. } => format!("[{address}]"),
            host => host.to_string(),
        };
        if self.server.port == default_port(self.is_https) { host } else { format!("{host}:{}", self.server.port) }
    }
}

fn default_port(is_https: bool) -> u16 {
    if is_https { HTTPS_PORT } else { HTTP_PORT }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.path)
    }
}

impl From<HttpUrl> for String {
    fn from(url: HttpUrl) -> Self {
        url.to_string()
    }
}

impl TryFrom<String> for HttpUrl {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("the text is not an http or https URL, or it has a user, a password or a fragment")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_printed_without_what_is_usual() {
        for (text, printed) in [
            ("http://example.org", "http://example.org/"),
            ("http://example.org:80/", "http://example.org/"),
            ("https://Example.org:443/a/b?c=d", "https://example.org/a/b?c=d"),
            ("https://example.org:80/", "https://example.org:80/"),
            ("http://192.0.2.1:8080/health", "http://192.0.2.1:8080/health"),
            ("https://[2001:db8::1]/", "https://[2001:db8::1]/"),
            ("HTTP://example.org/?a", "http://example.org/?a"),
        ] {
            let url = HttpUrl::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(url.to_string(), printed);
            assert_eq!(HttpUrl::parse(printed), Some(url));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for wrong in [
            "",
            "http:",
            "http://",
            "http:///path",
            "example.org",
            "/path",
            "ftp://example.org/",
            "http://user:secret@example.org/",
            "http://example.org/#part",
            "http://example.org:0/",
            "http://example.org:65536/",
            "http://example.org/a b",
            "http://example.org/a\r\nX: y",
            "http://example.org/ä",
            "http://[fe80::1]/",
            "http://a..b/",
            &format!("http://example.org/{}", "a".repeat(MAX_URL)),
        ] {
            assert_eq!(HttpUrl::parse(wrong), None, "{wrong:?}");
        }
    }
}
