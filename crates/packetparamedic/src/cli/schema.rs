//! `packetparamedic schema`: prints the JSON Schema of results, self-tests, errors and events.

use paramedic_report::document;

use super::Context;
use super::failure::{CommandFailure, ExitStatus};

pub(super) fn run(context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    context.output.line(&format!("{:#}", document::schema()))?;
    Ok(ExitStatus::Done)
}
