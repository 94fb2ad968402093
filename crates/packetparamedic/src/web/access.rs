//! Decides which requests through the TCP listener are answered. Pure: `guard` passes in the facts of a request.

use std::net::{IpAddr, SocketAddr};

use axum::http::Method;
use paramedic_appliance::store::AccessScope;

use crate::network::IpNetwork;

/// The prefix of the API's routes.
pub(super) const API: &str = "/api/v1";

/// The routes whose changes need only the scope `run`, not `admin`. They start or end a test, or check a proposed
/// schedule without saving it.
const RUNS: [&str; 5] =
    ["/tests", "/tests/{id}/cancel", "/schedules/proposals", "/schedules/{name}/run", "/schedule-runs/cancel"];

/// The routes that need the scope `admin` even for a read.
const SETTINGS: [&str; 8] = [
    "/tokens",
    "/setup-links",
    "/store",
    "/configuration",
    "/channels",
    "/messages",
    "/settings/tokens",
    "/settings/channels",
];

/// The routes of the login, which need no scope.
const LOGIN: [&str; 2] = ["/login", "/logout"];
/// The path of the page to which a setup link leads.
pub(super) const SETUP_PAGE: &str = "/setup/{secret}";
/// The routes of the pages' files and of the choice of colours. They need no scope, because the login page uses them
/// too.
const OPEN_PAGES: [&str; 2] = ["/assets/{name}", "/theme"];

/// The facts about a request from which the access rules decide.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestFacts<'a> {
    /// The address at the other end of the connection.
    pub(super) peer: IpAddr,
    /// The address of this end of the connection.
    pub(super) local: SocketAddr,
    /// The value of the header `Host`; `None` if the request does not have exactly one.
    pub(super) host: Option<&'a str>,
    /// The host and port in the request target; `None` if the target is not in absolute form.
    pub(super) target: Option<&'a str>,
    /// The name of the first header that shows that a proxy forwarded the request, such as `via`; `None` without one.
    pub(super) proxy_header: Option<&'a str>,
    /// The values of all headers `X-Forwarded-For`, joined with commas; `None` if there are none.
    pub(super) forwarded_for: Option<&'a str>,
    /// The value of the header `Origin`, or `null` if the request has more than one; `None` without this header.
    pub(super) origin: Option<&'a str>,
    /// The value of the header `Sec-Fetch-Site`; `None` if the request does not have exactly one.
    pub(super) fetch_site: Option<&'a str>,
    /// Whether the method of the request may change something.
    pub(super) is_change: bool,
    /// Whether a browser shows the answer as a page of its own, such as after a click on a link.
    pub(super) is_visit: bool,
}

/// A request that passed the checks of its sender and its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Admitted {
    /// The client's address. For a request through a trusted proxy, this is the address that the proxy forwarded.
    pub(super) client: IpAddr,
    /// What the request may do without a login, or why it may do nothing.
    pub(super) without_login: Result<AccessScope, AccessRefusal>,
}

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AccessRefusal {
    /// The request names another host. A hostile web page can cause this: it makes its own DNS name point to this host
    /// (DNS rebinding).
    WrongHost { port: u16 },
    /// A proxy that is not trusted forwarded the request.
    UntrustedProxy { header: String, peer: IpAddr },
    /// A page of another site sent the request.
    CrossOrigin { origin: String },
    /// The request needs a login or a token, and has neither.
    LoginRequired,
    /// The token of the request is not valid, or is no longer valid.
    UnknownToken,
    /// The request needs a larger scope than its token or its login has, or than a client without a login has.
    ScopeTooSmall { needs: AccessScope, has: AccessScope },
}

/// The rules that decide which requests through the TCP listener are answered.
#[derive(Clone, Debug, Default)]
pub(super) struct AccessRules {
    pub(super) trusted_proxies: Vec<IpNetwork>,
}

impl AccessRules {
    /// Checks the sender and the origin of a request. Returns the client of the request, and what it may do without a
    /// login.
    pub(super) fn admit(&self, facts: &RequestFacts<'_>) -> Result<Admitted, AccessRefusal> {
        let peer = facts.peer.to_canonical();
        let is_trusted = |address: IpAddr| self.trusted_proxies.iter().any(|network| network.contains(address));
        if let Some(header) = facts.proxy_header
            && !is_trusted(peer)
        {
            return Err(AccessRefusal::UntrustedProxy { header: header.to_owned(), peer });
        }
        if facts.is_change {
            check_origin(facts)?;
        } else if !facts.is_visit {
            check_site(facts)?;
        }
        // The last address that is not a trusted proxy's: a client can forge all addresses before it.
        let forwarded = facts.forwarded_for.unwrap_or_default().rsplit(',').map_while(|part| part.trim().parse().ok());
        let client = forwarded.map(|address: IpAddr| address.to_canonical()).find(|address| !is_trusted(*address));
        let without_login = if !self.trusted_proxies.is_empty() || !is_loopback(facts) {
            Err(AccessRefusal::LoginRequired)
        } else if !is_own_host(facts) {
            Err(AccessRefusal::WrongHost { port: facts.local.port() })
        } else {
            Ok(AccessScope::Run)
        };
        Ok(Admitted { client: client.unwrap_or(peer), without_login })
    }
}

impl Admitted {
    /// Whether a request is answered. `needs` is the scope that the route needs; `None` if the route needs none.
    /// `login` is the scope of the request's login or token.
    pub(super) fn authorise(
        &self,
        login: Option<AccessScope>,
        needs: Option<AccessScope>,
    ) -> Result<(), AccessRefusal> {
        let Some(needs) = needs else {
            return match &self.without_login {
                Err(AccessRefusal::WrongHost { port }) => Err(AccessRefusal::WrongHost { port: *port }),
                _ => Ok(()),
            };
        };
        let has = match (login, &self.without_login) {
            (Some(scope), _) => scope,
            (None, Ok(scope)) => *scope,
            (None, Err(refusal)) => return Err(refusal.clone()),
        };
        if has >= needs { Ok(()) } else { Err(AccessRefusal::ScopeTooSmall { needs, has }) }
    }
}

/// Whether `name`, in lower case, is a header that proxies add to a forwarded request.
pub(super) fn is_proxy_header(name: &str) -> bool {
    ["forwarded", "via", "x-real-ip"].contains(&name) || name.starts_with("x-forwarded-")
}

/// Returns the scope that a request needs, by its method and by the pattern `path` of its route; `None` if it needs
/// none. A route that no constant of this module lists needs `read` for a read, and `admin` for a change.
pub(super) fn needed_scope(method: &Method, path: &str) -> Option<AccessScope> {
    let route = path.strip_prefix(API).unwrap_or(path);
    let is_below = |part: &&str| route.strip_prefix(*part).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if LOGIN.contains(&route) || path == SETUP_PAGE || OPEN_PAGES.contains(&path) {
        None
    } else if SETTINGS.iter().any(is_below) {
        Some(AccessScope::Admin)
    } else if method.is_safe() {
        Some(AccessScope::Read)
    } else if RUNS.contains(&route) {
        Some(AccessScope::Run)
    } else {
        Some(AccessScope::Admin)
    }
}

fn is_loopback(facts: &RequestFacts<'_>) -> bool {
    [facts.peer, facts.local.ip()].iter().all(|address| address.to_canonical().is_loopback())
}

/// Whether the host of the request is a loopback name or address of this host, with the port of the listener.
fn is_own_host(facts: &RequestFacts<'_>) -> bool {
    let port = facts.local.port();
    let is_own = |host: &str| {
        let name = match host.strip_suffix(&format!(":{port}")) {
            Some(name) => name,
            // A client leaves out the default ports of http and https.
            None if [80, 443].contains(&port) => host,
            None => return false,
        };
        ["127.0.0.1", "[::1]"].contains(&name) || name.eq_ignore_ascii_case("localhost")
    };
    facts.host.is_some_and(is_own) && facts.target.is_none_or(is_own)
}

/// Refuses a read by a page of another site. The page cannot see the answer, but its requests could keep this host
/// busy.
fn check_site(facts: &RequestFacts<'_>) -> Result<(), AccessRefusal> {
    match facts.fetch_site {
        Some(site @ ("cross-site" | "same-site")) => {
            Err(AccessRefusal::CrossOrigin { origin: facts.origin.unwrap_or(site).to_owned() })
        }
        _ => Ok(()),
    }
}

/// Refuses a change by a page of another origin. A browser sends the origin of the page with every change. Other
/// programs send no origin.
fn check_origin(facts: &RequestFacts<'_>) -> Result<(), AccessRefusal> {
    let refused = |origin: &str| Err(AccessRefusal::CrossOrigin { origin: origin.to_owned() });
    if let Some(site) = facts.fetch_site.filter(|site| !["same-origin", "none"].contains(site)) {
        return refused(facts.origin.unwrap_or(site));
    }
    let Some(origin) = facts.origin else { return Ok(()) };
    // Behind a proxy with TLS, the page has https although this listener has http.
    let of_origin = ["http://", "https://"].iter().find_map(|scheme| origin.strip_prefix(scheme));
    match (of_origin, facts.host) {
        (Some(authority), Some(host)) if authority.eq_ignore_ascii_case(host) => Ok(()),
        _ => refused(origin),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOOPBACK: &str = "127.0.0.1";
    const LISTENER: &str = "127.0.0.1:8068";

    fn facts<'a>(peer: &str, local: &str, host: &'a str) -> RequestFacts<'a> {
        RequestFacts {
            peer: peer.parse().unwrap(),
            local: local.parse().unwrap(),
            host: Some(host),
            target: None,
            proxy_header: None,
            forwarded_for: None,
            origin: None,
            fetch_site: None,
            is_change: false,
            is_visit: false,
        }
    }

    fn behind(proxies: &[&str]) -> AccessRules {
        AccessRules { trusted_proxies: proxies.iter().map(|network| network.parse().unwrap()).collect() }
    }

    #[test]
    fn without_login_loopback_is_answered_under_its_own_names_alone() {
        let rules = AccessRules::default();
        let without_login = |peer, local, host| rules.admit(&facts(peer, local, host)).unwrap().without_login;
        for host in ["localhost:8068", "LocalHost:8068", "127.0.0.1:8068", "[::1]:8068"] {
            assert_eq!(without_login(LOOPBACK, LISTENER, host), Ok(AccessScope::Run), "{host}");
        }
        assert_eq!(without_login("::1", "[::1]:8068", "[::1]:8068"), Ok(AccessScope::Run));
        assert_eq!(without_login("::ffff:127.0.0.1", "[::ffff:127.0.0.1]:80", "localhost"), Ok(AccessScope::Run));
        for host in [
            "evil.example",
            "evil.example:8068",
            "localhost",
            "localhost:80",
            "localhost:8068:8068",
            "localhost.:8068",
            "localhost.evil.example:8068",
            "127.0.0.1.evil.example:8068",
            "127.0.0.2:8068",
            "127.1:8068",
            "::1:8068",
            "user@localhost:8068",
            "",
        ] {
            let refused = Err(AccessRefusal::WrongHost { port: 8068 });
            assert_eq!(without_login(LOOPBACK, LISTENER, host), refused, "{host}");
        }
        for (peer, local) in [("192.0.2.7", "192.0.2.1:8068"), ("192.0.2.7", LISTENER), (LOOPBACK, "192.0.2.1:8068")] {
            let refused = without_login(peer, local, "localhost:8068");
            assert_eq!(refused, Err(AccessRefusal::LoginRequired), "{peer} {local}");
        }
    }

    #[test]
    fn the_host_must_be_given_once_and_as_the_target_gives_it() {
        let rules = AccessRules::default();
        let none = RequestFacts { host: None, ..facts(LOOPBACK, LISTENER, "") };
        let other = RequestFacts { target: Some("evil.example"), ..facts(LOOPBACK, LISTENER, "localhost:8068") };
        for refused in [none, other] {
            assert_eq!(rules.admit(&refused).unwrap().without_login, Err(AccessRefusal::WrongHost { port: 8068 }));
        }
    }

    #[test]
    fn a_forwarded_request_is_answered_behind_a_trusted_proxy_alone_and_needs_a_login_there() {
        let forwarded = RequestFacts { proxy_header: Some("via"), ..facts(LOOPBACK, LISTENER, "localhost:8068") };
        let untrusted =
            Err(AccessRefusal::UntrustedProxy { header: "via".to_owned(), peer: LOOPBACK.parse().unwrap() });
        for proxies in [&[][..], &["192.0.2.0/24"]] {
            assert_eq!(behind(proxies).admit(&forwarded), untrusted);
        }
        let proxies = behind(&["127.0.0.0/8", "192.0.2.0/24"]);
        let client = |forwarded_for| {
            let admitted = proxies.admit(&RequestFacts { forwarded_for, ..forwarded }).unwrap();
            assert_eq!(admitted.without_login, Err(AccessRefusal::LoginRequired));
            admitted.client.to_string()
        };
        for (given, read) in [
            (None, LOOPBACK),
            (Some("203.0.113.9"), "203.0.113.9"),
            (Some("198.51.100.1, 203.0.113.9, 192.0.2.5"), "203.0.113.9"),
            (Some("203.0.113.9, nonsense"), LOOPBACK),
            (Some("192.0.2.5"), LOOPBACK),
            (Some("::ffff:203.0.113.9"), "203.0.113.9"),
        ] {
            assert_eq!(client(given), read, "{given:?}");
        }
        // With a proxy on this host, a request without proxy headers could still be one that the proxy forwarded.
        let direct = proxies.admit(&facts(LOOPBACK, LISTENER, "localhost:8068")).unwrap();
        assert_eq!(direct.without_login, Err(AccessRefusal::LoginRequired));
    }

    #[test]
    fn a_change_that_a_page_of_another_site_sends_is_refused() {
        let change = |origin, fetch_site| {
            let change = RequestFacts { origin, fetch_site, is_change: true, ..facts(LOOPBACK, LISTENER, "a:8068") };
            AccessRules::default().admit(&change).map(drop)
        };
        for (origin, site) in [
            (None, None),
            (Some("http://a:8068"), None),
            (Some("https://A:8068"), Some("same-origin")),
            (None, Some("none")),
        ] {
            assert_eq!(change(origin, site), Ok(()), "{origin:?} {site:?}");
        }
        for (origin, site) in [
            (Some("http://evil.example"), None),
            (Some("http://a:8069"), None),
            (Some("http://a"), None),
            (Some("null"), None),
            (Some("file://a:8068"), None),
            (Some("http://a:8068"), Some("cross-site")),
            (None, Some("same-site")),
        ] {
            assert!(matches!(change(origin, site), Err(AccessRefusal::CrossOrigin { .. })), "{origin:?} {site:?}");
        }
        let reading = RequestFacts { origin: Some("http://evil.example"), ..facts(LOOPBACK, LISTENER, "a:8068") };
        assert!(AccessRules::default().admit(&reading).is_ok());
    }

    #[test]
    fn a_page_of_another_site_may_link_here_and_read_nothing() {
        let read = |fetch_site, is_visit| {
            let read = RequestFacts { fetch_site, is_visit, ..facts(LOOPBACK, LISTENER, "localhost:8068") };
            AccessRules::default().admit(&read).map(drop)
        };
        for site in [None, Some("none"), Some("same-origin")] {
            assert_eq!(read(site, false), Ok(()), "{site:?}");
        }
        for site in ["cross-site", "same-site"] {
            assert_eq!(read(Some(site), true), Ok(()));
            assert_eq!(read(Some(site), false), Err(AccessRefusal::CrossOrigin { origin: site.to_owned() }));
        }
    }

    #[test]
    fn a_login_allows_what_its_scope_says_and_no_login_what_loopback_allows() {
        use AccessScope::{Admin, Read, Run};
        let open = Admitted { client: LOOPBACK.parse().unwrap(), without_login: Ok(Run) };
        let closed = Admitted { without_login: Err(AccessRefusal::LoginRequired), ..open.clone() };
        for (admitted, login, needs, is_answered) in [
            (&open, None, Run, true),
            (&open, None, Admin, false),
            (&open, Some(Read), Run, false),
            (&open, Some(Admin), Admin, true),
            (&closed, None, Read, false),
            (&closed, Some(Read), Read, true),
            (&closed, Some(Run), Admin, false),
        ] {
            assert_eq!(admitted.authorise(login, Some(needs)).is_ok(), is_answered, "{login:?} {needs:?}");
        }
        assert_eq!(closed.authorise(None, Some(Read)), Err(AccessRefusal::LoginRequired));
        // The login route needs no login, but a page of another host name may not try passwords.
        let wrong = Admitted { without_login: Err(AccessRefusal::WrongHost { port: 1 }), ..open.clone() };
        assert!(open.authorise(None, None).is_ok() && closed.authorise(None, None).is_ok());
        assert!(wrong.authorise(None, None).is_err() && wrong.authorise(Some(Admin), None).is_err());
    }

    #[test]
    fn a_route_needs_the_scope_of_its_effect() {
        use AccessScope::{Admin, Read, Run};
        for (method, path, needs) in [
            (Method::GET, "/api/v1/results/{id}", Read),
            (Method::HEAD, "/api/v1/status", Read),
            (Method::GET, "/metrics", Read),
            (Method::POST, "/api/v1/tests", Run),
            (Method::POST, "/api/v1/tests/{id}/cancel", Run),
            (Method::POST, "/api/v1/schedules/{name}/run", Run),
            (Method::POST, "/api/v1/schedules", Admin),
            (Method::DELETE, "/api/v1/schedules/{name}", Admin),
            (Method::POST, "/api/v1/reflectors", Admin),
            (Method::GET, "/api/v1/tokens", Admin),
            (Method::GET, "/api/v1/store/backup", Admin),
            (Method::GET, "/api/v1/configuration", Admin),
            (Method::POST, "/api/v1/reflectors/imports", Admin),
            (Method::GET, "/api/v1/results/export", Read),
            (Method::DELETE, "/api/v1/tokens/{name}", Admin),
            (Method::POST, "/api/v1/a_route_of_later", Admin),
            (Method::GET, "", Read),
            (Method::GET, "/", Read),
            (Method::GET, "/settings", Read),
            (Method::GET, "/settings/tokens", Admin),
            (Method::GET, "/api/v1/channels", Admin),
            (Method::POST, "/api/v1/channels/{name}/test", Admin),
            (Method::GET, "/settings/channels", Admin),
            (Method::GET, "/api/v1/messages", Admin),
            (Method::POST, "/settings/monitors", Admin),
            (Method::POST, "/tests", Run),
            (Method::POST, "/assets", Admin),
            (Method::POST, "/api/v1/theme", Admin),
            (Method::POST, "/api/v1/setup-links", Admin),
            (Method::POST, "/api/v1/login/more", Admin),
        ] {
            assert_eq!(needed_scope(&method, path), Some(needs), "{method} {path}");
        }
        for (method, path) in [
            (Method::POST, "/api/v1/login"),
            (Method::GET, "/login"),
            (Method::GET, SETUP_PAGE),
            (Method::POST, SETUP_PAGE),
            (Method::GET, "/assets/{name}"),
            (Method::POST, "/theme"),
        ] {
            assert_eq!(needed_scope(&method, path), None, "{method} {path}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics_or_opens_an_address(host in "\\PC{0,30}", other in "\\PC{0,30}") {
            let from_outside = RequestFacts {
                proxy_header: Some("forwarded"),
                forwarded_for: Some(&other),
                origin: Some(&other),
                ..facts("192.0.2.7", "192.0.2.1:8068", &host)
            };
            let admitted = behind(&["192.0.2.7"]).admit(&from_outside).unwrap();
            prop_assert_eq!(admitted.without_login, Err(AccessRefusal::LoginRequired));
        }
    }
}
