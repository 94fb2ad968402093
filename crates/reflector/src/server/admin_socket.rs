//! The admin socket, through which `reflector pair`, `peers`, `status` and other commands talk to the running server.
//! Requests and answers are JSON objects, one in each line. Only root and the user of the reflector may connect.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use paramedic_host::config::Configuration;
use paramedic_host::unix_socket::UnixSocket;
use paramedic_link::{EndpointId, PeerText};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

use super::peers::Removal;
use super::{CodeRequester, Lifecycle, PairedDevice, Server, lock, pair, status};
use crate::config::Config;
use crate::event::{AuditEvent, RefusalReason};
use crate::pairing::OpenedCode;
use crate::status::Status;

/// The version of the admin socket's protocol. Both ends are the same program, but not always the same build.
const VERSION: u32 = 1;
/// The maximum length of a request, in bytes.
const MAX_REQUEST_BYTES: u64 = 4096;
/// How long a client may take to send its request, or to read an answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the server may take to answer. A slow disk may delay it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A request to the running server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub enum AdminRequest {
    /// Opens a pairing code, and waits until a device has paired with it. If the client closes the connection, the code
    /// is revoked.
    Pair {
        /// How long the code is valid, in seconds.
        ttl_s: u64,
        /// The name for the device that pairs; `None`: the name that the device sends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<PeerText>,
    },
    /// Lists the paired devices.
    Peers,
    /// Pairs a device by its Endpoint ID, without a code.
    AddPeer {
        peer: EndpointId,
        /// The name of the device at this reflector.
        name: PeerText,
    },
    /// Removes a peer. Its links and sessions end at once.
    RemovePeer {
        /// The Endpoint ID or the name of the peer.
        peer: String,
    },
    /// Gives a peer another name.
    RenamePeer {
        /// The Endpoint ID or the present name of the peer.
        peer: String,
        /// The new name of the peer.
        name: PeerText,
    },
    /// Asks for the state of the server.
    Status,
    /// Reads the configuration again.
    Reload,
    /// Grants no more sessions, and ends the server once the running sessions have ended.
    Drain,
}

/// An answer of the running server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub enum AdminReply {
    /// A pairing code is open.
    Code {
        code: String,
        /// How long the code is valid, in seconds.
        expires_in_s: u64,
    },
    /// A device paired with the code.
    Paired {
        endpoint_id: EndpointId,
        /// The name of the device at this reflector.
        name: PeerText,
    },
    /// The code was closed without use: it `expired` or was `revoked`.
    CodeClosed { why: String },
    /// The list of paired devices.
    Peers { peers: Vec<PeerLine> },
    /// The server has carried out the request.
    Done {
        /// What the server did, in words.
        what: PeerText,
    },
    /// The server has read the configuration again. Both lists name changed settings.
    Reloaded {
        /// The settings that apply from now on.
        applied: Vec<String>,
        /// The settings that apply only after a restart.
        needs_restart: Vec<String>,
    },
    /// The configuration is not valid, and nothing was changed.
    BadConfig {
        /// Why the configuration is not valid, in words.
        because: String,
        /// How to fix the configuration, in words.
        #[serde(rename = "try")]
        try_: String,
    },
    /// The request failed.
    Failed {
        /// Why the request failed, in words.
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
    /// The name of the device at this reflector.
    pub name: PeerText,
    /// Where the pairing is stored: `store` (the database), or `config` (the setting `authorized_peers`).
    pub from: String,
    /// Whether the device has an open link.
    pub linked: bool,
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    v: u32,
    #[serde(flatten)]
    body: T,
}

/// Answers requests at the admin socket until the future is dropped.
pub(super) async fn run(server: Arc<Server>, admin: UnixSocket) {
    loop {
        let capacity = server.capacity.notified();
        match admin.accept().await {
            Ok(stream) => {
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

/// Parses one line that a client sent. Public only for its fuzz target.
///
/// # Errors
///
/// Returns the text with which the server answers a line that is not a valid request.
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

/// Writes a request as a line. Public only for its fuzz target.
///
/// # Errors
///
/// Fails if the request cannot be written as JSON. No such request is known.
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
                    because: "the device is in authorized_peers: remove it there, then run `reflector config reload`"
                        .into(),
                },
                Removal::Removed => {
                    server.disconnect_peer(id);
                    server.forget_prefixes(id);
                    // The device is removed even if its line of the audit log stays owed.
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
        AdminRequest::Status => AdminReply::Status(Box::new(status::read(server))),
        AdminRequest::Reload => match server.reload().await {
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

/// Opens a pairing code, and waits for the device that pairs with it. If the client closes the connection, the code is
/// revoked.
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

/// The client end of the admin socket, with which a command sends requests to the running server.
pub struct AdminClient {
    /// The user id of the server process.
    server_user: u32,
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl AdminClient {
    /// Connects to the server whose admin socket is at `path`.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path).await?;
        let server_user = stream.peer_cred()?.uid();
        let (read, write) = stream.into_split();
        Ok(Self { server_user, read: BufReader::new(read), write })
    }

    /// The user id of the server process, as the kernel reports it.
    pub fn server_user(&self) -> u32 {
        self.server_user
    }

    /// Sends a request. [`AdminClient::next`] returns the answers.
    pub async fn ask(&mut self, ask: &AdminRequest) -> anyhow::Result<()> {
        Ok(self.write.write_all(&write_request(ask)?).await?)
    }

    /// Receives the only answer to a request. Fails if the server takes longer than 30 s.
    pub async fn answer(&mut self) -> anyhow::Result<Option<AdminReply>> {
        tokio::time::timeout(ANSWER_TIMEOUT, self.next())
            .await
            .context("the reflector is running, but did not answer within 30 s")?
    }

    /// Waits for the next answer, however long it takes. `None` when the server has closed the connection.
    pub async fn next(&mut self) -> anyhow::Result<Option<AdminReply>> {
        let mut line = String::new();
        if self.read.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let Envelope { v, body } =
            serde_json::from_str::<Envelope<AdminReply>>(&line).context("the answer of the reflector is not valid")?;
        anyhow::ensure!(v == VERSION, "this command and the running reflector have different versions");
        Ok(Some(body))
    }
}
