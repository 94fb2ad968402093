//! `show-id`: this device's Endpoint ID.

use paramedic_appliance::failure::{Exit, Failure};

use super::Context;

pub(super) fn run(context: &mut Context) -> Result<Exit, Failure> {
    let id = context.identity()?.id();
    context.output.line(&id.to_string())?;
    Ok(Exit::Done)
}
