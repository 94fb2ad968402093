//! The command line: one file a subcommand, and the one place that dispatches to them. Printing is `output`'s alone.

mod completions;
mod history;
pub mod lines;
pub mod output;
mod pair_reflector;
mod progress;
mod reflectors;
pub mod report;
mod rotate_identity;
mod schema;
mod self_test;
mod show_id;
mod speed_test;
mod values;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use paramedic_link::{SecretKey, key_file};

use crate::config::{Color, Key, Settings};
use crate::failure::{Exit, Failure};
use crate::history::History;
use output::{Format, Output, Verbosity, Wanted};
pub use paramedic_engines::quantity;

/// What to type first.
const FIRST_STEPS: &str = "\
First steps:
  packetparamedic pair-reflector --peer HOST      with the code that `reflector pair` prints there
  packetparamedic speed-test";

/// Tells where a network is slow, and proves it.
#[derive(Parser)]
#[command(name = "packetparamedic", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = FIRST_STEPS)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every subcommand takes.
#[derive(clap::Args)]
#[command(next_help_heading = "Options of every command")]
struct Common {
    // The variable on a line of its own, so that no wrapping tears it.
    #[arg(long, global = true, value_name = "FOLDER")]
    #[arg(help = "Where key, pairings and results are kept\n[env: PACKETPARAMEDIC_STATE_DIR]")]
    state_dir: Option<String>,
    /// Read this configuration file too, above the user's and the one in /etc
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// When to colour what is printed: auto, always, never [default: auto]
    #[arg(long, global = true, value_name = "WHEN")]
    color: Option<String>,
    /// Print the result and errors, nothing else
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Report every detail
    #[arg(short, long, global = true)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Measure the path to a reflector: latency, download, upload
    SpeedTest(Box<speed_test::Args>),
    /// Pair this device with a reflector, by the code that `reflector pair` prints there
    #[command(visible_alias = "pair")]
    PairReflector(pair_reflector::Args),
    /// List the reflectors that this device is paired with, check, rename or remove them
    Reflectors(reflectors::Args),
    /// List, show and export the saved results
    History(history::Args),
    /// Tell what this device can carry, and what holds it back; takes less than a minute
    SelfTest(self_test::Args),
    /// Print this device's Endpoint ID; makes the identity at first use
    ShowId,
    /// Make a new identity; every pairing must be made again
    RotateIdentity(rotate_identity::Args),
    /// Print the JSON Schema of results, self-tests, errors and events
    Schema,
    /// Print shell completions
    Completions(completions::Args),
}

impl Command {
    /// The format that the subcommand's own flags ask for.
    fn format(&self) -> Format {
        match self {
            Command::SpeedTest(args) => args.format(),
            Command::PairReflector(args) if args.json => Format::Json,
            Command::Reflectors(args) if args.json => Format::Json,
            Command::History(args) if args.json => Format::Json,
            Command::SelfTest(args) if args.json => Format::Json,
            _ => Format::Human,
        }
    }

    /// The settings that the subcommand's own flags say.
    fn flags(&self) -> Vec<(Key, String)> {
        match self {
            Command::SpeedTest(args) => args.flags(),
            _ => vec![],
        }
    }
}

/// What a subcommand works with.
struct Context {
    settings: Settings,
    output: Output,
}

impl Context {
    /// The identity, made at first use.
    fn identity(&self) -> Result<SecretKey, Failure> {
        make_folder(&self.settings.state_dir)?;
        key_file::load_or_create(&self.key_path()).map_err(|error| key_failure(&error))
    }

    fn key_path(&self) -> PathBuf {
        self.settings.state_dir.join("identity.key")
    }

    async fn history(&self) -> Result<History, Failure> {
        Ok(History::open(&self.settings.state_dir).await?)
    }
}

fn make_folder(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
        Failure::new(
            Exit::Usage,
            "state_dir_unusable",
            format!("cannot use the state folder {}", path.display()),
            error.to_string(),
            "may this user write there? Another folder can be named with --state-dir",
        )
    })
}

fn key_failure(error: &key_file::KeyFileError) -> Failure {
    use key_file::KeyFileError as E;
    let (exit, code, try_) = match error {
        E::Io { .. } => (Exit::Usage, "key_unusable", "may this user write to the state folder, and has it room?"),
        E::Corrupt { .. } => (Exit::Failed, "key_corrupt", "restore the key file, or move it away and pair again"),
        E::Exposed { .. } => (Exit::Usage, "key_exposed", "take the rights of others away with chmod 600"),
        _ => (Exit::Usage, "key_unusable", "mend the key file, or name another folder with --state-dir"),
    };
    Failure::new(exit, code, "cannot use this device's identity", error.to_string(), try_)
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && format_asked_for() != Format::Human => {
            let wanted = Wanted { format: format_asked_for(), ..Wanted::default() };
            return Output::new(wanted).fail(&not_understood(&error)).into();
        }
        Err(error) => {
            // --help and --version are no faults; what can't be printed can't be said either.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    let verbosity = match (cli.common.quiet, cli.common.verbose) {
        (true, _) => Verbosity::Quiet,
        (_, true) => Verbosity::Verbose,
        _ => Verbosity::Normal,
    };
    let mut flags = cli.command.flags();
    flags.extend(cli.common.state_dir.clone().map(|folder| (Key::StateDir, folder)));
    flags.extend(cli.common.color.clone().map(|color| (Key::Color, color)));
    let format = cli.command.format();
    let output = |color| Output::new(Wanted { format, color, verbosity });
    let settings = match Settings::load(&flags, cli.common.config.as_deref()) {
        Ok(settings) => settings,
        Err(error) => return output(Color::Auto).fail(&error.into()).into(),
    };
    let mut context = Context { output: output(settings.color), settings };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let try_ = "does the machine still have memory and threads?";
            let failure = Failure::new(Exit::Failed, "internal", "cannot start", error.to_string(), try_);
            return context.output.fail(&failure).into();
        }
    };
    let end = runtime.block_on(dispatch(cli.command, &mut context));
    // A name that is still being looked up must not hold up who pressed Ctrl-C.
    runtime.shutdown_background();
    match end {
        Ok(exit) => exit.into(),
        Err(failure) => context.output.fail(&failure).into(),
    }
}

/// The format that a command line asks for which can't be understood as a whole.
fn format_asked_for() -> Format {
    let said = |flag: &str| std::env::args_os().any(|arg| arg == flag);
    match (said("--json-stream"), said("--json")) {
        (true, _) => Format::JsonStream,
        (_, true) => Format::Json,
        _ => Format::Human,
    }
}

/// What the parser of the command line says, for a program to read. People get its own words, which show more.
fn not_understood(error: &clap::Error) -> Failure {
    let said = error.to_string();
    let because = said.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let try_ = "`packetparamedic --help` says what can be asked";
    Failure::new(Exit::Usage, "bad_usage", "the command line can't be understood", because, try_)
}

async fn dispatch(command: Command, context: &mut Context) -> Result<Exit, Failure> {
    match command {
        Command::SpeedTest(args) => speed_test::run(*args, context).await,
        Command::PairReflector(args) => pair_reflector::run(args, context).await,
        Command::Reflectors(args) => reflectors::run(args, context).await,
        Command::History(args) => history::run(args, context).await,
        Command::SelfTest(args) => self_test::run(args, context).await,
        Command::ShowId => show_id::run(context),
        Command::RotateIdentity(args) => rotate_identity::run(&args, context).await,
        Command::Schema => schema::run(context),
        Command::Completions(args) => completions::run(&args, context),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
