//! Pairs a device after a right proof, and renames peers. Unless a pairing is written both to the database and to the
//! audit log, the device remains unpaired.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;
use paramedic_link::message::ToAppliance;
use paramedic_link::pairing_code::Ends;
use paramedic_link::pairing_code::Proof;
use paramedic_link::{EndpointId, PeerText};

use super::{PairedDevice, Server, lock};
use crate::connection_limiter::Prefix;
use crate::event::RefusalReason;
use crate::pairing::ProofDecision;

/// Judges a pairing proof. `exporter` is the TLS exporter value of the client's connection, and `own_name` is the name
/// that the client sent. After a right proof, the pairing is on disk before the client gets its answer.
pub(super) async fn verify_proof(
    server: &Arc<Server>,
    exporter: &[u8; 32],
    from: IpAddr,
    peer: EndpointId,
    proof: &Proof,
    own_name: &PeerText,
) -> Result<ToAppliance, RefusalReason> {
    let ends = Ends { reflector: server.id, appliance: peer };
    let (verdict, wanted) = {
        let mut pairing = lock(&server.pairing);
        let verdict = pairing.prove(Prefix::of(from), &ends, exporter, proof, server.now().mono);
        (verdict, lock(&server.code_requester).as_ref().and_then(|code_requester| code_requester.wanted_name.clone()))
    };
    let (answer, claim) = match verdict {
        ProofDecision::Paired { proof, claim } => (proof, claim),
        ProofDecision::NotPaired => return Err(RefusalReason::WrongProof),
    };
    let name = wanted.as_ref().or(Some(own_name).filter(|name| !name.is_empty()));
    let name = name.cloned().unwrap_or_else(|| PeerText::new("appliance"));
    let added = server.peers.add(peer, &name, "code").await;
    let answer = match added {
        Ok((its_name, is_new)) => {
            let its_name = match wanted {
                Some(wanted) if !is_new && rename(server, peer, &wanted).await.is_ok() => wanted,
                _ => its_name,
            };
            server.report_paired(claim.code, PairedDevice(peer, its_name));
            lock(&server.pairing).confirm(claim);
            Ok(ToAppliance::Paired { proof: answer, name: server.config().name.clone() })
        }
        Err(error) => {
            tracing::error!(%error, "a pairing can't be written");
            lock(&server.pairing).release(claim);
            Err(RefusalReason::NotWritten)
        }
    };
    server.claim_settled.notify_waiters();
    answer
}

/// Renames a peer in the database, and records this in the audit log.
pub(super) async fn rename(server: &Server, peer: EndpointId, name: &PeerText) -> anyhow::Result<()> {
    let renamed = server.peers.rename(peer, name).await?;
    renamed.then_some(()).context("no such device is paired")?;
    server.peers.settle().await;
    Ok(())
}
