//! `packetparamedic self-test`: measures the highest data rates of this device and prints the result. The crate
//! `paramedic-report` judges the numbers.

use std::path::PathBuf;
use std::time::Duration;

use paramedic_host::self_test;
use paramedic_report::self_test::Role;
use paramedic_report::text;

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use super::output::OutputFormat;
use super::values::time;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Duration of each measurement, from 100ms to 10s: seconds, or a duration such as 500ms
    #[arg(short = 't', long = "time", value_name = "SECS", default_value = "2", value_parser = each)]
    time: Duration,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

fn each(text: &str) -> Result<Duration, String> {
    self_test::check_each(time(text)?)
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let mut interrupt = context.interrupts.watch()?;
    let scratch = self_test::scratch().ok();
    // Only some engines need a folder; they report an error if there is none.
    let work_in = scratch.as_ref().map_or_else(PathBuf::new, |scratch| scratch.path().to_owned());
    let live = context.output.live();
    let test = tokio::task::spawn_blocking(move || {
        self_test::run(Role::Appliance, args.time, &work_in, &|step| live.step(step.number, step.of, &step.what))
    });
    let test = tokio::select! {
        test = test => test.map_err(|error| {
            let try_ = "this is a fault of the program; please report it";
            CommandFailure::new(ExitStatus::Failed, "internal", "the self-test ended without a result", error.to_string(), try_)
        })?,
        // The measuring thread ends with the process.
        _ = interrupt.wait_for(|wanted| *wanted) => {
            context.output.live().over();
            return Err(interrupted());
        }
    };
    drop(scratch);
    match context.output.format() {
        OutputFormat::Human => context.output.lines(&text::self_test(&test))?,
        OutputFormat::Json | OutputFormat::JsonStream => context.output.json(&test)?,
    }
    Ok(if test.rates.is_empty() { ExitStatus::Failed } else { ExitStatus::Done })
}

fn interrupted() -> CommandFailure {
    let because = "Ctrl-C or a signal interrupted the self-test";
    CommandFailure::new(
        ExitStatus::Interrupted,
        "interrupted",
        "the self-test has no result",
        because,
        "run the self-test again; with the default -t it takes less than a minute",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_within_its_limits() {
        assert_eq!(each("2"), Ok(Duration::from_secs(2)));
        assert_eq!(each("250ms"), Ok(Duration::from_millis(250)));
        assert!(each("99ms").is_err() && each("11").is_err() && each("").is_err());
    }
}
