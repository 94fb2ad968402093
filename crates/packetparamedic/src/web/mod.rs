//! The API of the running service, /api/v1, on its unix socket. A thin client of the appliance's `app`.

pub(crate) mod client;
mod extract;
pub(crate) mod monitors;
pub(crate) mod problem;
pub(crate) mod reflectors;
mod results;
mod schedules;
pub(crate) mod test_runs;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, DefaultBodyLimit, MatchedPath, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use axum::serve::{IncomingStream, Listener};
use axum::{Json, Router};
use paramedic_appliance::app::{Service, ServiceStatus};
use paramedic_host::unix_socket::UnixSocket;
use paramedic_host::version;
use paramedic_link::PeerText;
use tokio::net::UnixStream;
use tokio::sync::watch;
use uuid::Uuid;

use problem::Problem;

/// The longest body of a request, in bytes.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// How long the clients' tests may take to end when the service stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How long to wait after a connection could not be accepted.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What the routes share.
#[derive(Clone)]
pub(super) struct ApiState {
    service: Service,
    /// The name that this device gives when it pairs.
    own_name: PeerText,
    /// The tests that clients run, with their cancellation.
    tests: Arc<Mutex<HashMap<Uuid, watch::Sender<bool>>>>,
}

/// The user at the other end of the socket, as reported by the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PeerUser {
    uid: u32,
}

/// Serves the API until `stopping` becomes true; then cancels the tests of clients and ends when they have their results.
/// The kernel lets connect: root, the user of the service, and the group of the socket. All of them may do everything.
pub(crate) async fn serve(
    service: Service,
    own_name: PeerText,
    socket: UnixSocket,
    mut stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let state = ApiState { service, own_name, tests: Arc::default() };
    let tests = Arc::clone(&state.tests);
    let app = routes(state).into_make_service_with_connect_info::<PeerUser>();
    let (is_cancelled, mut cancelled) = watch::channel(false);
    let stop = async move {
        // The sender is dropped only with the process.
        stopping.wait_for(|wanted| *wanted).await.ok();
        for cancel in tests.lock().unwrap_or_else(PoisonError::into_inner).values() {
            cancel.send_replace(true);
        }
        is_cancelled.send_replace(true);
    };
    let late = async {
        cancelled.wait_for(|cancelled| *cancelled).await.ok();
        tokio::time::sleep(STOP_TIMEOUT).await;
    };
    tokio::select! {
        served = axum::serve(ApiListener(socket), app).with_graceful_shutdown(stop) => served,
        () = late => Ok(()),
    }
}

fn routes(state: ApiState) -> Router {
    let api = Router::new()
        .route("/status", get(status))
        .route("/schedules", get(schedules::list).post(schedules::add))
        .route("/schedules/proposals", post(schedules::propose))
        .route("/schedules/{name}", get(schedules::show).delete(schedules::remove))
        .route("/schedules/{name}/enable", post(schedules::enable))
        .route("/schedules/{name}/disable", post(schedules::disable))
        .route("/schedules/{name}/run", post(schedules::run))
        .route("/schedule-runs", get(schedules::runs))
        .route("/schedule-runs/cancel", post(schedules::cancel))
        .route("/monitors", get(monitors::list).post(monitors::add))
        .route("/monitors/{name}", get(monitors::show).delete(monitors::remove))
        .route("/monitors/{name}/enable", post(monitors::enable))
        .route("/monitors/{name}/disable", post(monitors::disable))
        .route("/monitors/{name}/series", get(monitors::series))
        .route("/outages", get(monitors::outages))
        .route("/reflectors", get(reflectors::list).post(reflectors::pair))
        .route("/results", get(results::list))
        .route("/results/{id}", get(results::show))
        .route("/tests", post(test_runs::run))
        .route("/tests/{id}/cancel", post(test_runs::cancel));
    Router::new()
        .nest("/api/v1", api)
        .fallback(problem::no_route)
        .method_not_allowed_fallback(problem::no_method)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(middleware::from_fn(log_change))
        .with_state(state)
}

/// Logs each accepted request that is no reading, with the user who sent it.
async fn log_change(ConnectInfo(peer): ConnectInfo<PeerUser>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    if !method.is_safe() && response.status().is_success() {
        tracing::info!(%method, path, uid = peer.uid, "a client's request");
    }
    response
}

async fn status(State(state): State<ApiState>) -> Result<Json<ServiceStatus>, Problem> {
    Ok(Json(state.service.status(version::VERSION)))
}

struct ApiListener(UnixSocket);

impl Listener for ApiListener {
    type Io = UnixStream;
    type Addr = PeerUser;

    async fn accept(&mut self) -> (UnixStream, PeerUser) {
        loop {
            let accepted = self.0.accept().await.and_then(|stream| Ok((stream.peer_cred()?.uid(), stream)));
            match accepted {
                Ok((uid, stream)) => return (stream, PeerUser { uid }),
                Err(error) => {
                    tracing::debug!(%error, "the socket of the service cannot accept");
                    tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<PeerUser> {
        Ok(PeerUser { uid: rustix::process::geteuid().as_raw() })
    }
}

impl Connected<IncomingStream<'_, ApiListener>> for PeerUser {
    fn connect_info(stream: IncomingStream<'_, ApiListener>) -> Self {
        *stream.remote_addr()
    }
}
