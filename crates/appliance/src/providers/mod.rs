//! The providers of speed tests: their trait and their list. A provider measures and returns a result. It neither
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

/// All providers. The values of the command line and its help come from this list.
pub const PROVIDERS: &[&dyn Provider] = &[&reflector::Reflectors, &iperf3::Servers];

/// The provider with this id; `None` if there is none.
pub fn find(id: &str) -> Option<&'static dyn Provider> {
    PROVIDERS.iter().copied().find(|provider| provider.id() == id)
}

/// A way to run speed tests against one kind of server.
pub trait Provider: Sync {
    /// The id of the provider, on the command line and in results.
    fn id(&self) -> &'static str;

    /// One line about the provider for `--help`.
    fn about(&self) -> &'static str;

    /// The options that only this provider has. The command line makes a flag from each.
    fn options(&self) -> &'static [ProviderOption] {
        &[]
    }

    /// The id of the default engine for `transport`. It may be a name that only the provider knows.
    fn default_engine(&self, transport: PayloadTransport) -> &'static str;

    /// Whether the engine with this id loads the path. An engine that does not load it runs a single idle phase.
    fn loads(&self, _engine: &str) -> bool {
        true
    }

    /// Whether the provider sends latency probes.
    fn probes(&self) -> bool;

    /// Whether the other end identifies this device by its key.
    fn needs_identity(&self) -> bool;

    /// Checks that this provider can run `job`, with its own options. Called before any I/O.
    fn check_job(&self, job: &TestJob) -> Result<(), ApplianceError>;

    /// Checks that this device has what the engine needs. Returns the names of the features that the engine supports on
    /// this device, preferred first. May block for some seconds, so it is called on a thread of its own.
    fn check_host(&self, _engine: &EngineId) -> Result<Vec<PeerText>, Unavailable> {
        Ok(Vec::new())
    }

    /// Runs one test to its end. `lock` is the test lock of this device; the provider releases it while the test waits
    /// in another queue. `observer` gets every event at once, and can end the test.
    fn run<'a>(
        &'a self,
        job: &'a TestJob,
        lock: &'a mut TestLock,
        observer: &'a mut Observer,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;
}

/// A request, with what the appliance adds to it.
pub struct TestJob {
    /// The request as the user made it.
    pub request: TestRequest,
    /// The key of the appliance; `None` if the provider does not need it and there is none.
    pub key: Option<Arc<SecretKey>>,
    /// The reflectors that are paired with this device.
    pub known: Vec<Reflector>,
    /// For each reflector, when a test with this engine last found direct mode blocked.
    pub blocked_direct: BTreeMap<EndpointId, Timestamp>,
    /// The values of the provider's own options.
    pub options: OptionValues,
    /// An empty folder that only this test uses.
    pub scratch: PathBuf,
    /// Turns an error into the text that the result contains.
    pub describe: Describe,
}

impl TestJob {
    /// The key of the appliance, for a provider that needs it. Fails if there is none.
    pub(crate) fn key(&self) -> Result<&SecretKey, ApplianceError> {
        self.key.as_deref().ok_or_else(|| ApplianceError::Internal("the test has no key".to_owned()))
    }
}

/// Turns an error into the text that the result contains. The program that uses the library provides this function.
pub type Describe = fn(&ApplianceError) -> ErrorBody;

/// Receives the events of a running test, and can cancel it.
pub struct Observer {
    /// Called at once with every event.
    pub events: Box<dyn FnMut(Event) + Send>,
    /// Becomes true when the user wants to end the test.
    pub interrupt: watch::Receiver<bool>,
}

impl Observer {
    /// Completes when the user wants to end the test.
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
    /// The result, also of a run that failed half way or before any measurement.
    pub result: ResultDocument,
    /// Why the test is not complete; `None` if it is.
    pub failure: Option<ApplianceError>,
    /// What the test found out about direct mode at the reflector.
    pub finding: Option<DirectModeFinding>,
}
