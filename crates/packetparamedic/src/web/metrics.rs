//! The route of the metrics for Prometheus.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE, VARY};
use axum::response::IntoResponse;
use paramedic_appliance::export::metrics;
use paramedic_host::metrics::MetricsFormat;

use super::ApiState;

/// The path that Prometheus requests by default.
pub(super) const PATH: &str = "/metrics";

pub(super) async fn show(State(state): State<ApiState>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join(",");
    let format = MetricsFormat::of_accept(&accept);
    let line = state.service.line_snapshot().await;
    ([(CONTENT_TYPE, format.content_type()), (VARY, "accept")], metrics::text(&line, format))
}
