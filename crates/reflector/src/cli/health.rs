//! `reflector health`: checks whether the reflector grants sessions; with `--live`, whether it answers at all.

use super::asking::{asking, one_answer, unexpected};
use super::output::print_line;
use crate::config::PlaceFlags;
use crate::failure::{Exit, Failure};
use crate::server::{AdminReply, AdminRequest};
use crate::status::Status;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: PlaceFlags,
    /// Exit with code 0 if the reflector answers at all, even if it grants no sessions
    #[arg(long)]
    live: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let judge = |answer| match answer {
        AdminReply::Status(status) if args.live || is_ready(&status) => {
            print_line(&status.state);
            Ok(())
        }
        AdminReply::Status(status) => Err(not_ready(&status)),
        other => Err(unexpected(&Some(other))),
    };
    asking(&args.place, async |client| one_answer(client, &AdminRequest::Status, judge).await)
}

fn is_ready(status: &Status) -> bool {
    status.state == "serving" && status.problems.is_empty()
}

fn not_ready(status: &Status) -> Failure {
    let what = format!("the reflector is {}", status.state);
    let (because, try_) = if status.problems.is_empty() {
        let because = "the reflector was told to stop, and grants no further sessions".to_owned();
        (because, "wait until the running sessions have ended, then start the reflector again")
    } else {
        let try_ = "remove the cause; once it can write, the reflector grants sessions again within a few seconds";
        (status.problems.join("; "), try_)
    };
    Failure::new(Exit::Failed, "unhealthy", what, because, try_)
}
