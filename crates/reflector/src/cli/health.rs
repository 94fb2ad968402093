//! `reflector health`: whether the reflector runs and all is well.

use super::asking::{asking, one_answer, unexpected};
use super::output::print_line;
use crate::config::PlaceFlags;
use crate::failure::{Exit, Failure};
use crate::server::{Ask, Tell};

pub(super) fn run(place: &PlaceFlags) -> Result<(), Failure> {
    asking(place, async |client| one_answer(client, &Ask::Status, judge).await)
}

fn judge(answer: Tell) -> Result<(), Failure> {
    match answer {
        Tell::Status(status) if status.problems.is_empty() => {
            print_line(&status.state);
            Ok(())
        }
        Tell::Status(status) => Err(Failure::new(
            Exit::Failed,
            "unhealthy",
            format!("the reflector is {}", status.state),
            status.problems.join("; "),
            "remove that cause: the reflector grants again within 5 s of a write that succeeds",
        )),
        other => Err(unexpected(&Some(other))),
    }
}
