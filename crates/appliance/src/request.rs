//! The request for a speed test. It can be stored and passed to another process, because it contains no keys or
//! passwords, and no folders of this process.

use std::time::Duration;

use paramedic_engines::Engine;
use paramedic_link::PeerText;
use paramedic_link::test_spec::{DataMode, TestSpec};
use paramedic_report::thresholds::Thresholds;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::ApplianceError;
use crate::payload_transport::PayloadTransport;
use crate::reflector_client::Route;
use crate::waiting::LONGEST_REQUEST;

/// The parameters of one speed test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TestRequest {
    /// The id of the provider that runs the test.
    pub provider: String,
    /// The other end of the test. For a reflector: a saved name, a saved address or any other address; `None` is valid
    /// if exactly one reflector is paired. For other providers: an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The test, as the link protocol describes it. The data mode in `spec` is ignored; the field `data_mode` of this
    /// request is used.
    pub spec: TestSpec,
    /// Whether the interval of the latency probes adapts to the rate of the line. If not, the interval of `spec` is
    /// used throughout.
    #[serde(default)]
    pub adapts_probes: bool,
    /// The data mode; `None` selects direct mode if the reflector offers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_mode: Option<DataMode>,
    /// The length of the start-up of each phase, which the result excludes; `None` detects the length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub omit: Option<Duration>,
    /// The number of payload bytes after which the run ends. Each direction has an equal share of this number, which is
    /// stored as `direction_bytes` in `spec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_bytes: Option<u64>,
    /// The protocol that carries the payload, if the engine can use more than one.
    pub transport: PayloadTransport,
    /// How long the test may wait in the queues of this device and of the other end.
    #[serde(default)]
    pub turn: TurnWait,
    /// The IP families, the local address and the network interface that the test may use.
    #[serde(default)]
    pub route: Route,
    /// Whether the result includes the values of each measured interval of the test, and not only those of the whole
    /// test.
    pub intervals: bool,
    /// Whether the result includes the raw output of an external program.
    pub raw: bool,
    /// The thresholds with which the result is compared.
    #[serde(default)]
    pub thresholds: Thresholds,
    /// Whether the result is discarded. If so, nothing in the state folder is created or changed.
    #[serde(default)]
    pub discards_result: bool,
}

/// How long a test may wait while other tests run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TurnWait {
    /// The test waits for as long as the provider's own limit allows.
    #[default]
    ProviderLimit,
    /// The test waits for at most this time.
    AtMost(Duration),
    /// The test does not wait.
    No,
}

impl TurnWait {
    /// Whether the test may wait.
    pub fn may_wait(self) -> bool {
        self != TurnWait::No
    }

    /// The longest wait that the user requested, limited to what an `Instant` holds without overflow; `None` if the
    /// provider's limit applies.
    pub fn limit(self) -> Option<Duration> {
        match self {
            TurnWait::ProviderLimit => None,
            TurnWait::AtMost(limit) => Some(limit.min(LONGEST_REQUEST)),
            TurnWait::No => Some(Duration::ZERO),
        }
    }

    /// The wait that is left after the test has waited for `waited`.
    #[must_use]
    pub fn after(self, waited: Duration) -> Self {
        match self {
            TurnWait::AtMost(limit) => TurnWait::AtMost(limit.saturating_sub(waited)),
            unchanged => unchanged,
        }
    }
}

/// The longest name or address of the other end, in characters. The longest host name (253 characters, RFC 1123) with
/// its port is shorter.
const MAX_PEER_CHARS: usize = 300;

impl TestRequest {
    /// Checks that the name or the address of the other end is not too long and has only harmless characters, because
    /// it is saved with the result and printed.
    pub fn check_peer(&self) -> Result<(), ApplianceError> {
        let Some(peer) = &self.peer else { return Ok(()) };
        if *peer == PeerText::harmless(peer, MAX_PEER_CHARS) {
            return Ok(());
        }
        let shown = PeerText::harmless(peer, 60);
        Err(ApplianceError::Unsupported(format!("{shown:?} is neither a valid name nor a valid address")))
    }

    /// The test as the link protocol describes it, with the given data mode.
    pub fn spec(&self, data_mode: DataMode) -> TestSpec {
        TestSpec { data_mode, ..self.spec.clone() }
    }

    /// Sets the byte budget of the run. Each direction of each phase gets an equal share, so all directions together
    /// stay within the budget. Fails if a share is less than a byte.
    pub fn set_budget(&mut self, bytes: u64) -> Result<(), ApplianceError> {
        let directions = self.spec.phases.iter().map(|phase| phase.load.directions().len() as u64).sum::<u64>();
        let share = bytes.checked_div(directions).filter(|share| *share > 0);
        let refused =
            || ApplianceError::Unsupported(format!("a budget of {bytes} bytes is too low for {directions} directions"));
        self.spec.direction_bytes = Some(share.ok_or_else(refused)?);
        self.budget_bytes = Some(bytes);
        Ok(())
    }

    /// The data modes that this request allows and the engine supports, the preferred one first.
    pub fn data_modes(&self, engine: &dyn Engine) -> impl Iterator<Item = DataMode> {
        let ways = [DataMode::DirectEphemeral, DataMode::Tunneled].into_iter();
        ways.filter(move |way| {
            self.data_mode.is_none_or(|requested| requested == *way) && engine.data_modes().contains(way)
        })
    }

    /// Why the engine cannot run this test in any of the [`data_modes`](Self::data_modes), as a part of a sentence.
    /// `None` if the engine can run it in one of these modes, or if there is no such mode.
    pub fn unsupported(&self, engine: &dyn Engine) -> Option<&'static str> {
        let refusals = self.data_modes(engine).map(|way| engine.unsupported(&self.spec(way)));
        refusals.collect::<Option<Vec<_>>>()?.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use paramedic_engines::origin::Origin;
    use paramedic_link::test_spec::{EngineId, Load, PhaseSpec};

    use super::*;
    use crate::reflector_client::Family;

    fn request() -> TestRequest {
        let phases = vec![PhaseSpec { load: Load::Download, duration_ms: 10_000 }];
        let engine = EngineId::try_from("tcp").unwrap();
        TestRequest {
            provider: "reflector".to_owned(),
            peer: None,
            spec: TestSpec::new(engine, DataMode::Tunneled, phases, 4),
            adapts_probes: false,
            data_mode: None,
            omit: None,
            budget_bytes: None,
            transport: PayloadTransport::Tcp,
            turn: TurnWait::ProviderLimit,
            route: Route::default(),
            intervals: false,
            raw: false,
            thresholds: Thresholds::default(),
            discards_result: false,
        }
    }

    #[test]
    fn time_on_this_device_counts_against_the_requested_limit_alone() {
        let second = Duration::from_secs(1);
        assert_eq!(TurnWait::AtMost(3 * second).after(second).limit(), Some(2 * second));
        assert_eq!(TurnWait::AtMost(second).after(3 * second).limit(), Some(Duration::ZERO));
        assert_eq!(TurnWait::ProviderLimit.after(second).limit(), None);
        assert_eq!(TurnWait::AtMost(Duration::MAX).limit(), Some(LONGEST_REQUEST));
        assert!(TurnWait::AtMost(Duration::ZERO).may_wait() && !TurnWait::No.after(second).may_wait());
    }

    #[test]
    fn every_direction_of_every_phase_has_an_equal_share_of_a_budget() {
        let share = |loads: &[Load], bytes| {
            let mut request = request();
            request.spec.phases = loads.iter().map(|load| PhaseSpec { load: *load, duration_ms: 10_000 }).collect();
            request.set_budget(bytes).ok()?;
            assert_eq!(request.budget_bytes, Some(bytes));
            request.spec.direction_bytes
        };
        let plain = [Load::Idle, Load::Download, Load::Upload];
        assert_eq!(share(&plain, 200_000_001), Some(100_000_000));
        assert_eq!(share(&[Load::Idle, Load::Download, Load::Upload, Load::Bidir], 200), Some(50));
        assert_eq!(share(&[Load::Download], 200), Some(200));
        assert_eq!((share(&plain, 2), share(&plain, 1), share(&[Load::Idle], 200)), (Some(1), None, None));
    }

    #[test]
    fn the_other_end_is_a_name_or_an_address() {
        let check = |peer: &str| TestRequest { peer: Some(peer.to_owned()), ..request() }.check_peer().is_ok();
        assert!(check("attic") && check("my attic") && check("[2001:db8::7]:4000") && check(&"a".repeat(300)));
        for wrong in ["a\nb", "a\u{202e}b", " attic", "\u{1b}[2J", &"a".repeat(301), &"a".repeat(60_000)] {
            assert!(!check(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn a_request_survives_serialisation() {
        let bare = request();
        let full = TestRequest {
            peer: Some("attic".to_owned()),
            adapts_probes: true,
            data_mode: Some(DataMode::DirectEphemeral),
            omit: Some(Duration::from_millis(1500)),
            budget_bytes: Some(200_000_000),
            transport: PayloadTransport::Udp,
            turn: TurnWait::AtMost(Duration::from_secs(60)),
            route: Route {
                family: Family::V6,
                origin: Origin { address: Some("2001:db8::7".parse().unwrap()), interface: Some("eth0".to_owned()) },
            },
            thresholds: Thresholds { min_download_bps: Some(1_000_000), max_loss: Some(0.01), ..Thresholds::default() },
            discards_result: true,
            ..bare.clone()
        };
        for request in [bare, full] {
            let text = serde_json::to_string(&request).unwrap();
            assert!(!text.contains("null"), "{text}");
            assert_eq!(serde_json::from_str::<TestRequest>(&text).unwrap(), request);
        }
    }
}
