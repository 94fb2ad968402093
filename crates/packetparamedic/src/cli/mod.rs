//! The command line of the appliance: one module for each subcommand, and the dispatch to them. The module `output`
//! prints results, notes and failures.

mod channel;
mod completions;
mod config;
mod configuration;
mod doctor;
pub mod failure;
mod history;
mod interrupts;
mod moment;
mod monitor;
mod object_args;
pub mod output;
mod pair_reflector;
mod plan;
mod plot_file;
mod progress;
mod provider_flags;
mod reflectors;
mod report;
mod rotate_identity;
mod rule;
mod schedule;
mod schema;
mod self_test;
mod serve;
mod show_id;
mod speed_test;
mod status;
mod store;
mod table_lines;
mod token;
mod values;

use std::cell::{Cell, OnceCell};
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use paramedic_appliance::ApplianceError;
use paramedic_appliance::app::Appliance;
use paramedic_engines::thread_limit::ThreadLimitReached;
use paramedic_host::config::{self as layers, Configuration, FlagValues, Flags, Origins};
use paramedic_host::{runtime, version};
use paramedic_link::state_folder::Change;

use crate::config::{Color, CommonFlags, Settings};
use crate::web::client::{FoundService, ServiceClient};
use failure::{CommandFailure, ExitStatus};
use interrupts::Interrupts;
use output::{Output, OutputFormat, Verbosity, Wanted};

/// The first commands to run, shown below the help text.
const FIRST_STEPS: &str = "\
First steps:
  packetparamedic pair-reflector --peer HOST      asks for the code that `reflector pair` prints on HOST
  packetparamedic speed-test";

/// Measures where a network is slow, and gives you the evidence.
#[derive(Parser)]
#[command(name = "packetparamedic", version = version::with_commit(), max_term_width = 100)]
#[command(arg_required_else_help = true)]
#[command(after_help = FIRST_STEPS)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// The flags that every subcommand accepts.
#[derive(clap::Args)]
#[command(next_help_heading = "Options of every command")]
struct Common {
    #[command(flatten)]
    settings: Flags<CommonFlags>,
    /// Use the state folder directly, even if a service is running
    #[arg(long, global = true)]
    local: bool,
    /// Print only the result and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Report every detail, and log the program's actions on stderr; -vv logs everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Subcommand)]
enum Command {
    /// Measure the path to a reflector: latency, download, upload
    SpeedTest(Box<speed_test::Args>),
    /// Pair this device with a reflector, using the code that `reflector pair` prints on the reflector's host
    #[command(visible_alias = "pair")]
    PairReflector(pair_reflector::Args),
    /// List, check, rename, import or remove the paired reflectors
    Reflectors(reflectors::Args),
    /// List, show, export, import and delete the saved results
    History(history::Args),
    /// Back up, check or prune the database of results, pairings and schedules
    Store(store::Args),
    /// Manage the tests that the service runs by itself: add, list, remove, enable, disable
    Schedule(schedule::Args),
    /// Measure latency and loss all the time: list, add, remove, enable, disable and show monitors
    Monitor(monitor::Args),
    /// List the outages, with the targets that were unreachable and those that stayed reachable
    Outages(monitor::OutagesArgs),
    /// Manage the rules by which the service sends alerts: list, add, show, remove, enable, disable, preview
    Rule(rule::Args),
    /// List the alerts
    Alerts(rule::AlertsArgs),
    /// Show, set or clear the plan, which contains the rates that your contract promises
    Plan(plan::Args),
    /// Write a report for the provider of the line: measured and promised rates, outages, and the method of measurement
    Report(Box<report::Args>),
    /// Manage where alert messages go (webhook, ntfy, mail, a command): list, add, remove, enable, disable, test
    Channel(channel::Args),
    /// Manage the tokens for the API of the service, and set up the login: list, add, remove, setup
    Token(token::Args),
    /// Apply a file: make schedules, monitors, channels, rules, plan and reflector names match it
    Apply(configuration::ApplyArgs),
    /// Print the schedules, monitors, channels, rules, plan and reflector names as a file for `apply`
    ExportConfig,
    /// Run the service until a signal stops it; it runs scheduled tests and monitors, and answers other commands
    Serve,
    /// Show what the running service does now, and what it will run next
    Status(status::Args),
    /// Check the running service; exit code 1 if it cannot use its database, is stopping or is not running
    Health(status::HealthArgs),
    /// Inspect this device and its connection to each reflector, without load; exit code 1 if it finds a problem
    Doctor(doctor::Args),
    /// Measure the highest data rates of this device, and find what limits them; takes less than a minute by default
    SelfTest(self_test::Args),
    /// Print this device's Endpoint ID; creates the identity at first use
    ShowId,
    /// Create a new identity; this device must then be paired again with every reflector
    RotateIdentity(rotate_identity::Args),
    /// Explain, check or show the configuration
    Config {
        #[command(subcommand)]
        command: config::Command,
    },
    /// Print the JSON Schema of results, self-tests, errors and events
    Schema,
    /// Print shell completions
    Completions(completions::Args),
}

impl Command {
    /// The output format that the flags of the subcommand select.
    fn format(&self) -> OutputFormat {
        match self {
            Command::SpeedTest(args) => args.format(),
            Command::PairReflector(args) if args.json => OutputFormat::Json,
            Command::Reflectors(args) if args.json => OutputFormat::Json,
            Command::History(args) if args.json => OutputFormat::Json,
            Command::Apply(args) if args.json => OutputFormat::Json,
            Command::Store(args) if args.json => OutputFormat::Json,
            Command::Schedule(args) if args.json => OutputFormat::Json,
            Command::Monitor(args) if args.json => OutputFormat::Json,
            Command::Outages(args) if args.json => OutputFormat::Json,
            Command::Rule(args) if args.json => OutputFormat::Json,
            Command::Alerts(args) if args.json => OutputFormat::Json,
            Command::Status(args) if args.json => OutputFormat::Json,
            Command::Plan(args) if args.json => OutputFormat::Json,
            Command::Channel(args) if args.json => OutputFormat::Json,
            Command::Token(args) if args.json => OutputFormat::Json,
            Command::SelfTest(args) if args.json => OutputFormat::Json,
            Command::Doctor(args) if args.json => OutputFormat::Json,
            _ => OutputFormat::Human,
        }
    }

    /// The settings that the flags of the subcommand set.
    fn settings(&self) -> FlagValues {
        match self {
            Command::SpeedTest(args) => args.settings(),
            Command::Schedule(args) => args.settings(),
            _ => FlagValues::default(),
        }
    }
}

/// The settings, the output and the appliance that a subcommand uses.
struct Context {
    settings: Settings,
    /// Where the values of the settings come from.
    origins: Origins,
    /// The settings that the command line sets.
    flags: FlagValues,
    output: Output,
    appliance: OnceCell<Appliance>,
    interrupts: Interrupts,
    /// Whether the user asked not to use the running service (`--local`).
    is_local: bool,
    /// Whether the note about which store is used has been printed.
    is_store_named: Cell<bool>,
}

impl Context {
    /// Returns the appliance. The first call opens it.
    fn appliance(&self) -> Result<&Appliance, CommandFailure> {
        Ok(self.open_appliance()?)
    }

    fn open_appliance(&self) -> Result<&Appliance, ApplianceError> {
        if let Some(appliance) = self.appliance.get() {
            return Ok(appliance);
        }
        let configured = &self.settings.state_dir;
        if !self.is_local && self.settings.service_sockets(&self.origins).iter().any(|socket| socket.exists()) {
            self.name_store("this command does not ask the service");
        }
        let (appliance, change) = Appliance::open(configured, failure::describe)?;
        if let Some(change) = change {
            self.output.note(&describe_change(configured, appliance.state_dir(), &change));
        }
        Ok(self.appliance.get_or_init(|| appliance.with_database(self.settings.database())))
    }
}

impl Context {
    /// Returns the running service; `None` if there is none, or if this command must not use it.
    async fn service(&self) -> Result<Option<ServiceClient>, CommandFailure> {
        if self.is_local {
            return Ok(None);
        }
        match ServiceClient::find(&self.settings.service_sockets(&self.origins)).await {
            FoundService::Running(service) => Ok(Some(service)),
            FoundService::Stale(socket) => {
                self.name_store(&format!("no service answers at {}", socket.display()));
                Ok(None)
            }
            // The socket is in the state folder: opening the store there reports the same problem.
            FoundService::Denied(socket, _) if socket.parent() == Some(&self.settings.state_dir) => Ok(None),
            FoundService::Denied(socket, error) => {
                self.name_store(&format!("cannot ask the service at {} ({error})", socket.display()));
                Ok(None)
            }
            FoundService::None => Ok(None),
        }
    }

    /// Prints a note about which store this command uses, and why. Later calls print nothing.
    fn name_store(&self, why: &str) {
        if !self.is_store_named.replace(true) {
            let place = self.settings.database.as_ref().map(ToString::to_string);
            let place = place.unwrap_or_else(|| self.settings.state_dir.display().to_string());
            self.output.note(&format!("{why}: using the store in {place}"));
        }
    }
}

/// Describes in a sentence how the state folder was changed.
fn describe_change(named: &Path, path: &Path, change: &Change) -> String {
    let named = named.display();
    match change {
        Change::Tightened { mode } => {
            format!("the state folder {named} was open to others (mode {mode:04o}); its mode is 0700 now")
        }
        Change::Moved { files } => {
            let moved = if files.is_empty() { String::new() } else { format!("; moved there: {}", files.join(", ")) };
            format!("the state folder {named} is open to others, so the state is in {}{moved}", path.display())
        }
    }
}

/// The definition of the command line, for man pages and completions.
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Parses the arguments of this process and runs the command.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && format_of_invalid_command_line() != OutputFormat::Human => {
            let wanted = Wanted { format: format_of_invalid_command_line(), ..Wanted::default() };
            return Output::new(wanted).fail(&not_understood(&error)).into();
        }
        Err(error) => {
            // --help and --version are not errors. If printing fails, there is no other way to report it.
            error.print().ok();
            return if error.use_stderr() { ExitStatus::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    let verbosity = match (cli.common.quiet, cli.common.verbose) {
        (true, _) => Verbosity::Quiet,
        (_, 1..) => Verbosity::Verbose,
        _ => Verbosity::Normal,
    };
    let mut flags = cli.command.settings();
    if let Some((flag, filter)) = log_filter(&cli.common) {
        flags.set("log", flag, filter);
    }
    flags.extend(cli.common.settings.values);
    let format = cli.command.format();
    let output = |color| Output::new(Wanted { format, color, verbosity });
    let (settings, origins, warnings) = match layers::load::<Settings>(&flags) {
        Ok(mut loaded) => {
            if matches!(cli.command, Command::Serve) && loaded.origins.is_default("log") {
                // Only the log reports what the service does by itself.
                loaded.config.log = "info".to_owned();
            }
            (loaded.config, loaded.origins, loaded.warnings)
        }
        // The template helps to correct a broken configuration.
        Err(_) if matches!(cli.command, Command::Config { command: config::Command::Template }) => {
            (Settings::defaults(), Origins::default(), Vec::new())
        }
        Err(error) => return output(Color::Auto).fail(&error.into()).into(),
    };
    let mut context = Context {
        output: output(settings.color),
        settings,
        origins,
        flags,
        appliance: OnceCell::new(),
        interrupts: Interrupts::default(),
        // `serve` is the service itself, so it must not ask another service.
        is_local: cli.common.local || matches!(cli.command, Command::Serve),
        is_store_named: Cell::new(false),
    };
    for warning in &warnings {
        context.output.note(&format!("warning: {warning}"));
    }
    let log = context.output.log();
    paramedic_host::log::start(&context.settings.log, context.settings.log_format, log.has_color(), log);
    let runtime = match runtime::start(&mut tokio::runtime::Builder::new_current_thread(), LEAST_THREADS) {
        Ok(runtime) => runtime,
        Err(error) => {
            let try_ = "check the free memory of this machine";
            let failure = match ThreadLimitReached::of(&error) {
                Some(refused) => failure::thread_limit("cannot start", refused),
                None => CommandFailure::new(ExitStatus::Failed, "internal", "cannot start", error.to_string(), try_),
            };
            return context.output.fail(&failure).into();
        }
    };
    let interrupts = context.interrupts.clone();
    let end = runtime.block_on(async {
        tokio::select! {
            end = dispatch(cli.command, &mut context) => end,
            () = interrupts.second() => Ok(ExitStatus::Interrupted),
        }
    });
    // A pending name lookup must not delay the end after Ctrl-C.
    runtime.shutdown_background();
    match end {
        Ok(exit) => exit.into(),
        Err(failure) => context.output.fail(&failure).into(),
    }
}

/// The number of threads that every command needs: one for blocking work, one for the database.
const LEAST_THREADS: usize = 2;

/// The crates of this project that log events.
const LOGGING_CRATES: [&str; 6] = [
    "packetparamedic",
    "paramedic_appliance",
    "paramedic_engines",
    "paramedic_host",
    "paramedic_iperf3",
    "paramedic_link",
];

/// Returns the log filter that `-q`, `-v` or `-vv` selects, with the name of that flag; `None` if no such flag is
/// given. With `-v`, other crates log only warnings and errors, because their other events are meant for their
/// developers.
fn log_filter(common: &Common) -> Option<(&'static str, String)> {
    let (flag, others, own) = match (common.quiet, common.verbose) {
        (true, _) => return Some(("-q", "off".to_owned())),
        (_, 0) => return None,
        (_, 1) => ("-v", "warn", "debug"),
        _ => ("-vv", "debug", "trace"),
    };
    Some((flag, LOGGING_CRATES.iter().fold(others.to_owned(), |filter, name| format!("{filter},{name}={own}"))))
}

/// The output format to use for the error of a command line that cannot be parsed.
fn format_of_invalid_command_line() -> OutputFormat {
    let has_flag = |flag: &str| std::env::args_os().any(|arg| arg == flag);
    match (has_flag("--json-stream"), has_flag("--json")) {
        (true, _) => OutputFormat::JsonStream,
        (_, true) => OutputFormat::Json,
        _ => OutputFormat::Human,
    }
}

/// Converts an error of the argument parser to a failure, for `--json`. Without `--json`, the parser's own text is
/// printed, because it has more details.
fn not_understood(error: &clap::Error) -> CommandFailure {
    let text = error.to_string();
    let because = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let try_ = "run `packetparamedic --help` to see the valid command lines";
    CommandFailure::new(ExitStatus::Usage, "bad_usage", "the command line is not valid", because, try_)
}

async fn dispatch(command: Command, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    match command {
        Command::SpeedTest(args) => speed_test::run(*args, context).await,
        Command::PairReflector(args) => pair_reflector::run(args, context).await,
        Command::Reflectors(args) => reflectors::run(args, context).await,
        Command::History(args) => history::run(args, context).await,
        Command::Store(args) => store::run(args, context).await,
        Command::Schedule(args) => schedule::run(args, context).await,
        Command::Apply(args) => configuration::apply(args, context).await,
        Command::ExportConfig => configuration::export(context).await,
        Command::Plan(args) => plan::run(args, context).await,
        Command::Report(args) => report::run(*args, context).await,
        Command::Channel(args) => channel::run(args, context).await,
        Command::Token(args) => token::run(args, context).await,
        Command::Monitor(args) => monitor::run(args, context).await,
        Command::Outages(args) => monitor::outages(args, context).await,
        Command::Rule(args) => rule::run(args, context).await,
        Command::Alerts(args) => rule::alerts(args, context).await,
        Command::Serve => Box::pin(serve::run(context)).await,
        Command::Status(args) => status::run(args, context).await,
        Command::Health(args) => status::health(args, context).await,
        Command::Doctor(args) => doctor::run(args, context).await,
        Command::SelfTest(args) => self_test::run(args, context).await,
        Command::ShowId => show_id::run(context).await,
        Command::RotateIdentity(args) => rotate_identity::run(&args, context).await,
        Command::Config { command } => config::run(&command, context),
        Command::Schema => schema::run(context),
        Command::Completions(args) => completions::run(&args, context),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }
}
