//! The API of the running service, /api/v1, and its web pages, on its unix socket and on TCP. The API and the pages
//! translate between HTTP and the module `app` of `paramedic_appliance`.

mod access;
mod channel_body;
pub(crate) mod channels;
mod chunks;
pub(crate) mod client;
pub(crate) mod configuration;
mod connections;
mod events;
mod extract;
mod guard;
pub(crate) mod identity;
mod live_runs;
pub(crate) mod login;
mod login_attempts;
mod metrics;
pub(crate) mod monitors;
mod openapi;
mod pages;
pub(crate) mod plan;
pub(crate) mod problem;
mod rate_window;
pub(crate) mod reflectors;
pub(crate) mod report;
pub(crate) mod results;
pub(crate) mod rules;
mod schedules;
pub(crate) mod store;
pub(crate) mod table_exports;
pub(crate) mod test_runs;
pub(crate) mod tls;
pub(crate) mod tokens;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::middleware;
use axum::routing::{MethodRouter, delete, get, post};
use axum::{Json, Router};
use paramedic_appliance::app::{Service, ServiceStatus};
use paramedic_appliance::request::TestRequest;
use paramedic_host::version;
use paramedic_link::PeerText;
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use access::AccessRules;
pub(crate) use connections::ApiListener;
use guard::AccessGuard;
use live_runs::LiveRuns;
use problem::Problem;
use rate_window::TestStarts;

use crate::cli::failure::CommandFailure;
use crate::network::IpNetwork;

/// The maximum length of the body of a request, in bytes, unless the route sets another.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// How long a stopping service waits until its clients have received their answers.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// The state that all routes share.
#[derive(Clone)]
pub(super) struct ApiState {
    service: Service,
    /// The name that this device sends to a reflector when they pair.
    own_name: PeerText,
    access: AccessGuard,
    /// The recent login attempts of all clients.
    attempts: login::SharedAttempts,
    /// Limits how many event streams are open at once. Each open stream holds a permit.
    event_places: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
    /// The test that the start button of the first page runs. The form can name another reflector. `Err` if the
    /// settings do not define a valid test.
    default_test: Result<TestRequest, CommandFailure>,
    /// The tests that run at present, each with its latest progress.
    live: LiveRuns,
    /// The running tests that clients started. The key is the id of the test. The sender cancels the test.
    tests: Arc<Mutex<HashMap<Uuid, watch::Sender<bool>>>>,
    /// Limits how many tests the clients of the TCP listener begin in a minute.
    starts: Arc<Mutex<TestStarts>>,
}

/// Serves the API on every listener until `stopping` becomes true. Then cancels the tests of clients, and ends when the
/// clients have their results, or after [`STOP_TIMEOUT`].
pub(crate) async fn serve(
    service: Service,
    own_name: PeerText,
    default_test: Result<TestRequest, CommandFailure>,
    listeners: Vec<ApiListener>,
    trusted_proxies: Vec<IpNetwork>,
    mut stopping: watch::Receiver<bool>,
) {
    let rules = AccessRules { trusted_proxies: trusted_proxies.clone() };
    let access = AccessGuard::new(service.appliance().clone(), rules);
    let event_places = Arc::new(Semaphore::new(events::MAX_STREAMS));
    let (tests, stop) = (Arc::default(), stopping.clone());
    let attempts = login::SharedAttempts::default();
    let live = LiveRuns::default();
    let following = live.clone().follow(service.updates().clone(), stopping.clone());
    let starts = Arc::default();
    let state = ApiState {
        service,
        own_name,
        default_test,
        live,
        access,
        attempts,
        event_places,
        stopping: stop,
        tests,
        starts,
    };
    let tests = Arc::clone(&state.tests);
    let app = routes(state);
    let mut served = tokio::task::JoinSet::new();
    served.spawn(following);
    for listener in listeners {
        served.spawn(listener.serve(app.clone(), trusted_proxies.clone(), stopping.clone()));
    }
    // The sender lives as long as the process, so this wait does not fail.
    stopping.wait_for(|wanted| *wanted).await.ok();
    for cancel in tests.lock().unwrap_or_else(PoisonError::into_inner).values() {
        cancel.send_replace(true);
    }
    let ended = async { while served.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
        tracing::warn!("the service stops before all clients have received their answers");
    }
}

fn routes(state: ApiState) -> Router {
    let api = api();
    let access = state.access.clone();
    Router::new()
        .nest(access::API, api.router)
        .route(metrics::PATH, get(metrics::show))
        .merge(pages::pages())
        .fallback(problem::no_route)
        .method_not_allowed_fallback(problem::no_method)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(middleware::from_fn_with_state(access, guard::check))
        .layer(middleware::from_fn(pages::dress))
        .with_state(state)
}

/// The router of the API, and the paths of its routes. The module `openapi` describes each route.
#[derive(Default)]
struct ApiRoutes {
    router: Router<ApiState>,
    paths: Vec<&'static str>,
}

impl ApiRoutes {
    fn route(mut self, path: &'static str, methods: MethodRouter<ApiState>) -> Self {
        self.paths.push(path);
        Self { router: self.router.route(path, methods), ..self }
    }
}

fn api() -> ApiRoutes {
    ApiRoutes::default()
        .route("/openapi.json", get(openapi::show))
        .route("/status", get(status))
        .route("/events", get(events::stream))
        .route("/schedules", get(schedules::list).post(schedules::add))
        .route("/schedules/proposals", post(schedules::propose))
        .route("/schedules/{name}", get(schedules::show).delete(schedules::remove))
        .route("/schedules/{name}/enable", post(schedules::enable))
        .route("/schedules/{name}/disable", post(schedules::disable))
        .route("/schedules/{name}/run", post(schedules::run))
        .route("/schedule-runs", get(schedules::runs))
        .route("/schedule-runs/cancel", post(schedules::cancel))
        .route("/schedule-runs/export", get(table_exports::schedule_runs))
        .route("/monitors", get(monitors::list).post(monitors::add))
        .route("/monitors/{name}", get(monitors::show).delete(monitors::remove))
        .route("/monitors/{name}/enable", post(monitors::enable))
        .route("/monitors/{name}/disable", post(monitors::disable))
        .route("/monitors/{name}/series", get(monitors::series))
        .route("/monitors/{name}/export", get(table_exports::monitor))
        .route("/outages", get(monitors::outages))
        .route("/outages/export", get(table_exports::outages))
        .route("/channels", get(channels::list).post(channels::add))
        .route("/channels/{name}", get(channels::show).delete(channels::remove))
        .route("/channels/{name}/enable", post(channels::enable))
        .route("/channels/{name}/disable", post(channels::disable))
        .route("/channels/{name}/test", post(channels::test))
        .route("/messages", get(channels::messages))
        .route("/rules", get(rules::list).post(rules::add))
        .route("/rule-suggestions", get(rules::suggested))
        .route("/rules/preview", post(rules::preview))
        .route("/rules/{name}", get(rules::show).delete(rules::remove))
        .route("/rules/{name}/enable", post(rules::enable))
        .route("/rules/{name}/disable", post(rules::disable))
        .route("/alerts", get(rules::alerts))
        .route(plan::ROUTE, get(plan::show).put(plan::set).delete(plan::clear))
        .route("/reflectors", get(reflectors::list).post(reflectors::pair))
        .route("/reflectors/imports", post(reflectors::import))
        .route("/reflectors/{reflector}", delete(reflectors::remove))
        .route("/reflectors/{reflector}/check", post(reflectors::check))
        .route("/reflectors/{reflector}/udp-check", post(reflectors::check_udp))
        .route("/reflectors/{reflector}/rename", post(reflectors::rename))
        .route(identity::ROTATION_ROUTE, post(identity::rotate_own))
        .route("/results", get(results::list))
        .route("/results/export", get(results::export))
        .route("/results/deletions", post(results::delete_several))
        .route("/results/prune", post(results::prune))
        .route(
            "/results/{id}",
            get(results::show)
                .delete(results::delete)
                .put(results::import)
                .layer(DefaultBodyLimit::max(results::MAX_RESULT_BYTES)),
        )
        .route(
            "/configuration",
            get(configuration::show)
                .post(configuration::apply)
                .layer(DefaultBodyLimit::max(configuration::MAX_CONFIGURATION_BYTES)),
        )
        .route("/store/backup", get(store::backup))
        .route("/store/check", get(store::check))
        .route("/store/prune", post(store::prune))
        .route("/results/{id}/series", get(results::series))
        .route("/report", get(report::show))
        .route("/tests", post(test_runs::run))
        .route("/tests/{id}/cancel", post(test_runs::cancel))
        .route("/tokens", get(tokens::list).post(tokens::add))
        .route("/tokens/{name}", delete(tokens::remove))
        .route("/setup-links", post(login::new_link))
        .route("/login", post(login::log_in))
        .route("/logout", post(login::log_out))
}

async fn status(State(state): State<ApiState>) -> Result<Json<ServiceStatus>, Problem> {
    Ok(Json(state.service.status(version::VERSION)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use axum::body::Body;
    use axum::http::header::ALLOW;
    use axum::http::{Method, Request, StatusCode};
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;
    use paramedic_appliance::app::Appliance;
    use paramedic_appliance::store::Retention;

    use super::connections::RequestSource;
    use super::*;
    use crate::cli::failure::{ExitStatus, describe};

    pub(super) async fn state(folder: &std::path::Path) -> ApiState {
        let appliance = Appliance::open(folder, describe).unwrap().0;
        let service = appliance.start_service(Retention::default(), false).await.unwrap();
        ApiState {
            access: AccessGuard::new(appliance, AccessRules::default()),
            service,
            own_name: PeerText::default(),
            default_test: Err(CommandFailure::new(ExitStatus::Usage, "bad_request", "no test", "it is a test", "none")),
            live: LiveRuns::default(),
            attempts: login::SharedAttempts::default(),
            event_places: Arc::new(Semaphore::new(1)),
            stopping: watch::channel(false).1,
            tests: Arc::default(),
            starts: Arc::default(),
        }
    }

    #[tokio::test]
    async fn every_route_is_described_and_every_description_has_a_route() {
        let folder = tempfile::tempdir().unwrap();
        let app = TowerToHyperService::new(routes(state(folder.path()).await));
        let mut found = BTreeSet::new();
        for path in api().paths {
            // No route has the method PATCH: the answer lists the methods that this route has.
            let request = Request::builder().method(Method::PATCH).uri(format!("{}{path}", access::API));
            let request = request.extension(RequestSource::User { uid: 0 }).body(Body::empty()).unwrap();
            let answer = app.call(request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
            let allowed = answer.headers()[ALLOW].to_str().unwrap().split(',');
            found.extend(allowed.filter(|method| *method != "HEAD").map(|method| (path.to_owned(), method.to_owned())));
        }
        assert_eq!(found, openapi::rows());
    }
}
