//! A running test, in this process or in the service.

use paramedic_appliance::app::{RunningTest, TestEnd, TestEvent};
use paramedic_report::document::ResultDocument;

use super::super::failure::CommandFailure;
use crate::web::client::RemoteTest;
use crate::web::problem::Problem;
use crate::web::test_runs::{TestLine, TestLineEnd};

/// A handle to a running test, in this process or in the service.
pub(super) enum TestHandle {
    /// A test that runs in this process.
    Here(RunningTest),
    /// A test that runs in the service, and how it ended (`None` while it runs).
    AtService(RemoteTest, Option<Box<TestLineEnd>>),
}

/// How a test ended.
pub(super) struct TestOver {
    /// What the test measured; `None` if it measured nothing.
    pub(super) measured: Option<ResultDocument>,
    /// Why the test is not complete; `None` if the test is complete.
    pub(super) failure: Option<CommandFailure>,
    /// Why the result was not saved; `None` if the result was saved.
    pub(super) unsaved: Option<CommandFailure>,
}

impl TestHandle {
    /// Waits for the next event of the test. Returns `None` when the test has ended. Cancel safe.
    pub(super) async fn next_event(&mut self) -> Result<Option<TestEvent>, CommandFailure> {
        match self {
            Self::Here(test) => Ok(test.next_event().await),
            Self::AtService(test, end) => loop {
                match test.next().await? {
                    TestLine::Accepted(_) => {}
                    TestLine::WaitingForDevice => return Ok(Some(TestEvent::WaitingForDevice)),
                    TestLine::Event(event) => return Ok(Some(TestEvent::Test(*event))),
                    TestLine::End(found) => {
                        *end = Some(found);
                        return Ok(None);
                    }
                }
            },
        }
    }

    /// Asks the test to end. Its measurements so far are kept.
    pub(super) async fn cancel(&self) -> Result<(), CommandFailure> {
        match self {
            Self::Here(test) => {
                test.cancel();
                Ok(())
            }
            Self::AtService(test, _) => test.cancel().await,
        }
    }

    /// Waits until the test has ended. Returns `None` if the test was cancelled before it began. Fails if the test
    /// could not begin.
    pub(super) async fn end(self) -> Result<Option<TestOver>, CommandFailure> {
        match self {
            Self::Here(test) => {
                let over = |TestEnd { measured, failure, unsaved, .. }| TestOver {
                    measured,
                    failure: failure.map(CommandFailure::from),
                    unsaved: unsaved.map(CommandFailure::from),
                };
                Ok(test.end().await?.map(over))
            }
            Self::AtService(_, end) => {
                let TestLineEnd { measured, failure, unsaved, never_began } = end.map(|end| *end).unwrap_or_default();
                let failure = failure.map(Problem::into_failure);
                let unsaved = unsaved.map(Problem::into_failure);
                let measured = measured.map(|measured| *measured);
                Ok((!never_began).then_some(TestOver { measured, failure, unsaved }))
            }
        }
    }
}
