//! Records which changes a reflector acknowledged. After a crash, checks that the reflector still has all of them.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use lab::Reflector;
use lab::hostile::{AsAppliance, RawLink};
use paramedic_link::pairing_code::{Ends, PAIRING_EXPORTER_LABEL, PairingCode};
use paramedic_link::tls::Alpn;
use paramedic_link::{EndpointId, SecretKey};
use serde_json::{Value, json};

/// The time limit for each answer on the reflector's admin socket.
const ANSWER: Duration = Duration::from_secs(30);

/// The changes that a reflector acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Books {
    /// Endpoint IDs of peers whose addition was acknowledged and whose removal was not requested.
    added: BTreeSet<String>,
    removed: BTreeSet<String>,
    /// The ids of the sessions that the reflector granted.
    granted: Vec<String>,
}

/// Counts of what was found wrong when a reflector was checked after a crash.
#[derive(Debug, Default)]
pub(crate) struct Loss {
    /// The number of acknowledged changes that were lost.
    pub(crate) lost: u64,
    /// The number of peers on which audit log and database disagree.
    pub(crate) disagree: u64,
    /// The number of granted sessions without a line in the audit log.
    pub(crate) grants_without_line: u64,
    /// The number of audit logs that fail verification.
    pub(crate) broken: u64,
    /// Texts that describe each discrepancy, for the results page of the siege.
    pub(crate) details: Vec<String>,
}

impl Books {
    /// Adds the changes that another thread recorded.
    pub(crate) fn merge(&mut self, other: Books) {
        self.added.extend(other.added);
        self.removed.extend(other.removed);
        self.granted.extend(other.granted);
    }

    /// The number of changes that the reflector acknowledged.
    pub(crate) fn len(&self) -> usize {
        self.added.len() + self.removed.len() + self.granted.len()
    }

    /// Compares the acknowledged changes with the state of the restarted reflector. Adds the discrepancies to `loss`.
    pub(crate) fn check(&self, reflector: &Reflector, client: &Client, loss: &mut Loss) -> anyhow::Result<()> {
        let told = client.ask(&json!({ "do": "peers" }))?;
        let peers = told["peers"].as_array().context("the answer to `peers` has no list of peers")?;
        let stored = peers.iter().filter_map(|peer| Some(peer["endpoint_id"].as_str()?.to_owned()));
        let stored = stored.collect::<BTreeSet<_>>();
        let mut logged = BTreeSet::new();
        let mut sessions = BTreeSet::new();
        for line in reflector.audit() {
            let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            match line["event"].as_str() {
                Some("peer_added") => drop(logged.insert(text("peer"))),
                Some("peer_removed") => drop(logged.remove(&text("peer"))),
                Some("session_granted") => drop(sessions.insert(text("session"))),
                _ => {}
            }
        }
        let gone = self.added.difference(&stored).chain(self.removed.intersection(&stored)).collect::<Vec<_>>();
        loss.lost += gone.len() as u64;
        let disagree = stored.symmetric_difference(&logged).collect::<Vec<_>>();
        loss.disagree += disagree.len() as u64;
        let unlogged = self.granted.iter().filter(|session| !sessions.contains(*session)).count() as u64;
        loss.grants_without_line += unlogged;
        let status = client.status()?;
        let counted = status["sessions"]["peers"].as_array().context("the status has no list of peers")?;
        let counted = counted.iter().filter_map(|peer| peer["tests_this_hour"].as_u64()).sum::<u64>();
        let uncounted = (self.granted.len() as u64).saturating_sub(counted);
        loss.lost += uncounted;
        let verified = reflector.run(&["audit", "verify"]);
        loss.broken += u64::from(verified.code != 0);
        if !gone.is_empty() || !disagree.is_empty() || unlogged + uncounted > 0 || verified.code != 0 {
            loss.details.push(format!(
                "lost {gone:?}, store and log disagree on {disagree:?}, {unlogged} grants without line, {uncounted} not \
                 counted, verify: {}",
                verified.stderr
            ));
        }
        Ok(())
    }
}

/// A client that requests every kind of change that a reflector writes to disk.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    address: String,
    id: EndpointId,
    key: SecretKey,
}

impl Client {
    /// Creates a client, and pairs it with the reflector by Endpoint ID.
    pub(crate) fn paired_with(reflector: &Reflector) -> anyhow::Result<Self> {
        let client = Self {
            socket: reflector.state().join("admin.sock"),
            address: reflector.address().to_owned(),
            id: reflector.id().parse().map_err(|_| anyhow::anyhow!("the reflector's Endpoint ID is not valid"))?,
            key: SecretKey::generate()?,
        };
        let peer = client.key.id().to_string();
        let told = client.ask(&json!({ "do": "add_peer", "peer": peer, "name": "siege" }))?;
        anyhow::ensure!(told["event"] == "done", "cannot pair the client: {told}");
        Ok(client)
    }

    /// Sends a request to the reflector's admin socket and returns the answer.
    pub(crate) fn ask(&self, ask: &Value) -> anyhow::Result<Value> {
        let (mut answers, _) = open(&self.socket, ask)?;
        next(&mut answers)
    }

    pub(crate) fn status(&self) -> anyhow::Result<Value> {
        self.ask(&json!({ "do": "status" }))
    }

    /// Runs one round of requests: adds and renames a peer, runs a session, pairs by code, and removes the peer.
    /// Records the acknowledged changes in `books`, and returns how many steps the reflector refused. If the reflector
    /// has ended, the round ends with an error.
    pub(crate) fn round(&self, books: &mut Books) -> anyhow::Result<u32> {
        let mut not_done = 0;
        let peer = SecretKey::generate()?.id().to_string();
        let is_done = |told: &Value| told["event"] == "done";
        let is_added = is_done(&self.ask(&json!({ "do": "add_peer", "peer": peer, "name": "one" }))?);
        not_done += u32::from(!is_added);
        if is_added {
            books.added.insert(peer.clone());
            let name = format!("one {}", &peer[3..12]);
            not_done += u32::from(!is_done(&self.ask(&json!({ "do": "rename_peer", "peer": peer, "name": name }))?));
        }
        match self.grant()? {
            Some(session) => books.granted.push(session),
            None => not_done += 1,
        }
        match self.pair()? {
            Some(paired) => drop(books.added.insert(paired)),
            None => not_done += 1,
        }
        if is_added {
            // From here on the peer may be missing, and once the removal is acknowledged it must be.
            books.added.remove(&peer);
            if is_done(&self.ask(&json!({ "do": "remove_peer", "peer": peer }))?) {
                books.removed.insert(peer);
            } else {
                not_done += 1;
            }
        }
        Ok(not_done)
    }

    fn link(&self, key: &SecretKey) -> anyhow::Result<AsAppliance> {
        Ok(RawLink::open(&self.address, self.id, key, Alpn::Link)?)
    }

    /// Requests a session and finishes it. Returns its id; `None` if the reflector denied it.
    fn grant(&self) -> anyhow::Result<Option<String>> {
        let mut link = self.link(&self.key)?;
        link.say(&json!({ "type": "hello", "versions": [1], "software": "siege" }))?;
        let spec = json!({
            "engine": "echo", "data_mode": "tunneled", "phases": [{ "load": "idle", "duration_ms": 1000 }],
            "streams": 1, "probe_interval_us": 10_000,
        });
        link.say(&json!({ "type": "request", "spec": spec, "wait": true }))?;
        loop {
            let told = link.hear()?.context("the reflector closed the link")?;
            match told["type"].as_str() {
                Some("granted") => {
                    let session = told["session"].as_str().context("the grant names no session")?.to_owned();
                    link.say(&json!({ "type": "finish" }))?;
                    link.hear_a("ended")?;
                    return Ok(Some(session));
                }
                Some("denied" | "close") => return Ok(None),
                _ => {}
            }
        }
    }

    /// Pairs a new device by code and returns its Endpoint ID; `None` if the reflector refused.
    fn pair(&self) -> anyhow::Result<Option<String>> {
        let (mut answers, _open) = open(&self.socket, &json!({ "do": "pair", "ttl_s": 60 }))?;
        let told = next(&mut answers)?;
        let Some(code) = told["code"].as_str() else { return Ok(None) };
        let code = code.parse::<PairingCode>().ok().context("the pairing code is not valid")?;
        let key = SecretKey::generate()?;
        let mut link = self.link(&key)?;
        let ends = Ends { reflector: self.id, appliance: key.id() };
        let proof = code.appliance_proof(&link.exporter(PAIRING_EXPORTER_LABEL, None), &ends);
        link.say(&json!({ "type": "pair", "versions": [1], "proof": proof, "name": "paired" }))?;
        let told = link.hear()?.context("the reflector closed the link")?;
        Ok((told["type"] == "paired").then(|| key.id().to_string()))
    }
}

fn open(socket: &Path, ask: &Value) -> anyhow::Result<(BufReader<UnixStream>, UnixStream)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut ask = ask.clone();
    ask["v"] = 1.into();
    stream.write_all(format!("{ask}\n").as_bytes())?;
    Ok((BufReader::new(stream.try_clone()?), stream))
}

fn next(answers: &mut BufReader<UnixStream>) -> anyhow::Result<Value> {
    let mut line = String::new();
    answers.read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
