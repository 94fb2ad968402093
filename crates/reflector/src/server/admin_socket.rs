//! The admin socket: how `reflector pair`, `peers`, `status` and the like talk to the running server. One JSON object
//! a line each way. Only root and the user of the reflector may use it.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use paramedic_host::config::Configuration;
use paramedic_link::state_folder::StateFolderError;
use paramedic_link::{EndpointId, PeerText};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

use super::peers::Removal;
use super::{CodeRequester, Lifecycle, PairedDevice, Server, UnavailableEngine, lock, pair};
use crate::config::Config;
use crate::event::{AuditEvent, RefusalReason};
use crate::pairing::OpenedCode;
use crate::sessions::Snapshot;

/// The version of this protocol. Both ends are one program, but not always one build.
const VERSION: u32 = 1;
/// The longest request, in bytes.
const MAX_REQUEST_BYTES: u64 = 4096;
/// How long a client may take to send its request or to read an answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the server may take to answer, a slow disk included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A request to the running server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub enum AdminRequest {
    /// Open a pairing code and wait until a device has paired; closing the connection revokes the code.
    Pair {
        /// How long the code is valid, in seconds.
        ttl_s: u64,
        /// The name to give to the device that pairs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<PeerText>,
    },
    /// List the paired devices.
    Peers,
    /// Pair a device by its Endpoint ID.
    AddPeer {
        peer: EndpointId,
        /// Its name at this reflector.
        name: PeerText,
    },
    /// Remove a peer: its links and sessions end at once.
    RemovePeer {
        /// Its Endpoint ID or name.
        peer: String,
    },
    /// Give a peer another name.
    RenamePeer {
        /// Its Endpoint ID or name.
        peer: String,
        /// The new name.
        name: PeerText,
    },
    /// Report the state of the server.
    Status,
    /// Read the configuration again.
    Reload,
    /// Grant no more sessions, and end once the running ones are over.
    Drain,
}

/// An answer of the server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub enum AdminReply {
    /// A pairing code is open.
    Code {
        code: String,
        /// How long it is valid, in seconds.
        expires_in_s: u64,
    },
    /// A device paired with it.
    Paired {
        endpoint_id: EndpointId,
        /// Its name at this reflector.
        name: PeerText,
    },
    /// The code ended without use.
    CodeClosed { why: String },
    /// The paired devices.
    Peers { peers: Vec<PeerLine> },
    /// The request was carried out.
    Done {
        /// What was done, in words.
        what: PeerText,
    },
    /// The configuration was read again. Both lists name settings that changed.
    Reloaded {
        /// What applies from now on.
        applied: Vec<String>,
        /// What applies after a restart.
        needs_restart: Vec<String>,
    },
    /// The configuration is not valid, and nothing was changed.
    BadConfig {
        /// Why, in words.
        because: String,
        /// What to do about it.
        #[serde(rename = "try")]
        try_: String,
    },
    /// The request failed.
    Failed {
        /// Why, in words.
        because: String,
    },
    /// The state of the server.
    Status(Box<Status>),
}

/// One paired device.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub struct PeerLine {
    pub endpoint_id: EndpointId,
    /// Its name at this reflector.
    pub name: PeerText,
    /// `store`, or `config` where `authorized_peers` names it.
    pub from: String,
    /// Whether it has an open link.
    pub linked: bool,
}

/// The state of the server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub struct Status {
    /// The program's version.
    pub version: String,
    pub endpoint_id: EndpointId,
    /// The name of the reflector.
    pub name: String,
    /// How long the reflector has been serving, in seconds.
    pub uptime_s: u64,
    /// `serving`, `draining` or `faulted`.
    pub state: String,
    /// Current problems, as text.
    pub problems: Vec<String>,
    /// The data modes on offer.
    pub data_modes: Vec<paramedic_link::test_spec::DataMode>,
    /// The engines on offer.
    pub engines: Vec<paramedic_link::test_spec::EngineId>,
    /// Engines that are configured but not available, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engines_lacking: Vec<UnavailableEngine>,
    /// Open links.
    pub links: usize,
    /// Paired devices.
    pub peers: usize,
    /// Sessions, queue, ports and quota usage.
    pub sessions: Snapshot,
    /// Datagrams since the start that arrived for a session from another address than its device's: address translation
    /// changes their source, or a client guesses.
    #[serde(default)]
    pub datagrams_from_elsewhere: u64,
    /// Refusals since the start, by reason.
    pub refused: std::collections::BTreeMap<RefusalReason, u64>,
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    v: u32,
    #[serde(flatten)]
    body: T,
}

/// A bound admin socket. Its file is removed when this is dropped.
pub(super) struct Admin {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Admin {
    fn drop(&mut self) {
        // The file may be gone already.
        std::fs::remove_file(&self.path).ok();
    }
}

/// Binds the socket at `path`, 0660. A socket that a killed server left is replaced; one that answers is not.
pub(super) fn bind(path: &Path) -> anyhow::Result<Admin> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let owner = std::fs::metadata(folder).with_context(|| format!("cannot read {}", folder.display()))?.uid();
        let user = rustix::process::geteuid().as_raw();
        // Its owner could replace the socket.
        if owner != user && owner != 0 {
            return Err(StateFolderError::Foreign { path: folder.to_owned(), owner, user }.into());
        }
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        anyhow::bail!("another reflector is already running: {} answers", path.display());
    }
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot replace {}", path.display())),
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot bind {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    Ok(Admin { listener, path: path.to_owned() })
}

/// Answers requests until the future is dropped.
pub(super) async fn run(server: Arc<Server>, admin: Admin) {
    loop {
        let capacity = server.capacity.notified();
        match admin.listener.accept().await {
            Ok((stream, _)) => {
                let server = Arc::clone(&server);
                tokio::spawn(async move {
                    if let Err(error) = answer(&server, stream).await {
                        tracing::debug!(%error, "an admin client went away");
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, "the admin socket can't accept");
                server.refuse(std::net::Ipv4Addr::LOCALHOST.into(), RefusalReason::Descriptors, None);
                tokio::time::timeout(Duration::from_secs(1), capacity).await.ok();
            }
        }
    }
}

async fn answer(server: &Arc<Server>, stream: UnixStream) -> anyhow::Result<()> {
    let user = stream.peer_cred()?.uid();
    let (read, mut write) = stream.into_split();
    if user != 0 && user != rustix::process::geteuid().as_raw() {
        server.refuse(std::net::Ipv4Addr::LOCALHOST.into(), RefusalReason::AdminUser, None);
        return reply(
            &mut write,
            &AdminReply::Failed { because: "only the user of the reflector and root are allowed".into() },
        )
        .await;
    }
    let mut read = BufReader::new(read);
    let mut line = String::new();
    tokio::time::timeout(CLIENT_TIMEOUT, (&mut read).take(MAX_REQUEST_BYTES).read_line(&mut line)).await??;
    let request = match read_request(&line) {
        Ok(request) => request,
        Err(because) => return reply(&mut write, &AdminReply::Failed { because }).await,
    };
    if let AdminRequest::Pair { ttl_s, name } = request {
        return open_code(server, ttl_s, name, read, write).await;
    }
    let answer = match execute(server, request).await {
        Ok(answer) => answer,
        Err(error) => AdminReply::Failed { because: format!("{error:#}") },
    };
    reply(&mut write, &answer).await
}

/// The request in the line of a client. Public for its fuzz target.
///
/// # Errors
/// The text that answers it.
#[doc(hidden)]
pub fn read_request(line: &str) -> Result<AdminRequest, String> {
    match serde_json::from_str(line) {
        Ok(Envelope { v: VERSION, body }) => Ok(body),
        Ok(_) => {
            Err("this command and the running reflector have different versions; restart the reflector".to_owned())
        }
        Err(error) => Err(format!("not a valid request: {error}")),
    }
}

/// The line of a request. Public for its fuzz target.
///
/// # Errors
/// None that is known: every request can be written as JSON.
#[doc(hidden)]
pub fn write_request(request: &AdminRequest) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&Envelope { v: VERSION, body: request })?;
    line.push(b'\n');
    Ok(line)
}

async fn execute(server: &Arc<Server>, request: AdminRequest) -> anyhow::Result<AdminReply> {
    Ok(match request {
        AdminRequest::Pair { .. } => AdminReply::Failed { because: "pairing needs an open connection".into() },
        AdminRequest::Peers => AdminReply::Peers { peers: peer_lines(server) },
        AdminRequest::AddPeer { peer, name } => {
            if peer == server.id {
                return Ok(AdminReply::Failed { because: "this is the Endpoint ID of this reflector".into() });
            }
            let (name, is_new) = server.peers.add(peer, &name, "hand").await?;
            AdminReply::Done {
                what: PeerText::new(&format!("{} {name}", if is_new { "added" } else { "already paired:" })),
            }
        }
        AdminRequest::RemovePeer { peer } => match server.peers.find(&peer) {
            None => AdminReply::Failed { because: format!("no paired device is called {}", PeerText::new(&peer)) },
            Some(id) => match server.peers.remove(id).await? {
                Removal::NotThere => AdminReply::Failed { because: "no such device is paired".into() },
                Removal::InConfig => AdminReply::Failed {
                    because: "it is set in authorized_peers: remove it there, then run `reflector config reload`"
                        .into(),
                },
                Removal::Removed => {
                    server.disconnect_peer(id);
                    server.forget_prefixes(id);
                    // The device is removed, also if its line of the audit log stays owed.
                    server.peers.settle().await;
                    AdminReply::Done { what: PeerText::new("removed; its links and sessions were ended") }
                }
            },
        },
        AdminRequest::RenamePeer { peer, name } => match server.peers.find(&peer) {
            Some(id) => {
                pair::rename(server, id, &name).await?;
                AdminReply::Done { what: PeerText::new(&format!("renamed to {name}")) }
            }
            None => AdminReply::Failed { because: "no such device is paired".into() },
        },
        AdminRequest::Status => AdminReply::Status(Box::new(status(server))),
        AdminRequest::Reload => match server.reload() {
            Ok(changed) => {
                let names = |settings: Vec<&str>| settings.into_iter().map(str::to_owned).collect();
                AdminReply::Reloaded { applied: names(changed.applied), needs_restart: names(changed.needs_restart) }
            }
            Err(error) => AdminReply::BadConfig { because: error.to_string(), try_: error.remedy(Config::PROGRAM) },
        },
        AdminRequest::Drain => {
            server.lifecycle.send_if_modified(|stage| {
                let drains = *stage == Lifecycle::Serving;
                *stage = (*stage).max(Lifecycle::Draining);
                drains
            });
            AdminReply::Done {
                what: PeerText::new("draining: the reflector stops when its running sessions have finished"),
            }
        }
    })
}

fn peer_lines(server: &Server) -> Vec<PeerLine> {
    let links = lock(&server.links);
    let linked = |id| links.values().any(|link| link.peer == id);
    let lines = server.peers.list().into_iter();
    lines
        .map(|(id, name, from)| PeerLine { endpoint_id: id, name, from: from.to_owned(), linked: linked(id) })
        .collect()
}

fn status(server: &Server) -> Status {
    let stage = *server.lifecycle.borrow();
    let problems = server.problems();
    let state = match stage {
        Lifecycle::Serving if !problems.is_empty() => "faulted",
        Lifecycle::Serving => "serving",
        Lifecycle::Draining | Lifecycle::Stopping => "draining",
    };
    let (sessions, limits) = {
        let sessions = server.sessions();
        (sessions.snapshot(server.now()), sessions.limits().clone())
    };
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        endpoint_id: server.id,
        name: server.config().name.to_string(),
        uptime_s: server.began.elapsed().as_secs(),
        state: state.to_owned(),
        problems,
        data_modes: limits.data_modes,
        engines: limits.engines,
        engines_lacking: server.unavailable.clone(),
        links: lock(&server.links).len(),
        peers: server.peers.list().len(),
        sessions,
        datagrams_from_elsewhere: server.datagrams_from_elsewhere(),
        refused: lock(&server.throttle).refused(),
    }
}

/// Opens a code and waits for the device that pairs with it; a client that closes its connection revokes the code.
async fn open_code(
    server: &Arc<Server>,
    ttl_s: u64,
    name: Option<PeerText>,
    mut read: BufReader<OwnedReadHalf>,
    mut write: OwnedWriteHalf,
) -> anyhow::Result<()> {
    let ttl = Duration::from_secs(ttl_s);
    let (over, mut ended) = oneshot::channel();
    let opened = {
        let mut pairing = lock(&server.pairing);
        pairing.open(ttl, server.now().mono).inspect(|opened| {
            *lock(&server.code_requester) =
                Some(CodeRequester { code: opened.id, wanted_name: name, over: Some(over) });
        })
    };
    let expired = tokio::time::sleep(ttl);
    // The code is sent and dropped; `pairing` keeps the only other copy.
    let OpenedCode { code, id } = match opened {
        Ok(opened) => opened,
        Err(error) => return reply(&mut write, &AdminReply::Failed { because: error.to_string() }).await,
    };
    let recorded = server.audit.record(vec![AuditEvent::CodeOpened { ttl_s }]).await;
    let is_sent = match &recorded {
        Ok(()) => reply(&mut write, &AdminReply::Code { code, expires_in_s: ttl_s }).await.is_ok(),
        Err(_) => false,
    };
    let mut byte = [0; 1];
    let mut end = None;
    let why = tokio::select! {
        () = std::future::ready(()), if !is_sent => "revoked",
        _ = read.read(&mut byte) => "revoked",
        () = expired => "expired",
        paired = &mut ended => {
            end = paired.ok();
            // Another code was opened after this one.
            "expired"
        }
    };
    if end.is_none() {
        lock(&server.pairing).revoke(id);
        // A device that proved in time is paired first; then the end of the code is reported.
        server.await_no_claim(id).await;
        end = ended.try_recv().ok();
    }
    let why = match end {
        Some(PairedDevice(endpoint_id, name)) => {
            return reply(&mut write, &AdminReply::Paired { endpoint_id, name }).await;
        }
        None => why,
    };
    if let Err(fault) = recorded {
        return reply(&mut write, &AdminReply::Failed { because: fault.to_string() }).await;
    }
    server.record(vec![AuditEvent::CodeClosed { why: why.to_owned() }]).await;
    reply(&mut write, &AdminReply::CodeClosed { why: why.to_owned() }).await
}

async fn reply(write: &mut OwnedWriteHalf, answer: &AdminReply) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(&Envelope { v: VERSION, body: answer })?;
    line.push(b'\n');
    tokio::time::timeout(CLIENT_TIMEOUT, write.write_all(&line)).await??;
    Ok(())
}

/// The other end: a command of this program that asks the running server.
pub struct AdminClient {
    /// The user of the server.
    server_user: u32,
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl AdminClient {
    /// Connects to the server whose socket is at `path`.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path).await?;
        let server_user = stream.peer_cred()?.uid();
        let (read, write) = stream.into_split();
        Ok(Self { server_user, read: BufReader::new(read), write })
    }

    /// The user that the server runs as, as reported by the kernel.
    pub fn server_user(&self) -> u32 {
        self.server_user
    }

    /// Sends a request. [`AdminClient::next`] returns the answers.
    pub async fn ask(&mut self, ask: &AdminRequest) -> anyhow::Result<()> {
        Ok(self.write.write_all(&write_request(ask)?).await?)
    }

    /// Receives the only answer to a request. Fails if the server takes too long.
    pub async fn answer(&mut self) -> anyhow::Result<Option<AdminReply>> {
        tokio::time::timeout(ANSWER_TIMEOUT, self.next())
            .await
            .context("it is running, but did not answer within 30 s")?
    }

    /// The next answer, however long it takes; `None` when the server is done.
    pub async fn next(&mut self) -> anyhow::Result<Option<AdminReply>> {
        let mut line = String::new();
        if self.read.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let Envelope { v, body } =
            serde_json::from_str::<Envelope<AdminReply>>(&line).context("its answer is not valid")?;
        anyhow::ensure!(v == VERSION, "this command and the running reflector have different versions");
        Ok(Some(body))
    }
}
