//! The command line of the reflector: one file for each subcommand, and the dispatch to them. Only `output` prints.

mod asking;
mod audit;
mod config;
mod doctor;
mod health;
mod output;
mod pair;
mod peers;
mod rotate_identity;
mod self_test;
mod serve;
mod state;
mod status;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use paramedic_host::config::{FlagValues, Loaded};
use paramedic_host::version;
use paramedic_report::document::Event;

use crate::config::{AllFlags, Config, PlaceFlags};
use crate::failure::{Exit, Failure};
use crate::server::AdminRequest;
use output::{note, print_json, print_json_line, print_line};

/// The first commands to run, shown below the help text.
const FIRST_STEPS: &str = "\
First steps:
  reflector serve      on a machine whose port 4000, TCP and UDP, is reachable
  reflector pair       on the same machine: prints a code for `packetparamedic pair-reflector`";

/// A network test endpoint that you host yourself. It serves only devices that you paired.
#[derive(Parser)]
#[command(name = "reflector", version = version::with_commit(), max_term_width = 100)]
#[command(arg_required_else_help = true, after_help = FIRST_STEPS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve paired devices until SIGTERM or Ctrl-C; running sessions can then still finish
    Serve(Box<AllFlags>),
    /// Print a one-time pairing code, and wait until a device pairs with this code
    Pair(pair::Args),
    /// List paired devices; add, rename or remove one
    Peers(peers::Args),
    /// Show the state of the running reflector: sessions, queue, ports, usage, refusals
    Status(status::Args),
    /// Check whether the reflector grants sessions: exit code 0 if so, otherwise 1
    Health(health::Args),
    /// Inspect this installation without measuring; exit code 1 if it finds a problem
    Doctor(Box<doctor::Args>),
    /// Measure the highest data rates of this host, and find what limits them; takes less than a minute by default
    SelfTest {
        /// Duration of each measurement: seconds, or a duration such as 500ms
        #[arg(short = 't', long = "time", value_name = "SECS", default_value = "2", value_parser = self_test::parse_each)]
        time: Duration,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Grant no new sessions, and stop the reflector once its running sessions have finished
    Drain {
        #[command(flatten)]
        place: PlaceFlags,
    },
    /// Print this reflector's Endpoint ID; creates its secret key if there is none yet
    ShowId {
        #[command(flatten)]
        place: PlaceFlags,
    },
    /// Create a new identity (secret key and Endpoint ID); every device must then be paired again
    RotateIdentity(rotate_identity::Args),
    /// Check that the audit log is complete and unchanged
    Audit {
        #[command(subcommand)]
        command: audit::Command,
    },
    /// Explain, check, show or reload the configuration
    Config {
        #[command(subcommand)]
        command: config::Command,
    },
    /// Print shell completions
    Completions {
        /// Shell to print completions for
        shell: Shell,
    },
}

/// The format in which a command prints its answer on stdout.
#[derive(Clone, Copy)]
enum StdoutFormat {
    /// Text for a human reader.
    Human,
    /// One JSON document.
    Json,
    /// One JSON event in each line.
    JsonLines,
}

impl Command {
    fn format(&self) -> StdoutFormat {
        match self {
            Command::Pair(pair::Args { json: true, .. }) => StdoutFormat::JsonLines,
            Command::Peers(peers::Args { json: true, .. })
            | Command::Status(status::Args { json: true, .. })
            | Command::SelfTest { json: true, .. } => StdoutFormat::Json,
            Command::Doctor(args) if args.json => StdoutFormat::Json,
            _ => StdoutFormat::Human,
        }
    }
}

/// The definition of the command line, for man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the arguments of this process and runs the command.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && std::env::args_os().any(|arg| arg == "--json") => {
            return fail(&not_understood(&error), StdoutFormat::Json);
        }
        Err(error) => {
            // --help and --version are not errors. If printing fails, there is no other way to report it.
            error.print().ok();
            return if error.use_stderr() { ExitCode::from(Exit::Usage as u8) } else { ExitCode::SUCCESS };
        }
    };
    let format = cli.command.format();
    match dispatch(cli.command) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => fail(&failure, format),
    }
}

/// Reports a failed command: on stdout as JSON if the command prints JSON, otherwise on stderr as text.
fn fail(failure: &Failure, format: StdoutFormat) -> ExitCode {
    let reported = match format {
        StdoutFormat::Human => {
            note(&failure.to_string());
            Ok(())
        }
        StdoutFormat::Json => print_json(&failure.document(None)),
        StdoutFormat::JsonLines => print_json_line(&Event::Error(Box::new(failure.document(None)))),
    };
    // If it cannot be written as JSON, print it as text.
    if reported.is_err() {
        note(&failure.to_string());
    }
    ExitCode::from(failure.exit as u8)
}

/// Turns an error of the argument parser into an error document. Used with --json; otherwise the parser's own text is
/// printed, which has more details.
fn not_understood(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let because = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let try_ = "run `reflector --help`";
    Failure::new(Exit::Usage, "bad_usage", "the command line is not valid", because, try_)
}

fn dispatch(command: Command) -> Result<Exit, Failure> {
    let done = match command {
        Command::Audit { command } => return audit::run(&command),
        Command::Serve(flags) => serve::run(&flags),
        Command::Pair(args) => pair::run(args),
        Command::Peers(args) => peers::run(args),
        Command::Status(args) => status::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Doctor(args) => return doctor::run(&args),
        Command::SelfTest { time, json } => return self_test::run(time, json),
        Command::Drain { place } => asking::asking(&place, async |client| {
            asking::one_answer(client, &AdminRequest::Drain, asking::print_done).await
        }),
        Command::ShowId { place } => {
            print_line(&state::identity_as_it_is(load(&place.values)?)?.id().to_string());
            Ok(())
        }
        Command::RotateIdentity(args) => rotate_identity::run(&args),
        Command::Config { command } => config::run(command),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "reflector", &mut std::io::stdout());
            Ok(())
        }
    };
    done.map(|()| Exit::Done)
}

fn load(flags: &FlagValues) -> Result<Config, Failure> {
    Ok(load_with_origins(flags)?.config)
}

/// Loads the configuration, and prints warnings about it.
fn load_with_origins(flags: &FlagValues) -> Result<Loaded<Config>, Failure> {
    let loaded = paramedic_host::config::load::<Config>(flags)?;
    for warning in &loaded.warnings {
        note(&format!("warning: {warning}"));
    }
    Ok(loaded)
}
