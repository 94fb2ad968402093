//! `show-id`: this device's Endpoint ID.

use super::Context;
use crate::failure::{Exit, Failure};

pub(super) fn run(context: &mut Context) -> Result<Exit, Failure> {
    let id = context.identity()?.id();
    context.output.line(&id.to_string())?;
    Ok(Exit::Done)
}
