//! The API routes of the store: backup, check, prune.

use std::fs::File;
use std::io::{self, Read};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use paramedic_appliance::store::{Pruned, StoreCheck};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::ApiState;
use super::chunks::{self, ChunkSender};
use super::extract::ApiBody;
use super::problem::Problem;

/// The length of a chunk of the database copy, in bytes.
const CHUNK: usize = 256 * 1024;

/// Limits database copies to one at a time, because each takes as much disk space as the database.
static COPIES: Semaphore = Semaphore::const_new(1);

/// A request to delete stored data that is older than the retention settings of the service allow.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct StorePruneRequest {
    /// Whether the rows are only counted, not deleted.
    #[serde(default)]
    pub(crate) dry_run: bool,
}

/// Answers with a consistent copy of the database.
pub(super) async fn backup(State(state): State<ApiState>) -> Result<impl IntoResponse, Problem> {
    // The semaphore is never closed, so this does not fail.
    let turn = COPIES.acquire().await.ok();
    let copy = state.service.appliance().copy_of_store().await?;
    let (sender, body) = chunks::body();
    tokio::task::spawn_blocking(move || {
        let _turn = turn;
        // Dropping the copy at the end removes it.
        if let Err(error) = send(copy.as_file(), &sender) {
            tracing::warn!(%error, "the copy of the database cannot be read");
            sender.blocking_send(Err(error)).ok();
        }
    });
    Ok(([(CONTENT_TYPE, "application/vnd.sqlite3")], body))
}

/// Sends a file in chunks, up to its end or until the client has disconnected.
fn send(file: &File, sender: &ChunkSender) -> io::Result<()> {
    loop {
        let mut chunk = Vec::new();
        file.take(CHUNK as u64).read_to_end(&mut chunk)?;
        if chunk.is_empty() || sender.blocking_send(Ok(Bytes::from(chunk))).is_err() {
            return Ok(());
        }
    }
}

pub(super) async fn check(State(state): State<ApiState>) -> Result<Json<StoreCheck>, Problem> {
    Ok(Json(state.service.appliance().check_store().await?))
}

pub(super) async fn prune(
    State(state): State<ApiState>,
    ApiBody(StorePruneRequest { dry_run }): ApiBody<StorePruneRequest>,
) -> Result<Json<Pruned>, Problem> {
    Ok(Json(state.service.appliance().prune(&state.service.retention(), dry_run).await?))
}
