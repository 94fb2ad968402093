//! Where a speed test comes from: the trait, and the one list of those there are. A provider measures and says what it
//! measured; it neither prints nor saves.

mod reflector;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use paramedic_link::SecretKey;
use paramedic_link::test_spec::{DataMode, EngineId, PhaseSpec};
use tokio::sync::watch;

use crate::document::{Event, ResultDocument};
use crate::failure::Failure;
use crate::history::Reflector;
use crate::reflector_client::Family;

/// Every provider there is. Command line values and help read this list.
pub const PROVIDERS: &[&dyn Provider] = &[&reflector::Reflectors];

/// The provider with this id.
pub fn find(id: &str) -> Option<&'static dyn Provider> {
    PROVIDERS.iter().copied().find(|provider| provider.id() == id)
}

/// One place where speed tests come from.
pub trait Provider: Sync {
    /// The id on the command line and in results.
    fn id(&self) -> &'static str;

    /// One line for `--help`.
    fn about(&self) -> &'static str;

    /// Runs one test to its end, whatever that is. `watch` hears of everything as it happens.
    fn run<'a>(&'a self, order: &'a TestOrder, watch: &'a mut Watch) -> Pin<Box<dyn Future<Output = Outcome> + 'a>>;
}

/// What one speed test is to do.
pub struct TestOrder {
    /// Who we are.
    pub key: Arc<SecretKey>,
    /// The reflectors that this device is paired with.
    pub known: Vec<Reflector>,
    /// Whom to measure against: a saved name, a saved address, any address; absent: the only one there is.
    pub peer: Option<String>,
    /// The engine that makes the load.
    pub engine: EngineId,
    /// The way the data takes; absent: direct where it is offered.
    pub data_mode: Option<DataMode>,
    /// The phases, in order.
    pub phases: Vec<PhaseSpec>,
    /// Streams per direction.
    pub streams: u16,
    /// The start-up to leave out; absent: it is found.
    pub omit: Option<Duration>,
    /// The congestion control to ask both kernels for.
    pub congestion_control: Option<String>,
    /// The distance between latency probes.
    pub probe_interval: Duration,
    /// Whether to wait for a turn.
    pub wait: bool,
    /// Which IP families may be used.
    pub family: Family,
    /// Whether each interval's reading belongs in the result.
    pub intervals: bool,
}

/// Who watches a running test.
pub struct Watch {
    /// Hears of everything as it happens.
    pub events: Box<dyn FnMut(Event)>,
    /// Becomes true when the person wants it to end.
    pub interrupt: watch::Receiver<bool>,
}

impl Watch {
    /// Ends when the person wants the test to end.
    pub async fn interrupted(&mut self) {
        if self.interrupt.wait_for(|wanted| *wanted).await.is_err() {
            // Nobody is left who could want that.
            std::future::pending::<()>().await;
        }
    }
}

/// How a test ended.
pub struct Outcome {
    /// What was measured, also where it failed half way; absent where nothing was.
    pub measured: Option<ResultDocument>,
    /// Why it is not complete.
    pub failure: Option<Failure>,
}
