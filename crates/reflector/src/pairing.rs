//! Decides about the pairing code: which clients may try it and how often. At most one code is open at a time, and a
//! code pairs only one appliance. The caller writes the pairing and sends the answers. The present time is an argument.
//! Only the secret of the code is random.

use std::collections::BTreeMap;
use std::time::Duration;

use paramedic_link::EndpointId;
use paramedic_link::pairing_code::Ends;
use paramedic_link::pairing_code::{NoRandomness, PairingCode, Proof};

use crate::connection_limiter::Prefix;

/// The longest time for which a code may be valid.
pub const LONGEST_TTL: Duration = Duration::from_secs(3600);
/// After this many wrong proofs, the address prefix of the client is blocked.
const WRONG_PER_PREFIX: u32 = 5;
/// How long a prefix stays blocked, and how long a wrong proof counts.
const BLOCKED: Duration = Duration::from_secs(600);
/// Wrong proofs are counted for at most this many prefixes. A further prefix replaces the unblocked one whose last
/// wrong proof is the oldest or, if all are blocked, the one whose block ends first.
const REMEMBERED: usize = 4096;

/// The decision on a pairing proof. The client cannot distinguish the causes of `NotPaired`.
#[derive(Debug)]
pub enum ProofDecision {
    /// The proof is right. Until the claim is confirmed or released, no other device can use the code.
    Paired {
        /// The reflector's proof that it knows the secret, to send once the pairing is on disk.
        proof: Proof,
        /// The claim on the code, to confirm or to release.
        claim: CodeClaim,
    },
    /// The proof is wrong, no code is open, another device has claimed the code, or the client's prefix is blocked.
    /// Wrong proofs never close the code. The code's secret has 50 bits: a thousand guesses per second for an hour
    /// succeed with a probability of 3 in 10^9.
    NotPaired,
}

/// A pairing code that was opened.
#[derive(Debug)]
pub struct OpenedCode {
    /// The code to type at the appliance. It is a secret.
    pub code: String,
    /// Identifies the code, so that exactly this one can be revoked.
    pub id: CodeId,
}

/// Identifies one code among all that were opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeId(u64);

/// The right of one device to use the code, while its pairing is written to disk.
#[derive(Debug, PartialEq, Eq)]
pub struct CodeClaim {
    number: u64,
    /// The code that is claimed.
    pub code: CodeId,
}

/// Why no pairing code was opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenCodeError {
    /// Another code is open.
    #[error(
        "another pairing code is open; it expires in {} s; wait, or stop the other `reflector pair`",
        .expires_in.as_secs()
    )]
    AnotherIsOpen {
        /// How much longer the other code is valid.
        expires_in: Duration,
    },
    /// The requested validity is zero, or above [`LONGEST_TTL`].
    #[error("the validity of a pairing code must be above zero and at most one hour")]
    Ttl,
    /// The random source of the operating system failed.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// The open pairing code, if there is one, and the wrong proofs from each prefix.
#[derive(Debug)]
pub struct Pairing {
    reflector: EndpointId,
    open: Option<Open>,
    wrong: BTreeMap<Prefix, Wrong>,
    /// The number of codes that were opened so far. `claims` is the number of claims on codes so far.
    codes: u64,
    claims: u64,
}

#[derive(Debug)]
struct Open {
    id: CodeId,
    code: PairingCode,
    expires_at: Duration,
    /// The claim of the device whose proof was right, while its pairing is written to disk.
    claim: Option<u64>,
    /// Whether the code was revoked while claimed. The device with the claim is still paired; no other device can use
    /// the code.
    revoked: bool,
}

#[derive(Debug)]
struct Wrong {
    count: u32,
    last_at: Duration,
}

impl Wrong {
    fn is_blocked(&self) -> bool {
        self.count >= WRONG_PER_PREFIX
    }
}

impl Pairing {
    /// A state in which no code is open.
    pub fn new(reflector: EndpointId) -> Self {
        Self { reflector, open: None, wrong: BTreeMap::new(), codes: 0, claims: 0 }
    }

    /// Opens a new code that is valid for `ttl`. `now` is the time of a monotonic clock, as in all methods of this
    /// type.
    pub fn open(&mut self, ttl: Duration, now: Duration) -> Result<OpenedCode, OpenCodeError> {
        let code = PairingCode::generate(&self.reflector)?;
        if ttl.is_zero() || ttl > LONGEST_TTL {
            return Err(OpenCodeError::Ttl);
        }
        self.pass_time(now);
        if let Some(open) = &self.open {
            return Err(OpenCodeError::AnotherIsOpen { expires_in: open.expires_at.saturating_sub(now) });
        }
        self.codes += 1;
        let opened = OpenedCode { code: code.to_string(), id: CodeId(self.codes) };
        let expires_at = now.saturating_add(ttl);
        self.open = Some(Open { id: opened.id, code, expires_at, claim: None, revoked: false });
        Ok(opened)
    }

    /// Judges a pairing proof from a client at `prefix`. `exporter` is the TLS exporter value of the connection between
    /// `ends`.
    pub fn prove(
        &mut self,
        prefix: Prefix,
        ends: &Ends,
        exporter: &[u8; 32],
        proof: &Proof,
        now: Duration,
    ) -> ProofDecision {
        self.pass_time(now);
        if self.is_blocked(prefix) {
            return ProofDecision::NotPaired;
        }
        let Some(open) = self.open.as_mut().filter(|open| open.claim.is_none()) else {
            return ProofDecision::NotPaired;
        };
        // Compared in constant time.
        if open.code.appliance_proof(exporter, ends) == *proof {
            self.claims += 1;
            open.claim = Some(self.claims);
            let proof = open.code.reflector_proof(exporter, ends);
            self.wrong.remove(&prefix);
            return ProofDecision::Paired { proof, claim: CodeClaim { number: self.claims, code: open.id } };
        }
        self.note_wrong(prefix, now);
        ProofDecision::NotPaired
    }

    /// Ends a claim whose pairing is on disk. The code is used up.
    pub fn confirm(&mut self, claim: CodeClaim) {
        self.open.take_if(|open| open.claim == Some(claim.number));
    }

    /// Ends a claim whose pairing could not be written. The code can be used again, unless it was revoked.
    pub fn release(&mut self, claim: CodeClaim) {
        if let Some(open) = self.open.as_mut().filter(|open| open.claim == Some(claim.number)) {
            open.claim = None;
        }
        self.open.take_if(|open| open.claim.is_none() && open.revoked);
    }

    /// Closes this code if it is the open one. A pairing that is being written still completes.
    pub fn revoke(&mut self, code: CodeId) {
        let Some(open) = self.open.as_mut().filter(|open| open.id == code) else { return };
        open.revoked = true;
        self.open.take_if(|open| open.claim.is_none());
    }

    /// Whether a device has sent a right proof for this code and its pairing is being written.
    pub fn is_claimed(&self, code: CodeId) -> bool {
        self.open.as_ref().is_some_and(|open| open.id == code && open.claim.is_some())
    }

    /// How much longer the open code is valid; `None` if no code is open.
    pub fn expires_in(&self, now: Duration) -> Option<Duration> {
        let open = self.open.as_ref().filter(|open| !open.revoked)?;
        Some(open.expires_at.saturating_sub(now)).filter(|left| !left.is_zero())
    }

    fn pass_time(&mut self, now: Duration) {
        // A device that proved in time is paired, however long the disk takes.
        self.open.take_if(|open| open.claim.is_none() && open.expires_at <= now);
        self.wrong.retain(|_, wrong| now.saturating_sub(wrong.last_at) < BLOCKED);
    }

    fn is_blocked(&self, prefix: Prefix) -> bool {
        self.wrong.get(&prefix).is_some_and(Wrong::is_blocked)
    }

    fn note_wrong(&mut self, prefix: Prefix, now: Duration) {
        let least = || self.wrong.iter().min_by_key(|(_, wrong)| (wrong.is_blocked(), wrong.last_at));
        if self.wrong.len() >= REMEMBERED
            && !self.wrong.contains_key(&prefix)
            && let Some((&least, _)) = least()
        {
            self.wrong.remove(&least);
        }
        let wrong = self.wrong.entry(prefix).or_insert(Wrong { count: 0, last_at: now });
        wrong.count += 1;
        wrong.last_at = now;
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const REFLECTOR: EndpointId = EndpointId::from_bytes([1; 32]);
    const EXPORTER: [u8; 32] = [7; 32];
    const TTL: Duration = Duration::from_secs(600);
    const START: Duration = Duration::ZERO;

    fn ends(appliance: u8) -> Ends {
        Ends { reflector: REFLECTOR, appliance: EndpointId::from_bytes([appliance; 32]) }
    }

    fn prefix(n: u32) -> Prefix {
        Prefix::of(IpAddr::V4(n.into()))
    }

    fn open() -> (Pairing, PairingCode) {
        let mut pairing = Pairing::new(REFLECTOR);
        let code = pairing.open(TTL, START).unwrap().code.parse().unwrap();
        (pairing, code)
    }

    fn prove(pairing: &mut Pairing, code: &PairingCode, from: u32, now: Duration) -> ProofDecision {
        let proof = code.appliance_proof(&EXPORTER, &ends(2));
        pairing.prove(prefix(from), &ends(2), &EXPORTER, &proof, now)
    }

    fn claim(verdict: ProofDecision) -> CodeClaim {
        match verdict {
            ProofDecision::Paired { claim, .. } => claim,
            other => panic!("{other:?}"),
        }
    }

    fn is_paired(verdict: ProofDecision) -> bool {
        matches!(verdict, ProofDecision::Paired { .. })
    }

    /// The secret of another code, whose proofs are wrong for the open code.
    fn wrong() -> PairingCode {
        PairingCode::generate(&REFLECTOR).unwrap()
    }

    #[test]
    fn a_right_proof_is_answered_with_the_other_half() {
        let (mut pairing, code) = open();
        let ProofDecision::Paired { proof, .. } = prove(&mut pairing, &code, 1, START) else { panic!() };
        assert_eq!(proof, code.reflector_proof(&EXPORTER, &ends(2)));
    }

    #[test]
    fn a_proof_of_another_connection_or_key_is_refused() {
        let (mut pairing, code) = open();
        let proof = code.appliance_proof(&EXPORTER, &ends(2));
        assert!(!is_paired(pairing.prove(prefix(1), &ends(2), &[8; 32], &proof, START)));
        assert!(!is_paired(pairing.prove(prefix(1), &ends(3), &EXPORTER, &proof, START)));
        let reflected = code.reflector_proof(&EXPORTER, &ends(2));
        assert!(!is_paired(pairing.prove(prefix(1), &ends(2), &EXPORTER, &reflected, START)));
    }

    #[test]
    fn a_used_code_pairs_no_second_device() {
        let (mut pairing, code) = open();
        let first = claim(prove(&mut pairing, &code, 1, START));
        assert!(!is_paired(prove(&mut pairing, &code, 2, START)), "while the first is being written");
        pairing.confirm(first);
        assert!(!is_paired(prove(&mut pairing, &code, 2, START)));
        assert_eq!(pairing.expires_in(START), None);
    }

    #[test]
    fn after_a_failed_write_the_code_can_be_used_again() {
        let (mut pairing, code) = open();
        let first = claim(prove(&mut pairing, &code, 1, START));
        pairing.release(first);
        assert!(is_paired(prove(&mut pairing, &code, 1, START)));
    }

    #[test]
    fn an_expired_or_revoked_code_is_refused() {
        let (mut pairing, code) = open();
        assert!(!is_paired(prove(&mut pairing, &code, 1, TTL)));
        let (mut pairing, code) = open();
        pairing.revoke(CodeId(1));
        assert!(!is_paired(prove(&mut pairing, &code, 1, START)));
        assert!(pairing.open(TTL, START).is_ok());
    }

    #[test]
    fn a_device_that_proved_in_time_is_paired_however_long_the_disk_takes() {
        let (mut pairing, code) = open();
        let first = claim(prove(&mut pairing, &code, 1, TTL - Duration::from_millis(1)));
        pairing.revoke(CodeId(1));
        assert!(matches!(pairing.open(TTL, TTL), Err(OpenCodeError::AnotherIsOpen { .. })));
        pairing.confirm(first);
        assert!(pairing.open(TTL, TTL).is_ok());
    }

    #[test]
    fn a_code_revoked_while_claimed_cannot_be_used_again() {
        let (mut pairing, code) = open();
        let first = claim(prove(&mut pairing, &code, 1, START));
        pairing.revoke(CodeId(1));
        pairing.release(first);
        assert!(!is_paired(prove(&mut pairing, &code, 1, START)));
    }

    #[test]
    fn a_stale_claim_touches_no_newer_code() {
        let (mut pairing, code) = open();
        let stale = claim(prove(&mut pairing, &code, 1, START));
        pairing.confirm(CodeClaim { ..stale });
        let newer = pairing.open(TTL, START).unwrap().code.parse().unwrap();
        pairing.confirm(stale);
        assert!(is_paired(prove(&mut pairing, &newer, 1, START)));
    }

    #[test]
    fn a_late_revocation_does_not_revoke_a_newer_code() {
        let mut pairing = Pairing::new(REFLECTOR);
        let expired = pairing.open(TTL, START).unwrap().id;
        let newer = pairing.open(TTL, TTL).unwrap().code.parse().unwrap();
        pairing.revoke(expired);
        assert!(is_paired(prove(&mut pairing, &newer, 1, TTL)));
    }

    #[test]
    fn five_wrong_proofs_block_their_prefix_for_ten_minutes() {
        let mut pairing = Pairing::new(REFLECTOR);
        let code = pairing.open(LONGEST_TTL, START).unwrap().code.parse().unwrap();
        let wrong = wrong();
        for _ in 0..5 {
            assert!(!is_paired(prove(&mut pairing, &wrong, 1, START)));
        }
        assert!(!is_paired(prove(&mut pairing, &code, 1, BLOCKED - Duration::from_millis(1))));
        let other = claim(prove(&mut pairing, &code, 2, START));
        pairing.release(other);
        assert!(is_paired(prove(&mut pairing, &code, 1, BLOCKED)));
    }

    #[test]
    fn no_number_of_wrong_proofs_closes_the_code() {
        let (mut pairing, code) = open();
        let wrong = wrong();
        for from in 0..20_000 {
            assert!(!is_paired(prove(&mut pairing, &wrong, from / 2, START)));
        }
        assert!(is_paired(prove(&mut pairing, &code, 50_000, START)));
    }

    #[test]
    fn memory_of_wrong_proofs_is_bounded() {
        let mut pairing = Pairing::new(REFLECTOR);
        let wrong = wrong();
        let _ = pairing.open(TTL, START).unwrap();
        for from in 0..10_000 {
            prove(&mut pairing, &wrong, from, START);
        }
        assert_eq!(pairing.wrong.len(), REMEMBERED);
    }

    #[test]
    fn a_block_outlasts_the_wrong_proofs_of_any_number_of_other_prefixes() {
        let (mut pairing, code) = open();
        let wrong = wrong();
        for _ in 0..WRONG_PER_PREFIX {
            prove(&mut pairing, &wrong, 1, START);
        }
        for from in 0..10_000 {
            prove(&mut pairing, &wrong, 100 + from, START + Duration::from_secs(1));
        }
        assert!(!is_paired(prove(&mut pairing, &code, 1, START + Duration::from_secs(1))));
    }

    #[test]
    fn if_all_prefixes_are_blocked_the_block_that_ends_first_is_removed() {
        let (mut pairing, code) = open();
        let wrong = wrong();
        let now = START + Duration::from_secs(1);
        for from in 1..=u32::try_from(REMEMBERED).unwrap() {
            for _ in 0..WRONG_PER_PREFIX {
                prove(&mut pairing, &wrong, from, if from == 7 { START } else { now });
            }
        }
        prove(&mut pairing, &wrong, 10_000, now);
        assert!(!is_paired(prove(&mut pairing, &code, 6, now)));
        assert!(is_paired(prove(&mut pairing, &code, 7, now)));
    }

    #[test]
    fn one_code_is_open_at_a_time_for_at_most_an_hour() {
        let (mut pairing, _) = open();
        let refused = pairing.open(TTL, START).unwrap_err();
        let because = "another pairing code is open; it expires in 600 s; wait, or stop the other `reflector pair`";
        assert_eq!(refused.to_string(), because);
        assert_eq!(pairing.expires_in(Duration::from_secs(1)), Some(Duration::from_secs(599)));
        let mut idle = Pairing::new(REFLECTOR);
        assert!(idle.open(LONGEST_TTL, START).is_ok());
        assert!(matches!(pairing.open(LONGEST_TTL + Duration::from_millis(1), START), Err(OpenCodeError::Ttl)));
    }
}
