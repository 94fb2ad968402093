//! The client of the running service, for commands that ask the service instead of opening the store.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use uuid::Uuid;

use super::extract::encoded;
use super::problem::Problem;
use super::test_runs::TestLine;
use crate::cli::failure::{CommandFailure, ExitStatus};

/// The timeout for an answer of the service, long enough for a slow disk.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum length of an answer, in bytes; a result document is far smaller.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// The runtime folder that only root can create. Commands trust a service that listens there, whichever user runs it.
const ROOT_RUNTIME_DIR: &str = "/run/packetparamedic";

/// A client of the running service.
pub(crate) struct ServiceClient {
    socket: PathBuf,
}

/// What a command found at the sockets of a service.
pub(crate) enum FoundService {
    /// A service that accepts connections and that this user can trust.
    Running(ServiceClient),
    /// A socket at which no program listens, because its service was killed.
    Stale(PathBuf),
    /// A socket that this user may not use, or at which another user's program listens.
    Denied(PathBuf, io::Error),
    /// There is no socket.
    None,
}

impl ServiceClient {
    /// Looks for a service at the first of `sockets` that exists.
    pub(crate) async fn find(sockets: &[PathBuf]) -> FoundService {
        for socket in sockets {
            match connect(socket).await {
                Ok(_) => return FoundService::Running(Self { socket: socket.clone() }),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    return FoundService::Stale(socket.clone());
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return FoundService::Denied(socket.clone(), error);
                }
                // There is no socket, or its path is not valid.
                Err(_) => {}
            }
        }
        FoundService::None
    }

    /// Requests `route`, which is relative to /api/v1, and parses the JSON of the answer.
    pub(crate) async fn get<T: DeserializeOwned>(&self, route: &str) -> Result<T, CommandFailure> {
        read(self.answer(Method::GET, route, Bytes::new()).await?)
    }

    /// Requests `route`, and returns the answer as text.
    pub(crate) async fn get_text(&self, route: &str) -> Result<String, CommandFailure> {
        let bytes = self.answer(Method::GET, route, Bytes::new()).await?;
        String::from_utf8(bytes.into()).map_err(|error| broken(&error))
    }

    /// Requests `route`, and returns a reader of the lines of the answer.
    pub(crate) async fn lines(&self, route: &str) -> Result<LineReader, CommandFailure> {
        Ok(LineReader::of(self.opened(Method::GET, route, Bytes::new()).await?))
    }

    /// Requests `route` without a timeout, and parses the JSON of the answer.
    pub(crate) async fn get_slow<T: DeserializeOwned>(&self, route: &str) -> Result<T, CommandFailure> {
        read(whole(&mut self.opened(Method::GET, route, Bytes::new()).await?).await?)
    }

    /// Posts a JSON body to `route` without a timeout, and parses the JSON of the answer.
    pub(crate) async fn post_slow<T: DeserializeOwned>(
        &self,
        route: &str,
        body: &impl Serialize,
    ) -> Result<T, CommandFailure> {
        read(whole(&mut self.opened(Method::POST, route, json(body)?).await?).await?)
    }

    /// Requests `route`, and returns a reader of the bytes of the answer.
    pub(crate) async fn chunks(&self, route: &str) -> Result<ChunkReader, CommandFailure> {
        Ok(ChunkReader { body: self.opened(Method::GET, route, Bytes::new()).await? })
    }

    /// Sends a request, and returns the body of a successful answer. Any other answer is a failure.
    async fn opened(&self, method: Method, route: &str, body: Bytes) -> Result<Incoming, CommandFailure> {
        let response = self.send(method, route, body).await?;
        let status = response.status();
        let mut body = response.into_body();
        if status.is_success() { Ok(body) } else { Err(problem(&whole(&mut body).await?)) }
    }

    /// Posts a JSON body to `route`, and parses the JSON of the answer.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        route: &str,
        body: &impl Serialize,
    ) -> Result<T, CommandFailure> {
        read(self.answer(Method::POST, route, json(body)?).await?)
    }

    /// Sends a PUT request with the body `text` to `route`, and parses the JSON of the answer.
    pub(crate) async fn put<T: DeserializeOwned>(&self, route: &str, text: String) -> Result<T, CommandFailure> {
        read(self.answer(Method::PUT, route, text.into()).await?)
    }

    /// Sends a DELETE request to `route`, and parses the JSON of the answer.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, route: &str) -> Result<T, CommandFailure> {
        read(self.answer(Method::DELETE, route, Bytes::new()).await?)
    }

    /// The API route of the schedule `name`. `action` is empty, or a suffix such as `/run`.
    pub(crate) fn schedule_route(name: &str, action: &str) -> String {
        format!("/schedules/{}{action}", encoded(name))
    }

    /// The API route that lists the latest runs of the schedule `name`, at most `limit` of them. If `name` is `None`,
    /// the runs of all schedules.
    pub(crate) fn runs_route(name: Option<&str>, limit: u32) -> String {
        let of = name.map(|name| format!("&schedule={}", encoded(name))).unwrap_or_default();
        format!("/schedule-runs?limit={}{of}", limit.clamp(1, 1000))
    }

    /// The API route of the token with this name.
    pub(crate) fn token_route(name: &str) -> String {
        format!("/tokens/{}", encoded(name))
    }

    /// The API route of the result with this id.
    pub(crate) fn result_route(id: &str) -> String {
        format!("/results/{}", encoded(id))
    }

    /// Starts a test in the service. Fails if the service does not accept the test.
    pub(crate) async fn test(&self, request: &impl Serialize) -> Result<RemoteTest, CommandFailure> {
        let body = self.opened(Method::POST, "/tests", json(request)?).await?;
        let mut lines = LineReader::of(body);
        match lines.test_line().await? {
            Some(TestLine::Accepted(id)) => Ok(RemoteTest { lines, id, socket: self.socket.clone() }),
            other => Err(broken(&format!("the first line of its answer is {other:?}"))),
        }
    }

    async fn answer(&self, method: Method, route: &str, body: Bytes) -> Result<Bytes, CommandFailure> {
        let answer = async {
            let mut body = self.opened(method, route, body).await?;
            whole(&mut body).await
        };
        let late = |_| broken(&format!("the service did not answer within {} s", ANSWER_TIMEOUT.as_secs()));
        tokio::time::timeout(ANSWER_TIMEOUT, answer).await.map_err(late)?
    }

    async fn send(&self, method: Method, route: &str, body: Bytes) -> Result<Response<Incoming>, CommandFailure> {
        let stream = connect(&self.socket).await.map_err(|error| broken(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the service failed");
            }
        });
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1{route}"))
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| broken(&error))?;
        sender.send_request(request).await.map_err(|error| broken(&error))
    }
}

/// A test that the service runs. Dropping this value cancels the test.
pub(crate) struct RemoteTest {
    lines: LineReader,
    id: Uuid,
    socket: PathBuf,
}

impl RemoteTest {
    /// Waits for the next line about the test: an event, or the end of the test. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<TestLine, CommandFailure> {
        self.lines.test_line().await?.ok_or_else(|| broken(&"the answer ended before the test did"))
    }

    /// Asks the service to end the test. The measurements so far are kept, and [`RemoteTest::next`] still returns the
    /// lines up to the end of the test.
    pub(crate) async fn cancel(&self) -> Result<(), CommandFailure> {
        let service = ServiceClient { socket: self.socket.clone() };
        let route = format!("/tests/{}/cancel", self.id);
        service.answer(Method::POST, &route, Bytes::new()).await.map(drop)
    }
}

/// Reads the body of an answer as its bytes arrive.
pub(crate) struct ChunkReader {
    body: Incoming,
}

impl ChunkReader {
    /// Waits for the next bytes of the answer; `None` at its end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, CommandFailure> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(&error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

/// Reads the body of an answer line by line.
pub(crate) struct LineReader {
    body: ChunkReader,
    /// The start of a line whose end has not arrived yet.
    part: Vec<u8>,
    /// Whole lines that the caller has not taken yet.
    ready: VecDeque<String>,
}

impl LineReader {
    fn of(body: Incoming) -> Self {
        Self { body: ChunkReader { body }, part: Vec::new(), ready: VecDeque::new() }
    }

    /// Waits for the next lines of the answer, without newlines; `None` at its end. Cancel safe.
    pub(crate) async fn next_lines(&mut self) -> Result<Option<Vec<String>>, CommandFailure> {
        let is_open = self.fill().await?;
        Ok(is_open.then(|| self.ready.drain(..).collect()))
    }

    /// Waits for the next line about a test; `None` at the end of the answer. Cancel safe.
    async fn test_line(&mut self) -> Result<Option<TestLine>, CommandFailure> {
        self.fill().await?;
        let Some(line) = self.ready.pop_front() else { return Ok(None) };
        serde_json::from_str(&line).map(Some).map_err(|error| broken(&error))
    }

    /// Reads until a whole line is ready; `false` at the end of the answer.
    async fn fill(&mut self) -> Result<bool, CommandFailure> {
        while self.ready.is_empty() {
            if self.part.len() > MAX_ANSWER_BYTES {
                return Err(broken(&"a line of the answer is too long"));
            }
            match self.body.next().await? {
                None if self.part.is_empty() => return Ok(false),
                None => return Err(broken(&"the answer ended within a line")),
                Some(data) => self.part.extend_from_slice(&data),
            }
            let Some(end) = self.part.iter().rposition(|byte| *byte == b'\n') else { continue };
            let rest = self.part.split_off(end + 1);
            let whole = String::from_utf8(std::mem::replace(&mut self.part, rest)).map_err(|error| broken(&error))?;
            self.ready.extend(whole.lines().map(str::to_owned));
        }
        Ok(true)
    }
}

async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket).await?;
    let server = stream.peer_cred()?.uid();
    let own = rustix::process::geteuid().as_raw();
    // Requests must only reach a service that this user can trust.
    if server != 0 && server != own && socket.parent() != Some(Path::new(ROOT_RUNTIME_DIR)) {
        let text = format!("a program of the user with the id {server} listens there, not one of root or of this user");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(stream)
}

async fn whole(body: &mut Incoming) -> Result<Bytes, CommandFailure> {
    let read = http_body_util::Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    read.map(http_body_util::Collected::to_bytes).map_err(|error| broken(&error))
}

fn json(body: &impl Serialize) -> Result<Bytes, CommandFailure> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|error| broken(&error))
}

fn read<T: DeserializeOwned>(bytes: Bytes) -> Result<T, CommandFailure> {
    serde_json::from_slice(&bytes).map_err(|error| broken(&error))
}

fn problem(bytes: &[u8]) -> CommandFailure {
    match serde_json::from_slice::<Problem>(bytes) {
        Ok(problem) => problem.into_failure(),
        Err(error) => broken(&error),
    }
}

/// The failure of a command because the service did not answer as expected.
fn broken(error: &dyn std::fmt::Display) -> CommandFailure {
    CommandFailure::new(
        ExitStatus::Failed,
        "service_broken",
        "the service does not answer as expected",
        error,
        "check that the service and this command have the same version, and read the service's log; with --local this \
         command does not use the service",
    )
}
