//! Where a speed test comes from: the trait, and the one list of those there are. A provider measures and says what it
//! measured; it neither prints nor saves.

mod iperf3;
mod reflector;
mod run_record;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use paramedic_engines::Engine;
use paramedic_engines::iperf3::{Credentials, Transport};
use paramedic_link::SecretKey;
use paramedic_link::test_spec::{DataMode, TestSpec};
use paramedic_report::document::{Event, ResultDocument};
use tokio::sync::watch;

use crate::failure::{Exit, Failure};
use crate::history::Reflector;
use crate::reflector_client::Route;
use crate::runner::Turn;

/// Every provider there is. Command line values and help read this list.
pub const PROVIDERS: &[&dyn Provider] = &[&reflector::Reflectors, &iperf3::Servers];

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

    /// The engine that it means when none is named, for what carries the payload.
    fn engine(&self, transport: Transport) -> &'static str;

    /// Whether latency can be probed with it.
    fn probes(&self) -> bool;

    /// What of `order` it does not do, in a clause; asked before anything is begun.
    fn cannot(&self, order: &TestOrder) -> Option<&'static str>;

    /// Runs one test to its end, whatever that is. `turn` is the device's: what it waits for elsewhere it waits for without
    /// it. `watch` hears of everything as it happens.
    fn run<'a>(
        &'a self,
        order: &'a TestOrder,
        turn: &'a mut Turn,
        watch: &'a mut Watch,
    ) -> Pin<Box<dyn Future<Output = Outcome> + 'a>>;
}

/// What one speed test is to do.
pub struct TestOrder {
    /// Who we are.
    pub key: Arc<SecretKey>,
    /// The reflectors that this device is paired with.
    pub known: Vec<Reflector>,
    /// Whom to measure against: with a reflector a saved name, a saved address, any address, and absent the only one
    /// there is; with others an address.
    pub peer: Option<String>,
    /// What is asked, in the words that both ends of a link speak; `data_mode` below decides which way it takes.
    pub spec: TestSpec,
    /// The way the data takes; absent: direct where it is offered.
    pub data_mode: Option<DataMode>,
    /// The start-up to leave out; absent: it is found.
    pub omit: Option<Duration>,
    /// What carries the payload, where the engine has a choice.
    pub transport: Transport,
    /// Who this device is to a server that is no reflector.
    pub credentials: Option<Credentials>,
    /// Whether to wait for a turn.
    pub wait: bool,
    /// How long to wait for a turn at most, where that was said.
    pub wait_at_most: Option<Duration>,
    /// Which way it may take.
    pub route: Route,
    /// A folder to work in, which is there, ours alone, and empty.
    pub scratch: PathBuf,
    /// Whether each interval's reading belongs in the result.
    pub intervals: bool,
    /// Whether what a program that moved the data said belongs in the result, in its own words.
    pub raw: bool,
}

impl TestOrder {
    /// What is asked when the data takes this way.
    pub fn spec(&self, data_mode: DataMode) -> TestSpec {
        TestSpec { data_mode, ..self.spec.clone() }
    }

    /// The ways that the data may take, as far as this end has the say; the best first.
    pub fn data_modes(&self, engine: &dyn Engine) -> impl Iterator<Item = DataMode> {
        let ways = [DataMode::DirectEphemeral, DataMode::Tunneled].into_iter();
        ways.filter(move |way| self.data_mode.is_none_or(|asked| asked == *way) && engine.data_modes().contains(way))
    }

    /// What of this the engine does not do in any of those ways, in a clause.
    pub fn cannot(&self, engine: &dyn Engine) -> Option<&'static str> {
        let refusals = self.data_modes(engine).map(|way| engine.cannot(&self.spec(way)));
        refusals.collect::<Option<Vec<_>>>()?.first().copied()
    }
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

/// The person ended it.
fn interrupted() -> Failure {
    Failure::new(
        Exit::Interrupted,
        "interrupted",
        "the test was ended early",
        "it was interrupted from the keyboard or by a signal",
        "run it again to its end for a result that can be compared",
    )
}
