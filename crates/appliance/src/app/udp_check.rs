//! Checks whether UDP datagrams reach a reflector and come back, by a short test with the engine `echo`. The result of
//! the test is discarded.

use std::time::Duration;

use paramedic_engines::Engine;
use paramedic_engines::echo::Echo;
use paramedic_engines::echo::pacing::SHORTEST_INTERVAL;
use paramedic_link::test_spec::{DataMode, EngineId, Load, PhaseSpec, TestSpec};
use paramedic_report::document::ProbeTransport;
use paramedic_report::thresholds::Thresholds;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Appliance;
use crate::error::ApplianceError;
use crate::payload_transport::PayloadTransport;
use crate::providers::options::OptionValues;
use crate::reflector_client::Route;
use crate::request::{TestRequest, TurnWait};
use crate::store::Reflector;

/// How long a check sends probes.
const CHECK: Duration = Duration::from_millis(300);

/// What a check of UDP to a reflector found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "outcome", content = "because", rename_all = "snake_case")]
pub enum UdpCheck {
    /// Datagrams reached the reflector, and their answers arrived here.
    Arrives,
    /// No UDP probe was answered. The text states the reason, as far as the reflector's counts of datagrams show it.
    Blocked(String),
}

impl Appliance {
    /// Sends a few latency probes to a reflector, in a test whose result is not saved. Does not wait for other tests:
    /// fails if this device or the reflector runs another test.
    pub async fn check_udp(&self, reflector: &Reflector) -> Result<UdpCheck, ApplianceError> {
        let engine = EngineId::try_from(Echo.id()).map_err(|error| ApplianceError::NoSuchEngine(error.to_string()))?;
        let phases = vec![PhaseSpec { load: Load::Idle, duration_ms: CHECK.as_millis() as u32 }];
        let request = TestRequest {
            provider: "reflector".to_owned(),
            peer: Some(reflector.address.to_string()),
            spec: TestSpec {
                probe_interval_us: SHORTEST_INTERVAL.as_micros() as u32,
                ..TestSpec::new(engine, DataMode::Tunneled, phases, 1)
            },
            adapts_probes: false,
            data_mode: Some(DataMode::Tunneled),
            omit: None,
            budget_bytes: None,
            transport: PayloadTransport::Tcp,
            turn: TurnWait::No,
            route: Route::default(),
            intervals: false,
            raw: false,
            thresholds: Thresholds::default(),
            discards_result: true,
        };
        let end = self.run(request, OptionValues::default()).await?.end().await?;
        let (measured, failure) = end.map(|end| (end.measured, end.failure)).unwrap_or_default();
        let Some(result) = measured else { return Err(failure.unwrap_or(ApplianceError::NothingMeasured)) };
        match result.latency.idle {
            Some(idle) if idle.transport == ProbeTransport::Udp && idle.received > 0 => Ok(UdpCheck::Arrives),
            _ => {
                let warning = result.warnings.into_iter().find(|warning| warning.code == "udp_blocked");
                let unknown = || "no UDP probe was answered".to_owned();
                Ok(UdpCheck::Blocked(warning.map_or_else(unknown, |warning| warning.text)))
            }
        }
    }
}
