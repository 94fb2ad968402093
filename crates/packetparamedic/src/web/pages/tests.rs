//! Tests the pages through the whole router: who may see and do what, the headers, and that text from outside stays
//! text.

use std::net::SocketAddr;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::{
    ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE, HOST,
    LOCATION, ORIGIN, SET_COOKIE,
};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use paramedic_appliance::app::{Appliance, ApplyMode, ConfiguredMonitor, DeviceConfiguration};
use paramedic_appliance::monitor::{Monitor, MonitorTarget};
use paramedic_appliance::plan::{Plan, PromisedRate};
use paramedic_link::EndpointId;
use paramedic_report::document::{ErrorBody, ResultDocument, example};
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use zeroize::Zeroizing;

use super::super::connections::RequestSource;
use super::super::routes;
use super::super::tests::state;
use super::assets::AssetPaths;

/// Every page that can be read.
const PAGES: [&str; 19] = [
    "/",
    "/history",
    "/history?period=all",
    "/history?period=day&target=x&engine=tcp",
    "/monitors",
    "/outages",
    "/alerts",
    "/report",
    "/start",
    "/start?step=plan",
    "/start?step=schedule",
    "/settings",
    "/settings/schedules",
    "/settings/monitors",
    "/settings/plan",
    "/settings/channels",
    "/settings/tokens",
    "/settings/about",
    "/login",
];

const SOCKET: RequestSource = RequestSource::User { uid: 0 };

/// A service and the router of its pages.
struct Pages {
    _folder: tempfile::TempDir,
    appliance: Appliance,
    app: TowerToHyperService<Router>,
}

/// The answer to a request for a page.
#[derive(Debug)]
struct PageAnswer {
    status: StatusCode,
    headers: HeaderMap,
    bytes: Vec<u8>,
}

impl PageAnswer {
    fn header(&self, name: impl axum::http::header::AsHeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes.clone()).unwrap()
    }
}

impl Pages {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = state(folder.path()).await;
        let appliance = state.service.appliance().clone();
        Self { app: TowerToHyperService::new(routes(state)), appliance, _folder: folder }
    }

    async fn send(&self, source: RequestSource, request: Request<Body>) -> PageAnswer {
        let mut request = request;
        request.extensions_mut().insert(source);
        let (parts, body) = self.app.call(request).await.unwrap().into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap().to_vec();
        PageAnswer { status: parts.status, headers: parts.headers, bytes }
    }

    async fn get(&self, source: RequestSource, path: &str) -> PageAnswer {
        self.send(source, browser(Method::GET, path).body(Body::empty()).unwrap()).await
    }

    async fn post(&self, source: RequestSource, path: &str, form: &str, cookie: &str) -> PageAnswer {
        let request = browser(Method::POST, path).header(ORIGIN, "http://localhost:8068").header(COOKIE, cookie);
        self.send(source, request.body(Body::from(form.to_owned())).unwrap()).await
    }
}

fn browser(method: Method, path: &str) -> axum::http::request::Builder {
    let kind = "text/html,application/xhtml+xml,*/*;q=0.8";
    Request::builder().method(method).uri(path).header(HOST, "localhost:8068").header(ACCEPT, kind)
}

fn address(peer: &str) -> RequestSource {
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let local = if peer.starts_with("127.") { "127.0.0.1:8068" } else { "192.0.2.1:8068" };
    RequestSource::Address { peer: address(peer), local: address(local), is_tls: false }
}

#[tokio::test]
async fn every_page_has_its_policy_and_no_script_or_style_of_its_own() {
    let pages = Pages::new().await;
    for path in PAGES {
        let page = pages.get(SOCKET, path).await;
        assert_eq!(page.status, StatusCode::OK, "{path}: {}", page.text());
        let policy = page.header(CONTENT_SECURITY_POLICY);
        assert!(policy.starts_with("default-src 'self'; frame-ancestors 'none'"), "{path}: {policy}");
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(page.header(CACHE_CONTROL), "no-store", "{path}");
        let html = page.text();
        only_own_markup(path, &html);
        assert_eq!(html.matches("<h1").count(), 1, "{path} has one first heading");
    }
}

/// Fails if the HTML of a page contains a script, a style or a handler, or names another host.
fn only_own_markup(path: &str, html: &str) {
    let own = AssetPaths::current().script;
    for script in html.split("<script").skip(1) {
        assert!(script.starts_with(&format!(" src=\"{own}\" defer></script>")), "{path}: a script: {script:.80}");
    }
    for tag in html.split('<').skip(1).filter_map(|tag| tag.split_once('>')).map(|(tag, _)| tag) {
        let lower = tag.to_lowercase();
        // The names of the attributes, without the values.
        let names = lower.split('"').step_by(2).collect::<String>();
        assert!(!names.starts_with("style") && !names.contains(" style="), "{path}: {tag}");
        let has_handler = names.split_whitespace().any(|word| word.starts_with("on") && word.contains('='));
        assert!(!has_handler, "{path}: {tag}");
        if !names.contains(" src=") && !names.contains(" href=") && !names.contains(" action=") {
            continue;
        }
        for attribute in [" src=", " href=", " action="] {
            let Some((_, value)) = lower.split_once(attribute) else { continue };
            let value = value.trim_start_matches('"');
            assert!(value.starts_with('/') && !value.starts_with("//") || value.starts_with('#'), "{path}: {tag}");
        }
    }
}

#[tokio::test]
async fn text_from_outside_is_text_on_every_page() {
    let pages = Pages::new().await;
    let hostile =
        format!("<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u{202E}\u{1F480}{}", "x".repeat(10_000));
    Box::pin(fill(&pages, &hostile)).await;
    let run = format!("/runs/{}", example::full().id);
    for path in PAGES.into_iter().chain([
        run.as_str(),
        "/monitors/gateway",
        "/history?period=all&target=%3Cb%3E",
        "/history?period=all",
    ]) {
        let page = pages.get(SOCKET, path).await;
        assert_eq!(page.status, StatusCode::OK, "{path}: {}", page.text());
        let html = page.text();
        only_own_markup(path, &html);
        assert!(!html.contains("<img src=x") && !html.contains('\u{202E}'), "{path}");
        // Only the page of a run may contain long text: it shows the whole document.
        assert!(!html.contains(&"x".repeat(1100)) || path == run, "{path}: text of any length");
    }
    let now = pages.get(SOCKET, "/").await.text();
    assert!(now.contains("&#60;script&#62;alert(1)&#60;/script&#62;") && now.contains('\u{1F480}'), "{now}");
    // The form shows again what was entered, as text.
    let form = "address=%22%3E%3Cscript%3Ealert(3)%3C%2Fscript%3E&code=x&name=%3Cb%3E";
    let again = pages.post(SOCKET, "/settings/reflectors", form, "").await;
    assert_eq!(again.status, StatusCode::BAD_REQUEST);
    only_own_markup("form", &again.text());
    assert!(again.text().contains("&#34;&#62;&#60;script&#62;alert(3)"), "{}", again.text());
    let missing = pages.get(SOCKET, "/%3Cscript%3Ealert(4)%3C/script%3E").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    only_own_markup("missing", &missing.text());
}

/// Fills the store with hostile text, in every place that can contain text.
async fn fill(pages: &Pages, hostile: &str) {
    let bounded = hostile.chars().filter(|c| !c.is_control()).take(100).collect::<String>();
    let rate = PromisedRate { promised_bps: 1_000_000_000, normal_bps: None, minimum_bps: None };
    let plan = Plan { name: Some(bounded), download: rate, upload: rate };
    pages.appliance.set_plan(&plan).await.unwrap();
    pages.appliance.add_monitor(Monitor::new("gateway", MonitorTarget::Gateway, None)).await.unwrap();
    let error = ErrorBody {
        code: "unreachable".to_owned(),
        what: hostile.to_owned(),
        because: hostile.to_owned(),
        try_: hostile.to_owned(),
        retry_after_ms: None,
    };
    let measured = ResultDocument { peer: Some(hostile.to_owned()), ..example::full() };
    let failed = ResultDocument {
        id: uuid::Uuid::now_v7(),
        started_at: "2026-03-01T00:00:00Z".parse().unwrap(),
        download: None,
        upload: None,
        bidir: None,
        latency: Default::default(),
        error: Some(error),
        complete: false,
        ..measured.clone()
    };
    for document in [measured, failed] {
        let mut text = serde_json::to_value(&document).unwrap();
        // Another store can contain such a result.
        if let Some(reflector) = text.get_mut("reflector").filter(|reflector| reflector.is_object()) {
            reflector["name"] = hostile.into();
            reflector["address"] = hostile.into();
        }
        pages.appliance.import_result(&text.to_string()).await.unwrap();
    }
    // A program with access to the file can write such a row.
    let file = pages.appliance.state_dir().join(paramedic_appliance::store::FILE);
    let mut database = SqliteConnectOptions::new().filename(file).connect().await.unwrap();
    sqlx::query(
        "INSERT INTO reflectors (endpoint_id, name, address, paired_at_us) VALUES ($1, $2, '203.0.113.7:4000', 0)",
    )
    .bind(EndpointId::from_bytes([7; 32]).to_string())
    .bind(hostile)
    .execute(&mut database)
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO outages (id, appliance, began_at_us, ended_at_us, end_known, scope, failed, reachable) \
         VALUES ($1, 'PP', 0, NULL, TRUE, 'target', $2, '[]')",
    )
    .bind(uuid::Uuid::now_v7().to_string())
    .bind(serde_json::to_string(&[hostile]).unwrap())
    .execute(&mut database)
    .await
    .unwrap();
    let at = "2026-01-31T00:00:00Z";
    let finding = serde_json::json!({ "metric": "download", "at": at, "since": at, "count": 1, "of": 1 });
    let record = serde_json::json!({ "title": hostile, "text": hostile, "finding": finding }).to_string();
    for closed_at_us in [None, Some(1_i64)] {
        sqlx::query(
            "INSERT INTO alerts (id, appliance, rule_id, rule_name, subject, opened_at_us, closed_at_us, opening) \
             VALUES ($1, 'PP', $2, $3, $3, 0, $4, $5)",
        )
        .bind(uuid::Uuid::now_v7().to_string())
        .bind(uuid::Uuid::now_v7().to_string())
        .bind(hostile)
        .bind(closed_at_us)
        .bind(&record)
        .execute(&mut database)
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn without_the_login_that_is_needed_a_page_leads_to_it() {
    let pages = Pages::new().await;
    let (near, far) = (address("127.0.0.1:5000"), address("192.0.2.7:5000"));
    for (source, path, leads_to) in [
        (far, "/", Some("/login?next=%2F")),
        (far, "/settings?a=b", Some("/login?next=%2Fsettings%3Fa%3Db")),
        (far, "/nothing", Some("/login?next=%2Fnothing")),
        (near, "/", None),
        (near, "/settings", None),
        (near, "/settings/tokens", Some("/login?next=%2Fsettings%2Ftokens")),
    ] {
        let page = pages.get(source, path).await;
        match leads_to {
            Some(location) => {
                assert_eq!((page.status, page.header(LOCATION)), (StatusCode::SEE_OTHER, location), "{path}");
            }
            None => assert_eq!(page.status, StatusCode::OK, "{path}"),
        }
    }
    for source in [near, far] {
        assert_eq!(pages.get(source, "/login").await.status, StatusCode::OK);
        assert_eq!(pages.get(source, &AssetPaths::current().style).await.status, StatusCode::OK);
        let changed = pages.post(source, "/settings/plan", "download=100&upload=40", "").await;
        assert_eq!((changed.status, changed.header(LOCATION)), (StatusCode::SEE_OTHER, "/login?next=%2F"));
    }
    assert_eq!(pages.appliance.plan().await.unwrap(), None);
    // A client that does not accept HTML gets a problem document.
    let request = Request::get("/settings/tokens").header(HOST, "localhost:8068").body(Body::empty()).unwrap();
    let refused = pages.send(near, request).await;
    assert_eq!((refused.status, refused.header(CONTENT_TYPE)), (StatusCode::FORBIDDEN, "application/problem+json"));
}

#[tokio::test]
async fn a_page_of_another_name_or_another_site_gets_and_changes_nothing() {
    let pages = Pages::new().await;
    let near = address("127.0.0.1:5000");
    for path in ["/", "/login", "/assets/app.js"] {
        let request = Request::get(path).header(HOST, "evil.example:8068").header(ACCEPT, "text/html");
        let refused = pages.send(near, request.body(Body::empty()).unwrap()).await;
        assert_eq!(refused.status, StatusCode::MISDIRECTED_REQUEST, "{path}");
    }
    for origin in ["http://evil.example", "null"] {
        for path in ["/tests", "/theme", "/login", "/settings/plan"] {
            let request = browser(Method::POST, path).header(ORIGIN, origin);
            let refused = pages.send(near, request.body(Body::from("a=b")).unwrap()).await;
            assert_eq!(refused.status, StatusCode::FORBIDDEN, "{path} {origin}");
        }
    }
}

#[tokio::test]
async fn the_login_leads_back_to_its_page_and_no_further() {
    let pages = Pages::new().await;
    let far = address("192.0.2.7:5000");
    let secret = pages.appliance.new_setup_link().await.unwrap().secret;
    let short = pages.post(far, &format!("/setup/{secret}"), "password=short", "").await;
    assert!(short.status == StatusCode::BAD_REQUEST && short.text().contains("10 to 200 characters"), "{short:?}");
    let set = pages.post(far, &format!("/setup/{secret}"), "password=correct+horse", "").await;
    assert_eq!((set.status, set.header(LOCATION)), (StatusCode::SEE_OTHER, "/start?done=password-set"));
    assert!(set.header(SET_COOKIE).contains("; HttpOnly; SameSite=Lax"), "{set:?}");
    for (next, location) in [
        ("%2Fsettings%2Ftokens", "/settings/tokens?done=logged-in"),
        ("%2F%2Fevil.example", "/?done=logged-in"),
        ("https%3A%2F%2Fevil.example", "/?done=logged-in"),
        ("%2F%5Cevil.example", "/?done=logged-in"),
    ] {
        let login = pages.post(far, "/login", &format!("password=correct+horse&next={next}"), "").await;
        assert_eq!((login.status, login.header(LOCATION)), (StatusCode::SEE_OTHER, location));
    }
    let login = pages.post(far, "/login", "password=correct+horse", "").await;
    let cookie = login.header(SET_COOKIE).split(';').next().unwrap().to_owned();
    let saved = pages.post(far, "/settings/plan", "download=100&upload=40", &cookie).await;
    assert_eq!((saved.status, saved.header(LOCATION)), (StatusCode::SEE_OTHER, "/settings/plan?done=plan-saved"));
    let out = pages.post(far, "/logout", "", &cookie).await;
    assert_eq!((out.status, out.header(LOCATION)), (StatusCode::SEE_OTHER, "/login?done=logged-out"));
    let after = pages.post(far, "/settings/plan/clear", "", &cookie).await;
    assert_eq!(after.header(LOCATION), "/login?next=%2F");
    assert!(pages.appliance.plan().await.unwrap().is_some());
    // The attempts of an address are limited, on the page as in the API.
    for _ in 0..5 {
        assert_eq!(pages.post(far, "/login", "password=wrong", "").await.status, StatusCode::UNAUTHORIZED);
    }
    let locked = pages.post(far, "/login", "password=correct+horse", "").await;
    assert!(
        locked.status == StatusCode::TOO_MANY_REQUESTS && locked.text().contains("sent several wrong passwords"),
        "{locked:?}"
    );
    assert!(pages.appliance.log_in(Zeroizing::new("correct horse".to_owned())).await.unwrap().is_some());
}

#[tokio::test]
async fn a_file_of_the_pages_is_kept_and_a_page_is_small() {
    let pages = Pages::new().await;
    let packed =
        |path: &str| browser(Method::GET, path).header(ACCEPT_ENCODING, "gzip, br").body(Body::empty()).unwrap();
    let first = pages.send(SOCKET, packed("/")).await;
    assert_eq!(first.header(CONTENT_ENCODING), "gzip");
    let mut sum = first.bytes.len();
    let AssetPaths { script, style, icon } = AssetPaths::current();
    for path in [script, style, icon] {
        let file = pages.send(SOCKET, packed(&path)).await;
        assert_eq!(file.header(CACHE_CONTROL), "public, max-age=31536000, immutable");
        assert_eq!(file.header(CONTENT_ENCODING), "gzip");
        sum += file.bytes.len();
        let plain = pages.get(SOCKET, &path).await;
        assert_eq!(plain.header(CONTENT_ENCODING), "");
        assert!(plain.bytes.len() > file.bytes.len());
    }
    assert!(sum < 60 * 1024, "{sum} bytes");
    assert_eq!(pages.get(SOCKET, "/assets/app.0123456789abcdef.js").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_theme_is_kept_by_a_cookie_and_leads_back() {
    let pages = Pages::new().await;
    let far = address("192.0.2.7:5000");
    let chosen = pages.post(far, "/theme", "theme=dark&next=%2Fsettings", "").await;
    assert_eq!((chosen.status, chosen.header(LOCATION)), (StatusCode::SEE_OTHER, "/settings"));
    let cookie = chosen.header(SET_COOKIE).split(';').next().unwrap().to_owned();
    let request = browser(Method::GET, "/login").header(COOKIE, cookie).body(Body::empty()).unwrap();
    assert!(pages.send(far, request).await.text().contains("data-theme=\"dark\""));
    let other = pages.post(far, "/theme", "theme=%3Cb%3E&next=%2F%2Fevil.example", "").await;
    assert_eq!(other.header(LOCATION), "/");
    assert!(other.header(SET_COOKIE).starts_with("packetparamedic_theme=system;"));
}

#[tokio::test]
async fn a_request_of_htmx_is_led_to_the_login_as_a_whole() {
    let pages = Pages::new().await;
    let request = browser(Method::GET, "/").header("hx-request", "true").body(Body::empty()).unwrap();
    let led = pages.send(address("192.0.2.7:5000"), request).await;
    assert_eq!((led.status, led.header("hx-redirect")), (StatusCode::OK, "/login?next=%2F"));
}

#[tokio::test]
async fn a_file_that_applies_marks_its_rows_on_the_page() {
    let pages = Pages::new().await;
    let rate = PromisedRate { promised_bps: 1_000_000, normal_bps: None, minimum_bps: None };
    let plan = Plan { name: None, download: rate, upload: rate };
    let monitor =
        ConfiguredMonitor { enabled: true, monitor: Monitor::new("office", "gateway".parse().unwrap(), None) };
    let objects = serde_json::json!({
        "channels": [{ "name": "phone", "kind": "ntfy", "enabled": true, "server": "http://127.0.0.1:9/", "topic": "line" }],
        "rules": [{ "name": "gone", "enabled": true, "metric": "outage", "limit": { "above": 120.0 } }],
    });
    let objects = serde_json::from_value::<DeviceConfiguration>(objects).unwrap();
    let file = DeviceConfiguration { plan: Some(plan), monitors: vec![monitor], ..objects };
    assert!(!pages.get(SOCKET, "/settings/monitors").await.text().contains("made by a file"));
    pages.appliance.apply_configuration(file, ApplyMode::default()).await.unwrap();
    for path in ["/settings/monitors", "/settings/channels", "/alerts"] {
        let shown = pages.get(SOCKET, path).await.text();
        assert!(shown.contains("made by a file") && shown.contains("changes back"), "{path}: {shown}");
    }
    assert!(pages.get(SOCKET, "/settings/plan").await.text().contains("by a file"));
    pages.post(SOCKET, "/settings/plan", "download=100&upload=40", "").await;
    assert!(!pages.get(SOCKET, "/settings/plan").await.text().contains("by a file"));
}

#[tokio::test]
async fn a_rule_is_previewed_added_switched_and_removed_by_forms() {
    let pages = Pages::new().await;
    let form = "metric=monitor_loss&limit=above&value=2%25&times=2&of=3&name=lossy";
    let preview = pages.post(SOCKET, "/alerts", &format!("{form}&preview=1"), "").await;
    assert_eq!(preview.status, StatusCode::OK);
    for part in ["It would not have fired in the last 14 days", "no monitor is enabled", "value=\"lossy\""] {
        assert!(preview.text().contains(part), "{part}: {}", preview.text());
    }
    assert!(pages.appliance.rules().await.unwrap().is_empty(), "a preview saves nothing");
    let near = address("127.0.0.1:5000");
    let refused = pages.post(near, "/alerts", form, "").await;
    assert_eq!((refused.status, refused.header(LOCATION)), (StatusCode::SEE_OTHER, "/login?next=%2F"));
    let added = pages.post(SOCKET, "/alerts", form, "").await;
    assert_eq!((added.status, added.header(LOCATION)), (StatusCode::SEE_OTHER, "/alerts?done=rule-added"));
    let again = pages.post(SOCKET, "/alerts", form, "").await;
    assert!(again.status != StatusCode::SEE_OTHER && again.text().contains("another rule is called lossy"));
    let wrong = pages.post(SOCKET, "/alerts", "metric=download&limit=above&value=2M", "").await;
    assert!(
        wrong.status == StatusCode::BAD_REQUEST && wrong.text().contains("kind of limit is not valid"),
        "{wrong:?}"
    );
    pages.post(SOCKET, "/alerts/rules/lossy/switch", "", "").await;
    let shown = pages.get(SOCKET, "/alerts?preview=lossy").await.text();
    only_own_markup("/alerts", &shown);
    assert!(shown.contains("disabled") && shown.contains("id=\"preview\""), "{shown}");
    assert_eq!(pages.get(SOCKET, "/alerts?preview=none").await.status, StatusCode::NOT_FOUND);
    let suggested = pages.post(SOCKET, "/alerts/suggested", "name=outage", "").await;
    assert_eq!(suggested.header(LOCATION), "/alerts?done=rule-added");
    pages.post(SOCKET, "/alerts/rules/lossy/remove", "", "").await;
    let rules = pages.appliance.rules().await.unwrap();
    assert_eq!(rules.iter().map(|rule| rule.stored.rule.name.as_str()).collect::<Vec<_>>(), ["outage"]);
}

#[tokio::test]
async fn a_run_has_one_address_and_an_administrator_deletes_it() {
    let pages = Pages::new().await;
    let run = example::full();
    pages.appliance.import_result(&run.to_text().unwrap()).await.unwrap();
    let path = format!("/runs/{}", run.id);
    let short = pages.get(SOCKET, &path[..path.len() - 1]).await;
    assert_eq!((short.status, short.header(LOCATION)), (StatusCode::SEE_OTHER, path.as_str()));
    let shown = pages.get(SOCKET, &path).await;
    assert_eq!(shown.status, StatusCode::OK);
    only_own_markup(&path, &shown.text());
    assert!(shown.text().contains("Delete this run"));
    let near = address("127.0.0.1:5000");
    assert!(!pages.get(near, &path).await.text().contains("Delete this run"));
    let delete = format!("{path}/delete");
    let refused = pages.post(near, &delete, "", "").await;
    assert_eq!((refused.status, refused.header(LOCATION)), (StatusCode::SEE_OTHER, "/login?next=%2F"));
    let deleted = pages.post(SOCKET, &delete, "", "").await;
    assert_eq!((deleted.status, deleted.header(LOCATION)), (StatusCode::SEE_OTHER, "/history?done=result-deleted"));
    assert_eq!(pages.get(SOCKET, &path).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_report_is_a_file_and_its_preview_may_use_its_own_styles_alone() {
    let pages = Pages::new().await;
    Box::pin(fill(&pages, "<script>alert(1)</script>\u{202E}")).await;
    let period = "since=2026-01-01&until=2026-02-28&zone=UTC";
    let preview = pages.get(SOCKET, &format!("/report/preview?{period}")).await;
    let policy = preview.header(CONTENT_SECURITY_POLICY);
    assert!(
        policy.starts_with("default-src 'none'; style-src 'sha256-") && policy.contains("frame-ancestors 'none'"),
        "{policy}"
    );
    let html = preview.text();
    assert!(html.contains("1 runs on 1 days") || html.contains("runs on"), "{html}");
    assert!(!html.contains("<script") && !html.contains('\u{202E}'));
    for (format, kind) in [("html", "text/html; charset=utf-8"), ("csv", "text/csv; charset=utf-8")] {
        for path in ["/report/file", "/api/v1/report"] {
            let file = pages.get(SOCKET, &format!("{path}?{period}&format={format}")).await;
            assert_eq!((file.status, file.header(CONTENT_TYPE)), (StatusCode::OK, kind), "{path}");
            let disposition = file.header(axum::http::header::CONTENT_DISPOSITION);
            assert!(disposition.starts_with("attachment; filename=\"line-report-") && disposition.contains(format));
        }
    }
    let wrong = pages.get(SOCKET, "/report/preview?since=yesterday").await;
    assert!(
        wrong.status == StatusCode::BAD_REQUEST && wrong.text().contains("since must be a day or time"),
        "{}",
        wrong.text()
    );
}

#[tokio::test]
async fn a_channel_whose_name_is_not_shown_has_its_encoded_name() {
    let pages = Pages::new().await;
    pages.post(SOCKET, "/settings/channels", "kind=ntfy&name=phone&topic=pp", "").await;
    // An earlier version accepted this name.
    let file = pages.appliance.state_dir().join(paramedic_appliance::store::FILE);
    let mut database = SqliteConnectOptions::new().filename(file).connect().await.unwrap();
    sqlx::query("UPDATE channels SET name = 'phone\u{3164}'").execute(&mut database).await.unwrap();
    let shown = pages.get(SOCKET, "/alerts").await.text();
    assert!(shown.contains("value=\"phone\u{3164}\"> <bdi>phone (phone%E3%85%A4)</bdi>"), "{shown}");
    assert_eq!(shown.matches('\u{3164}').count(), shown.matches("value=\"phone\u{3164}\"").count(), "{shown}");
}

#[tokio::test]
async fn no_page_shows_the_secret_of_a_channel_or_makes_a_command() {
    let pages = Pages::new().await;
    let path = "/settings/channels";
    let mail = "kind=smtp&name=mail&server=mail.example.org&user=ann&password=geheim&from=pp%40example.org&to=ann";
    let refused = pages.post(SOCKET, path, mail, "").await;
    let text = refused.text();
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{text}");
    assert!(text.contains("is not a mail address") && text.contains("mail.example.org"), "{text}");
    assert!(!text.contains("geheim"), "{text}");
    let hook = "kind=webhook&name=hook&url=http%3A%2F%2F127.0.0.1%3A9%2Fgeheim&token=geheim";
    let added = pages.post(SOCKET, path, hook, "").await;
    assert_eq!(added.status, StatusCode::SEE_OTHER, "{}", added.text());
    let tested = pages.post(SOCKET, "/settings/channels/hook/test", "", "").await.text();
    assert!(tested.contains("was not delivered to hook"), "{tested}");
    for text in [tested, pages.get(SOCKET, path).await.text()] {
        assert!(
            text.contains("http://127.0.0.1:9") && text.contains("url, token") && !text.contains("geheim"),
            "{text}"
        );
    }
    let command = pages.post(SOCKET, path, "kind=command&name=own&program=%2Fbin%2Ftrue", "").await;
    assert_eq!(command.status, StatusCode::BAD_REQUEST);
    let off = pages.post(SOCKET, "/settings/channels/hook/switch", "", "").await;
    assert_eq!((off.status, pages.appliance.channels().await.unwrap()[0].enabled), (StatusCode::SEE_OTHER, false));
    let removed = pages.post(SOCKET, "/settings/channels/hook/remove", "", "").await;
    assert_eq!((removed.status, pages.appliance.channels().await.unwrap().len()), (StatusCode::SEE_OTHER, 0));
}
