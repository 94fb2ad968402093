//! `schema`: the JSON Schema of everything that is printed as JSON.

use paramedic_appliance::failure::{Exit, Failure};
use paramedic_report::document;

use super::Context;

pub(super) fn run(context: &mut Context) -> Result<Exit, Failure> {
    context.output.line(&format!("{:#}", document::schema()))?;
    Ok(Exit::Done)
}
