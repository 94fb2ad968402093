//! The providers of speed tests: the trait [`Provider`] and the list of all providers. A provider measures and returns
//! a result, but neither prints nor saves the result.

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

/// All providers. The command line takes their ids, options and help texts from this list.
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

    /// The options that only this provider has. The command line has a flag for each option.
    fn options(&self) -> &'static [ProviderOption] {
        &[]
    }

    /// The id of the default engine for `transport`. The id may be one that only this provider knows.
    fn default_engine(&self, transport: PayloadTransport) -> &'static str;

    /// Whether the engine with this id loads the path. If not, a test with this engine is a single idle phase.
    fn loads(&self, _engine: &str) -> bool {
        true
    }

    /// Whether the tests of this provider include latency probes.
    fn probes(&self) -> bool;

    /// Whether the other end identifies this device by its key.
    fn needs_identity(&self) -> bool;

    /// Checks that this provider can run `job` with the values of its own options. Called before any I/O.
    fn check_job(&self, job: &TestJob) -> Result<(), ApplianceError>;

    /// Checks that this device has what the engine needs. Returns the names of the features that the engine supports on
    /// this device, preferred first. May block for some seconds, so it is called on a thread of its own.
    fn check_host(&self, _engine: &EngineId) -> Result<Vec<PeerText>, Unavailable> {
        Ok(Vec::new())
    }

    /// Runs one test to its end. `lock` is the test lock of this device; the provider releases the lock while the test
    /// waits in a queue of the other end. `observer` gets each event as soon as it happens, and can end the test.
    fn run<'a>(
        &'a self,
        job: &'a TestJob,
        lock: &'a mut TestLock,
        observer: &'a mut Observer,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;
}

/// A request for a test, with the data that the appliance adds to the request.
pub struct TestJob {
    /// The request as the user made it.
    pub request: TestRequest,
    /// The identity key of the appliance; `None` if no key exists and the provider needs none.
    pub key: Option<Arc<SecretKey>>,
    /// The reflectors that are paired with this device.
    pub known: Vec<Reflector>,
    /// For each reflector, when a test with the requested engine last found direct mode blocked there.
    pub blocked_direct: BTreeMap<EndpointId, Timestamp>,
    /// The values of the provider's own options.
    pub options: OptionValues,
    /// An empty folder that only this test uses.
    pub scratch: PathBuf,
    /// Describes an error for the result.
    pub describe: Describe,
}

impl TestJob {
    /// The identity key of the appliance, for a provider that needs the key. Fails if there is none.
    pub(crate) fn key(&self) -> Result<&SecretKey, ApplianceError> {
        self.key.as_deref().ok_or_else(|| ApplianceError::Internal("the test has no key".to_owned()))
    }
}

/// A function that describes an error in the form in which a result contains it. The program that uses this library
/// provides the function.
pub type Describe = fn(&ApplianceError) -> ErrorBody;

/// Receives the events of a running test, and can cancel it.
pub struct Observer {
    /// Called with each event as soon as it happens.
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

/// The outcome of a test that failed before its provider started it.
pub fn never_started(job: &TestJob, provider: &dyn Provider, failure: ApplianceError) -> Outcome {
    RunRecord::begin(job, provider.id()).conclude(job, Err(failure))
}

/// The outcome of a test: its result, and why the test is not complete.
pub struct Outcome {
    /// The result. A run that failed half way or before any measurement has a result too.
    pub result: ResultDocument,
    /// Why the test is not complete; `None` if it is complete.
    pub failure: Option<ApplianceError>,
    /// What the test found out about direct mode at the reflector; `None` if nothing.
    pub finding: Option<DirectModeFinding>,
}
