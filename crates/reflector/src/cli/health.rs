//! `reflector health`: whether the reflector runs and all is well.

use super::asking::{asking, one_answer, unexpected};
use super::output::print_line;
use crate::config::PlaceFlags;
use crate::failure::{Exit, Failure};
use crate::server::{AdminReply, AdminRequest};

pub(super) fn run(place: &PlaceFlags) -> Result<(), Failure> {
    asking(place, async |client| one_answer(client, &AdminRequest::Status, judge).await)
}

fn judge(answer: AdminReply) -> Result<(), Failure> {
    match answer {
        AdminReply::Status(status) if status.problems.is_empty() => {
            print_line(&status.state);
            Ok(())
        }
        AdminReply::Status(status) => Err(Failure::new(
            Exit::Failed,
            "unhealthy",
            format!("the reflector is {}", status.state),
            status.problems.join("; "),
            "fix that cause; the reflector grants sessions again within 5 s of a successful write",
        )),
        other => Err(unexpected(&Some(other))),
    }
}
