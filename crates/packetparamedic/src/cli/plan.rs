//! `plan`: manages the rates that the contract with the internet provider promises.

use paramedic_appliance::plan::{Plan, PromisedRate};
use paramedic_appliance::store::StoredPlan;
use paramedic_report::quantity;
use serde_json::json;

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use super::object_args::ObjectArgs;
use super::values::rate;
use crate::web::plan::{PlanAnswer, ROUTE};

pub(super) type Args = ObjectArgs<Command>;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Print the plan, which has the rates of the internet contract; the default subcommand
    Show,
    /// Set the plan: the rates of the internet contract, with which reports and alert rules compare results
    Set(Promised),
    /// Remove the plan
    Clear,
}

/// The rates that the internet contract promises. In a file for `apply`, the table `[plan]` has these options as keys.
#[derive(clap::Args)]
pub(super) struct Promised {
    /// The name that the internet provider gives to the plan
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The promised download rate in bits per second, such as 250M or 1G
    #[arg(long, value_name = "RATE", value_parser = rate)]
    download: u64,
    /// The promised upload rate in bits per second, such as 50M
    #[arg(long, value_name = "RATE", value_parser = rate)]
    upload: u64,
    /// The download rate that the contract calls normally available, in bits per second, such as 200M
    #[arg(long, value_name = "RATE", value_parser = rate)]
    download_normal: Option<u64>,
    /// The download rate that the contract guarantees at all times, in bits per second, such as 150M
    #[arg(long, value_name = "RATE", value_parser = rate)]
    download_minimum: Option<u64>,
    /// The upload rate that the contract calls normally available, in bits per second, such as 40M
    #[arg(long, value_name = "RATE", value_parser = rate)]
    upload_normal: Option<u64>,
    /// The upload rate that the contract guarantees at all times, in bits per second, such as 30M
    #[arg(long, value_name = "RATE", value_parser = rate)]
    upload_minimum: Option<u64>,
}

impl From<Promised> for Plan {
    fn from(promised: Promised) -> Self {
        let rate = |promised_bps, normal_bps, minimum_bps| PromisedRate { promised_bps, normal_bps, minimum_bps };
        Self {
            name: promised.name,
            download: rate(promised.download, promised.download_normal, promised.download_minimum),
            upload: rate(promised.upload, promised.upload_normal, promised.upload_minimum),
        }
    }
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let json = args.json;
    match args.command.unwrap_or(Command::Show) {
        Command::Show => {
            let answer: PlanAnswer = match context.service().await? {
                Some(service) => service.get(ROUTE).await?,
                None => PlanAnswer { plan: context.appliance()?.plan().await? },
            };
            match &answer.plan {
                _ if json => context.output.json_line(&answer)?,
                Some(stored) => print(stored, context)?,
                None => context.output.note("no plan yet: packetparamedic plan set --download 250M --upload 40M"),
            }
        }
        Command::Set(promised) => {
            let plan = Plan::from(promised);
            let stored: StoredPlan = match context.service().await? {
                Some(service) => {
                    let text = serde_json::to_string(&plan).map_err(|error| unprintable(&error))?;
                    service.put(ROUTE, text).await?
                }
                None => context.appliance()?.set_plan(&plan).await?,
            };
            match json {
                true => context.output.json_line(&json!({ "event": "set", "plan": stored }))?,
                false => print(&stored, context)?,
            }
        }
        Command::Clear => {
            let removed: PlanAnswer = match context.service().await? {
                Some(service) => service.delete(ROUTE).await?,
                None => PlanAnswer { plan: context.appliance()?.clear_plan().await? },
            };
            match (json, &removed.plan) {
                (true, plan) => context.output.json_line(&json!({ "event": "cleared", "was_set": plan.is_some() }))?,
                (false, Some(_)) => context.output.line("cleared")?,
                (false, None) => context.output.note("there was no plan"),
            }
        }
    }
    Ok(ExitStatus::Done)
}

fn print(stored: &StoredPlan, context: &Context) -> Result<(), CommandFailure> {
    let plan = &stored.plan;
    if let Some(name) = &plan.name {
        context.output.line(name)?;
    }
    for (word, rate) in [("download", plan.download), ("upload", plan.upload)] {
        let others = [("normal", rate.normal_bps), ("minimum", rate.minimum_bps)];
        let others = others.iter().filter_map(|(word, bps)| Some(format!(", {word} {}", quantity::rate((*bps)?))));
        let others = others.collect::<String>();
        context.output.line(&format!("{word}: {}{others}", quantity::rate(rate.promised_bps)))?;
    }
    Ok(())
}

fn unprintable(error: &serde_json::Error) -> CommandFailure {
    CommandFailure::new(ExitStatus::Failed, "internal", "cannot set the plan", error, "please report this error")
}
