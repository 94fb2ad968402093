//! `packetparamedic show-id`: prints the Endpoint ID of this device.

use paramedic_appliance::app::ServiceStatus;

use super::Context;
use super::failure::{CommandFailure, ExitStatus};

pub(super) async fn run(context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let id = match context.service().await? {
        Some(service) => service.get::<ServiceStatus>("/status").await?.endpoint_id,
        None => context.appliance()?.endpoint_id()?.to_string(),
    };
    context.output.line(&id)?;
    Ok(ExitStatus::Done)
}
