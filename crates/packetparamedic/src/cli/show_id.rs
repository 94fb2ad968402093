//! `packetparamedic show-id`: prints the Endpoint ID of this device.

use super::Context;
use super::failure::{CommandFailure, ExitStatus};

pub(super) fn run(context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let id = context.appliance()?.endpoint_id()?;
    context.output.line(&id.to_string())?;
    Ok(ExitStatus::Done)
}
