//! The providers of speed tests: their trait and their list. A provider measures and returns the result; it neither
//! prints nor saves.

mod iperf3;
pub mod options;
mod reflector;
mod run_record;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use jiff::Timestamp;
use paramedic_engines::engine::Unavailable;
use paramedic_link::test_spec::EngineId;
use paramedic_link::{EndpointId, PeerText, SecretKey};
use paramedic_report::document::{ErrorBody, Event, ResultDocument};
use tokio::sync::watch;

use crate::error::ApplianceError;
use crate::payload_transport::PayloadTransport;
use crate::request::TestRequest;
use crate::store::{DirectModeFinding, Reflector};
use crate::test_lock::TestLock;
use options::{OptionValues, ProviderOption};
use run_record::RunRecord;
pub(crate) use run_record::default_interface;

/// Every provider. Command line values and help come from this list.
pub const PROVIDERS: &[&dyn Provider] = &[&reflector::Reflectors, &iperf3::Servers];

/// The provider with this id.
pub fn find(id: &str) -> Option<&'static dyn Provider> {
    PROVIDERS.iter().copied().find(|provider| provider.id() == id)
}

/// A source of speed tests.
pub trait Provider: Sync {
    /// The id on the command line and in results.
    fn id(&self) -> &'static str;

    /// One line for `--help`.
    fn about(&self) -> &'static str;

    /// The options that only this provider has. The command line makes a flag of each.
    fn options(&self) -> &'static [ProviderOption] {
        &[]
    }

    /// The id of the default engine. It is the provider's own name for it: it need not be an engine of this program.
    fn default_engine(&self, transport: PayloadTransport) -> &'static str;

    /// Whether the engine with this id loads the path. An engine without load runs a single idle phase.
    fn loads(&self, _engine: &str) -> bool {
        true
    }

    /// Whether it supports latency probes.
    fn probes(&self) -> bool;

    /// Whether the other end knows this device by its key.
    fn needs_identity(&self) -> bool;

    /// Checks that this provider can run `job`, its own options included. Called before any I/O.
    fn check_job(&self, job: &TestJob) -> Result<(), ApplianceError>;

    /// Whether this device has what the engine needs. Returns the features that the engine supports on this device,
    /// preferred first, with the engine's own names. May block for some seconds; called on a thread of its own.
    fn check_host(&self, _engine: &EngineId) -> Result<Vec<PeerText>, Unavailable> {
        Ok(Vec::new())
    }

    /// Runs one test to its end. `lock` is the test lock of this device; it is released while the test waits in another
    /// queue. `observer` receives every event immediately, and can end the test.
    fn run<'a>(
        &'a self,
        job: &'a TestJob,
        lock: &'a mut TestLock,
        observer: &'a mut Observer,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;
}

/// A request, with the additions of the appliance.
pub struct TestJob {
    /// The request.
    pub request: TestRequest,
    /// The appliance's key; absent if the provider needs none and there is none.
    pub key: Option<Arc<SecretKey>>,
    /// The reflectors that this device is paired with.
    pub known: Vec<Reflector>,
    /// When a test with the engine of this request last found a reflector's direct mode blocked.
    pub blocked_direct: BTreeMap<EndpointId, Timestamp>,
    /// The values of the provider's own options.
    pub options: OptionValues,
    /// The working folder of the test: it exists, is exclusive to the test, and is empty.
    pub scratch: PathBuf,
    /// Converts an error into the text for the result.
    pub describe: Describe,
}

impl TestJob {
    /// The key of a test whose provider needs it.
    pub(crate) fn key(&self) -> Result<&SecretKey, ApplianceError> {
        self.key.as_deref().ok_or_else(|| ApplianceError::Internal("the test has no key".to_owned()))
    }
}

/// Words an error as a result carries it. The client of the library decides the words.
pub type Describe = fn(&ApplianceError) -> ErrorBody;

/// The receiver of a running test's events, and its cancellation.
pub struct Observer {
    /// Called immediately with every event.
    pub events: Box<dyn FnMut(Event) + Send>,
    /// Becomes true when the user wants the test to end.
    pub interrupt: watch::Receiver<bool>,
}

impl Observer {
    /// Ends when the user wants the test to end.
    pub async fn interrupted(&mut self) {
        if self.interrupt.wait_for(|wanted| *wanted).await.is_err() {
            // The sender was dropped, so the test can no longer be interrupted.
            std::future::pending::<()>().await;
        }
    }
}

/// The outcome of a test that failed before its provider began it.
pub fn never_started(job: &TestJob, provider: &dyn Provider, failure: ApplianceError) -> Outcome {
    RunRecord::begin(job, provider.id()).conclude(job, Err(failure))
}

/// How a test ended.
pub struct Outcome {
    /// The document of the run, also of one that failed half way or before any measurement.
    pub result: ResultDocument,
    /// Why it is not complete.
    pub failure: Option<ApplianceError>,
    /// What it found out about a reflector's direct mode.
    pub finding: Option<DirectModeFinding>,
}
