//! Runs the tests of this appliance, one at a time, and reports their events. Reads the clock to measure waiting times.

#![expect(clippy::disallowed_methods, reason = "the shell that times the wait for the device")]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use paramedic_link::key_file::KeyFileError;
use paramedic_link::test_spec::EngineId;
use paramedic_link::{EndpointId, SecretKey};
use paramedic_report::document::{Event, ResultDocument};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::Appliance;
use crate::error::ApplianceError;
use crate::providers::options::OptionValues;
use crate::providers::{self, Observer, Outcome, PROVIDERS, Provider, TestJob};
use crate::request::TestRequest;
use crate::store::{DirectModeFinding, Reflector};
use crate::test_lock::{LockAccess, TestLock};

/// An event of a running test.
#[derive(Clone, Debug, PartialEq)]
pub enum TestEvent {
    /// Another test runs on this device. The new test waits until that test ends.
    WaitingForDevice,
    /// An event that the test reports while it runs. The result or the error at its end is never such an event.
    Test(Event),
}

/// How a test ended.
pub struct TestEnd {
    /// The measurements, compared with the thresholds of the request. A test that failed can have measurements too.
    /// `None` if nothing was measured.
    pub measured: Option<ResultDocument>,
    /// Why the test is not complete; `None` if it is complete.
    pub failure: Option<ApplianceError>,
    /// Why the measurements could not be saved. `None` if they were saved, if the request discards them, or if there
    /// are none.
    pub unsaved: Option<ApplianceError>,
    /// The id under which the run was saved, even if it measured nothing; `None` if it was not saved.
    pub saved_as: Option<Uuid>,
    /// The payload bytes of the whole run, in both directions.
    pub data_used_bytes: u64,
}

/// The part of the appliance's state that a test needs.
#[derive(Default)]
struct TestState {
    key: Option<Arc<SecretKey>>,
    known: Vec<Reflector>,
    blocked_direct: BTreeMap<EndpointId, Timestamp>,
}

/// A handle to a running test. Dropping it does not end the test.
pub struct RunningTest {
    events: mpsc::UnboundedReceiver<TestEvent>,
    cancel: watch::Sender<bool>,
    end: JoinHandle<Result<Option<TestEnd>, ApplianceError>>,
}

impl RunningTest {
    /// Waits for the next event; `None` once the test has ended. Cancel safe.
    pub async fn next_event(&mut self) -> Option<TestEvent> {
        self.events.recv().await
    }

    /// Asks the test to end early. Its measurements so far are kept.
    pub fn cancel(&self) {
        self.cancel.send_replace(true);
    }

    /// Waits until the test has ended. Returns `None` if the test was cancelled before it began. Fails if the test
    /// could not begin, or if its task panicked.
    pub async fn end(self) -> Result<Option<TestEnd>, ApplianceError> {
        let Self { cancel: _cancel, end, .. } = self;
        end.await.unwrap_or_else(|error| Err(ApplianceError::BrokeOff(error.to_string())))
    }
}

impl Appliance {
    /// Checks a request and starts its test. Only one test runs at a time, across all processes that use the state
    /// folder. If another test runs, the new test waits for as long as the request allows.
    ///
    /// `options` are the values of the provider's own options.
    pub async fn run(&self, request: TestRequest, options: OptionValues) -> Result<RunningTest, ApplianceError> {
        let (provider, job, temporary) = self.prepare(request, options).await?;
        let (to_client, events) = mpsc::unbounded_channel();
        let (cancel, cancelled) = watch::channel(false);
        let appliance = self.clone();
        let end = tokio::spawn(async move {
            // Puts the future of the test, which is large like the result, on the heap.
            let end = Box::pin(appliance.run_to_end(provider, job, to_client, cancelled)).await;
            drop(temporary);
            end
        });
        Ok(RunningTest { events, cancel, end })
    }

    /// Checks whether a test could run as requested, without running it. Assumes that none of the provider's own
    /// options is set.
    pub async fn check_request(&self, request: &TestRequest) -> Result<(), ApplianceError> {
        self.prepare(request.clone(), OptionValues::default()).await.map(drop)
    }

    /// The state that a test needs if its result is saved. Fails if the result could not be saved.
    async fn state_to_write(&self, engine: &EngineId) -> Result<TestState, ApplianceError> {
        let writable = async {
            let key = self.key()?;
            let store = self.store().await?;
            store.check_writable().await?;
            Ok((key, store))
        };
        let (key, store) = writable.await.map_err(ApplianceError::or_cannot_save)?;
        let (known, blocked_direct) = (store.reflectors().await?, store.blocked_direct(engine).await?);
        Ok(TestState { key: Some(key), known, blocked_direct })
    }

    /// The state that a test needs if its result is discarded. Creates and changes nothing in the state folder. A key
    /// or a database that does not exist there is left out, because not every provider needs it.
    async fn state_to_read(&self, provider: &dyn Provider, engine: &EngineId) -> Result<TestState, ApplianceError> {
        if !provider.needs_identity() {
            return Ok(TestState { key: self.key().ok(), ..TestState::default() });
        }
        let key = match self.key() {
            Err(ApplianceError::Key(KeyFileError::Absent { .. })) => return Ok(TestState::default()),
            key => Some(key?),
        };
        let store = match self.reading_store().await {
            Err(ApplianceError::Storage(error)) if error.is_absent() => {
                return Ok(TestState { key, ..TestState::default() });
            }
            store => store?,
        };
        if store.is_empty().await? {
            return Ok(TestState { key, ..TestState::default() });
        }
        // A database of an earlier version, which is not migrated here, may not have this table.
        let blocked_direct = store.blocked_direct(engine).await.unwrap_or_default();
        Ok(TestState { key, known: store.reflectors().await?, blocked_direct })
    }

    /// Checks a request. Returns its provider, everything that the test needs, and the temporary folder that the test
    /// may use.
    async fn prepare(
        &self,
        request: TestRequest,
        options: OptionValues,
    ) -> Result<(&'static dyn Provider, TestJob, Option<TempDir>), ApplianceError> {
        let provider = providers::find(&request.provider)
            .ok_or_else(|| ApplianceError::NoSuchProvider(request.provider.clone()))?;
        let state = if request.discards_result {
            self.state_to_read(provider, &request.spec.engine).await?
        } else {
            self.state_to_write(&request.spec.engine).await?
        };
        // If no folder can be created, the test still runs, because not every engine needs one.
        let temporary = request.discards_result.then(temporary_folder).and_then(Result::ok);
        let scratch = match &temporary {
            Some(folder) => folder.path().to_owned(),
            None => TestLock::scratch(self.state_dir()),
        };
        let describe = self.state.describe;
        let TestState { key, known, blocked_direct } = state;
        let mut job = TestJob { request, key, known, blocked_direct, options, scratch, describe };
        job.request.check_peer()?;
        if let Err(bad) = job.request.spec.check() {
            return Err(ApplianceError::Unsupported(bad.to_string()));
        }
        if let Some(foreign) = job.options.first_outside(provider.options()) {
            return Err(ApplianceError::Unsupported(foreign_option(foreign, provider)));
        }
        provider.check_job(&job)?;
        job.request.route.origin.check().map_err(ApplianceError::Origin)?;
        // Checks this host before the test occupies the other end.
        let engine = job.request.spec.engine.clone();
        match tokio::task::spawn_blocking(move || provider.check_host(&engine)).await {
            Ok(Err(lacking)) => {
                let engine = job.request.spec.engine.to_string();
                return Err(ApplianceError::EngineUnavailable { engine, lacking });
            }
            Ok(Ok(support)) => job.request.spec.engine_support = support,
            Err(_) => {}
        }
        Ok((provider, job, temporary))
    }

    async fn run_to_end(
        self,
        provider: &'static dyn Provider,
        mut job: TestJob,
        events: mpsc::UnboundedSender<TestEvent>,
        mut cancelled: watch::Receiver<bool>,
    ) -> Result<Option<TestEnd>, ApplianceError> {
        let requested_at = Instant::now();
        let access = if job.request.discards_result { LockAccess::Read } else { LockAccess::Write };
        let taken = TestLock::take(self.state_dir(), access);
        let mut lock = match taken.map_err(ApplianceError::or_cannot_save)? {
            Some(lock) => lock,
            None if !job.request.turn.may_wait() => return Ok(Some(Box::pin(self.busy(provider, &job)).await)),
            None => {
                // Sending fails if the client has dropped its receiver of events, which does not matter.
                events.send(TestEvent::WaitingForDevice).ok();
                let waited = tokio::select! {
                    lock = TestLock::wait(self.state_dir(), access) => Some(lock?),
                    () = elapsed(job.request.turn.limit()) => None,
                    _ = cancelled.wait_for(|wanted| *wanted) => return Ok(None),
                };
                match waited {
                    Some(lock) => lock,
                    None => return Ok(Some(Box::pin(self.busy(provider, &job)).await)),
                }
            }
        };
        job.request.turn = job.request.turn.after(requested_at.elapsed());
        let report = move |event| {
            events.send(TestEvent::Test(event)).ok();
        };
        let mut observer = Observer { events: Box::new(report), interrupt: cancelled };
        let outcome = provider.run(&job, &mut lock, &mut observer).await;
        Ok(Some(Box::pin(self.conclude(&job, outcome)).await))
    }

    /// The end of a test that did not run because another test on this device was running.
    async fn busy(&self, provider: &dyn Provider, job: &TestJob) -> TestEnd {
        Box::pin(self.conclude(job, providers::never_started(job, provider, ApplianceError::DeviceBusy))).await
    }

    /// Compares a run with the thresholds, and saves it unless the request discards the result. A run that measured
    /// nothing is saved too.
    async fn conclude(&self, job: &TestJob, outcome: Outcome) -> TestEnd {
        let Outcome { mut result, failure, finding } = outcome;
        let is_measured = result.has_measurements();
        if is_measured {
            result.thresholds = job.request.thresholds.judge(&result);
        }
        let unsaved = match job.request.discards_result {
            true => None,
            false => self.save(&result, finding.as_ref()).await.err(),
        };
        if let Some(error) = &unsaved {
            tracing::warn!(%error, "the run is not saved");
        }
        let saved_as = (unsaved.is_none() && !job.request.discards_result).then_some(result.id);
        let data_used_bytes = result.data_used_bytes;
        // A run without measurements need not be saved, so an error of saving it is not reported.
        let unsaved = unsaved.filter(|_| is_measured);
        TestEnd { measured: is_measured.then_some(result), failure, unsaved, saved_as, data_used_bytes }
    }

    async fn save(&self, result: &ResultDocument, finding: Option<&DirectModeFinding>) -> Result<(), ApplianceError> {
        let store = self.store().await?;
        store.save_run(result).await?;
        if let Some(finding) = finding
            && let Err(error) = store.note_direct_mode(finding, result.finished_at).await
        {
            tracing::warn!(%error, "what the test found about direct mode is not saved");
        }
        Ok(())
    }
}

/// A private working folder for a test, outside of the state folder.
fn temporary_folder() -> io::Result<TempDir> {
    tempfile::Builder::new().prefix("packetparamedic-").tempdir()
}

/// The error text for an option that belongs to another provider.
fn foreign_option(name: &str, provider: &dyn Provider) -> String {
    let has_it = |other: &&&dyn Provider| other.options().iter().any(|option| option.name == name);
    let owner = PROVIDERS.iter().find(has_it).map_or("another one", |owner| owner.id());
    format!("--{name} is an option of the provider {owner}, not of {}", provider.id())
}

/// Completes after `limit`. Without a limit, never completes.
async fn elapsed(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use paramedic_link::test_spec::{DataMode, Load, PhaseSpec, TestSpec};
    use paramedic_report::document::ErrorBody;

    use super::*;
    use crate::payload_transport::PayloadTransport;
    use crate::providers::options::OptionValue;
    use crate::request::TurnWait;

    fn describe(error: &ApplianceError) -> ErrorBody {
        let text = error.to_string();
        ErrorBody { code: String::new(), what: text, because: String::new(), try_: String::new(), retry_after_ms: None }
    }

    fn appliance(folder: &std::path::Path) -> Appliance {
        Appliance::open(folder, describe).unwrap().0
    }

    fn request(provider: &str) -> TestRequest {
        let phases = vec![PhaseSpec { load: Load::Download, duration_ms: 1000 }];
        TestRequest {
            provider: provider.to_owned(),
            peer: None,
            spec: TestSpec::new(EngineId::try_from("tcp").unwrap(), DataMode::Tunneled, phases, 1),
            adapts_probes: false,
            data_mode: None,
            omit: None,
            budget_bytes: None,
            transport: PayloadTransport::Tcp,
            turn: TurnWait::ProviderLimit,
            route: crate::reflector_client::Route::default(),
            intervals: false,
            raw: false,
            thresholds: paramedic_report::thresholds::Thresholds::default(),
            discards_result: false,
        }
    }

    #[tokio::test]
    async fn a_request_with_an_unknown_id_is_refused_before_it_runs() {
        let folder = tempfile::tempdir().unwrap();
        let appliance = appliance(folder.path());
        let cases = [
            (request("nonesuch"), ApplianceError::NoSuchProvider(String::new())),
            (request("iperf3"), ApplianceError::Unsupported(String::new())),
        ];
        for (request, expected) in cases {
            let refused = appliance.run(request, OptionValues::default()).await.err().unwrap();
            assert_eq!(std::mem::discriminant(&refused), std::mem::discriminant(&expected), "{refused}");
        }
    }

    #[tokio::test]
    async fn an_option_of_another_provider_is_refused_and_its_owner_named() {
        let folder = tempfile::tempdir().unwrap();
        let option =
            providers::find("iperf3").unwrap().options().iter().find(|option| option.name == "username").unwrap();
        let mut options = OptionValues::default();
        options.set(option, OptionValue { text: "mario".to_owned().into(), file: None });
        let refused = appliance(folder.path()).run(request("reflector"), options).await.err().unwrap();
        let ApplianceError::Unsupported(reason) = refused else { panic!("another error") };
        assert_eq!(reason, "--username is an option of the provider iperf3, not of reflector");
    }

    #[tokio::test]
    async fn a_test_waits_for_the_device_and_is_cancelled_by_its_handle() {
        let folder = tempfile::tempdir().unwrap();
        let appliance = appliance(folder.path());
        let held = TestLock::take(folder.path(), LockAccess::Write).unwrap().unwrap();
        let mut waiting = appliance.run(request("reflector"), OptionValues::default()).await.unwrap();
        assert_eq!(waiting.next_event().await, Some(TestEvent::WaitingForDevice));
        waiting.cancel();
        assert_eq!(waiting.next_event().await, None);
        assert!(waiting.end().await.unwrap().is_none());
        let refused = appliance
            .run(TestRequest { turn: TurnWait::No, ..request("reflector") }, OptionValues::default())
            .await
            .unwrap();
        let busy = refused.end().await.unwrap().unwrap();
        assert!(busy.measured.is_none() && matches!(busy.failure, Some(ApplianceError::DeviceBusy)));
        // The cancelled wait may still take the lock once before it ends.
        drop(held);
        let end =
            appliance.run(request("reflector"), OptionValues::default()).await.unwrap().end().await.unwrap().unwrap();
        assert!(matches!(end.failure, Some(ApplianceError::NoReflectorPaired)));
    }
}
