//! The command line: reads what is asked, runs it, prints. stdout carries the answer, stderr everything else.

mod self_test;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use paramedic_engines::memory;
use paramedic_link::state_folder::{self, Change, StateFolderError};
use paramedic_link::{EndpointId, PeerText, key_file};
use serde::Serialize;

use crate::audit::{self, AuditError, Beginning, ChainState};
use crate::config::{self, Config, Flags, LogFormat, PlaceFlags, quantity::parse_duration};
use crate::failure::{Exit, Failure};
use crate::pairing;
use crate::server::{self, Ask, Client, Status, Tell};
use crate::sessions;
use crate::store::{Store, StoreError};

/// What to type first.
const FIRST_STEPS: &str = "\
First steps:
  reflector serve      on a machine whose port 4000, TCP and UDP, can be reached
  reflector pair       beside it: prints a code for `packetparamedic pair-reflector`";

/// A network test endpoint to host yourself. It talks only to devices that you paired.
#[derive(Parser)]
#[command(name = "reflector", version, max_term_width = 100, arg_required_else_help = true, after_help = FIRST_STEPS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or Ctrl-C; running sessions may finish
    Serve(Box<Flags>),
    /// Open a one-time code and wait until a device has paired with it
    Pair {
        #[command(flatten)]
        place: PlaceFlags,
        /// How long the code lives: 10s to 1h
        #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_ttl)]
        ttl: Duration,
        /// The name to give to the device that pairs [default: what it calls itself]
        #[arg(long)]
        name: Option<String>,
        /// Print events as JSON, one a line
        #[arg(long)]
        json: bool,
    },
    /// List paired devices; add, rename or remove one
    Peers {
        #[command(flatten)]
        place: PlaceFlags,
        #[command(subcommand)]
        command: Option<PeersCommand>,
        /// Print JSON
        #[arg(long, global = true)]
        json: bool,
    },
    /// Show how the running reflector is: sessions, queue, ports, what was used and refused
    Status {
        #[command(flatten)]
        place: PlaceFlags,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell whether the reflector runs and all is well: exit code 0, else 1
    Health {
        #[command(flatten)]
        place: PlaceFlags,
    },
    /// Tell what this host can carry, and what holds it back; takes less than a minute
    SelfTest {
        /// How long each measurement lasts: seconds, or a time such as 500ms
        #[arg(short = 't', long = "time", value_name = "SECS", default_value = "2", value_parser = self_test::parse_each)]
        time: Duration,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Stop the running reflector once its sessions have finished; no new ones are granted
    Drain {
        #[command(flatten)]
        place: PlaceFlags,
    },
    /// Print this reflector's Endpoint ID; makes the identity at first use
    ShowId {
        #[command(flatten)]
        place: PlaceFlags,
    },
    /// Make a new identity; every pairing must be made again
    RotateIdentity {
        #[command(flatten)]
        place: PlaceFlags,
        /// Yes, do it
        #[arg(long)]
        yes: bool,
    },
    /// Check the audit log
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Explain, check or show the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print shell completions
    Completions {
        /// For which shell
        shell: Shell,
    },
}

#[derive(Subcommand)]
enum PeersCommand {
    /// List paired devices (the default)
    List,
    /// Pair a device by its Endpoint ID, without a code
    Add {
        /// Its Endpoint ID, PP-…
        id: EndpointId,
        /// The name to give to it
        #[arg(long, default_value = "appliance")]
        name: String,
    },
    /// Remove a device: its links and sessions end at once
    Remove {
        /// Its Endpoint ID or name
        peer: String,
    },
    /// Give a device another name
    Rename {
        /// Its Endpoint ID or name
        peer: String,
        /// The name from now on
        name: String,
    },
}

#[derive(Subcommand)]
enum AuditCommand {
    /// Check every line of the audit log, offline. Exit code 0: whole; 1: changed or missing lines; 3: whole since a
    /// later line, because the log was begun anew or trimmed
    Verify {
        #[command(flatten)]
        place: PlaceFlags,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print a configuration file with every setting explained, at its default
    Template,
    /// Check the configuration as `serve` would read it
    Check(Box<Flags>),
    /// Print the configuration as `serve` would use it
    Show {
        #[command(flatten)]
        flags: Box<Flags>,
        /// Say of each value where it came from
        #[arg(long)]
        origin: bool,
    },
}

/// What stdout carries.
#[derive(Clone, Copy)]
enum Format {
    /// Text for people.
    Human,
    /// One document.
    Json,
    /// One event a line.
    JsonLines,
}

impl Command {
    fn format(&self) -> Format {
        match self {
            Command::Pair { json: true, .. } => Format::JsonLines,
            Command::Peers { json: true, .. }
            | Command::Status { json: true, .. }
            | Command::SelfTest { json: true, .. } => Format::Json,
            _ => Format::Human,
        }
    }
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && std::env::args_os().any(|arg| arg == "--json") => {
            return fail(&not_understood(&error), Format::Json);
        }
        Err(error) => {
            // --help and --version are no faults; what can't be printed can't be said either.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(Exit::Usage as u8) } else { ExitCode::SUCCESS };
        }
    };
    let format = cli.command.format();
    match dispatch(cli.command) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => fail(&failure, format),
    }
}

/// Says that a command failed: a program reads it where it reads answers, a person beside them.
fn fail(failure: &Failure, format: Format) -> ExitCode {
    let told = match format {
        Format::Human => {
            note(&failure.to_string());
            Ok(())
        }
        Format::Json => print_json(&failure.document(false)),
        Format::JsonLines => print_json_line(&failure.document(true)),
    };
    // What can't be written as JSON is still worth a word.
    if told.is_err() {
        note(&failure.to_string());
    }
    ExitCode::from(failure.exit as u8)
}

/// What the parser of the command line says, for a program to read. People get its own words, which show more.
fn not_understood(error: &clap::Error) -> Failure {
    let said = error.to_string();
    let because = said.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let try_ = "`reflector --help` says what can be asked";
    Failure::new(Exit::Usage, "bad_usage", "the command line can't be understood", because, try_)
}

fn dispatch(command: Command) -> Result<Exit, Failure> {
    let done = match command {
        Command::Audit { command: AuditCommand::Verify { place } } => {
            return verify(&with_state_as_it_is(load(&place.0)?));
        }
        Command::Serve(flags) => serve(&flags),
        Command::Pair { place, ttl, name, json } => asking(&place, async |client| pair(client, ttl, name, json).await),
        Command::Peers { place, command, json } => {
            let ask = match command.unwrap_or(PeersCommand::List) {
                PeersCommand::List => Ask::Peers,
                PeersCommand::Add { id, name } => Ask::AddPeer { peer: id, name: PeerText::new(&name) },
                PeersCommand::Remove { peer } => Ask::RemovePeer { peer },
                PeersCommand::Rename { peer, name } => Ask::RenamePeer { peer, name: PeerText::new(&name) },
            };
            asking(&place, async |client| one_answer(client, &ask, json).await)
        }
        Command::Status { place, json } => asking(&place, async |client| one_answer(client, &Ask::Status, json).await),
        Command::Health { place } => asking(&place, async |client| health(client).await),
        Command::SelfTest { time, json } => self_test::run(time, json),
        Command::Drain { place } => asking(&place, async |client| one_answer(client, &Ask::Drain, false).await),
        Command::ShowId { place } => {
            let config = with_state(load(&place.0)?)?;
            print_line(&identity(&config)?.id().to_string());
            Ok(())
        }
        Command::RotateIdentity { place, yes } => rotate(&with_state_as_it_is(load(&place.0)?), yes),
        Command::Config { command } => show_config(command),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "reflector", &mut std::io::stdout());
            Ok(())
        }
    };
    done.map(|()| Exit::Done)
}

fn load(flags: &Flags) -> Result<Config, Failure> {
    Ok(config::load(flags, &|name| std::env::var_os(name))?.config)
}

/// Whether a name is one that the reflector gives to what it keeps in its state folder, or in its runtime folder where
/// that is the same.
fn is_own(name: &str) -> bool {
    let files = ["identity.key", "reflector.db"];
    ["audit", "scratch", "admin.sock"].contains(&name) || files.iter().any(|own| name.starts_with(own))
}

/// The configuration with the folder in which the state really is, which is made where there is none.
fn with_state(mut config: Config) -> Result<Config, Failure> {
    let named = config.state_dir.clone();
    let folder = state_folder::open(&named, is_own).map_err(|error| {
        Failure::new(
            Exit::Usage,
            "state_dir",
            format!("the state folder {} can't be used", named.display()),
            error,
            "name another one with --state-dir or REFLECTOR_STATE_DIR, or run as the user that owns it",
        )
    })?;
    let path = folder.path.display();
    match folder.change {
        Some(Change::Tightened { mode }) => {
            note(&format!("warning: others could enter the state folder {path} (mode {mode:04o}); it is 0700 now"));
        }
        Some(Change::Moved { .. }) => {
            note(&format!(
                "warning: others can enter the state folder {}; the state is kept in {path}",
                named.display()
            ));
        }
        None => {}
    }
    config.state_dir = folder.path;
    Ok(config)
}

/// The same without making or changing anything.
fn with_state_as_it_is(mut config: Config) -> Config {
    config.state_dir = state_folder::locate(&config.state_dir);
    config
}

/// The identity, made at first use.
fn identity(config: &Config) -> Result<paramedic_link::SecretKey, Failure> {
    Ok(key_file::load_or_create(&config.key_file())?)
}

fn serve(flags: &Flags) -> Result<(), Failure> {
    let config = load(flags)?;
    start_log(&config);
    let config = with_state(config)?;
    let key = identity(&config)?;
    memory::share_arenas();
    let listen = config.listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(|error| {
            Failure::new(
                Exit::Failed,
                "runtime",
                "the reflector can't start",
                error,
                "does the machine still have memory and threads?",
            )
        })?;
    let ready = |addresses: &[std::net::SocketAddr]| {
        for address in addresses {
            print_line(&format!("listening on {address}"));
        }
    };
    runtime.block_on(server::serve(config, key, ready)).map_err(|error| {
        let error = match error.downcast::<StoreError>() {
            Ok(error) => return error.into(),
            Err(error) => error,
        };
        let error = match error.downcast::<AuditError>() {
            Ok(error) => return error.into(),
            Err(error) => error,
        };
        let error = match error.downcast::<StateFolderError>() {
            Ok(error) => {
                let try_ =
                    "name another one with --runtime-dir or REFLECTOR_RUNTIME_DIR, or run as the user that owns it";
                return Failure::new(Exit::Usage, "runtime_dir", "the runtime folder can't be used", error, try_);
            }
            Err(error) => error,
        };
        let try_ =
            "is another program on that port, is the disk full? `reflector config show --origin` says what is set";
        Failure::new(Exit::Failed, "serve", format!("the reflector can't serve on {listen}"), error, try_)
    })
}

fn start_log(config: &Config) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_new(&config.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
    }
}

/// Connects to the running reflector, and has `work` ask it.
fn asking(place: &PlaceFlags, work: impl AsyncFnOnce(&mut Client) -> Result<(), Failure>) -> Result<(), Failure> {
    let config = load(&place.0)?;
    let path = config.admin_socket();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| broken(&error))?;
    runtime.block_on(async {
        let mut client = Client::connect(&path).await.map_err(|error| not_running(&path, &error))?;
        let (server, user) = (client.server_user(), rustix::process::geteuid());
        // What is said to it, and what it says of who paired, is for the right reflector alone.
        if server != 0 && server != user.as_raw() && !(user.is_root() && config.has_root_runtime_dir()) {
            return Err(Failure::new(
                Exit::Failed,
                "not_trusted",
                "the reflector can't be asked",
                format!("user {server} answers at {}, which is neither root nor who runs this", path.display()),
                "run this as the reflector's own user; if that user is no one you know, find out who made that socket",
            ));
        }
        work(&mut client).await
    })
}

fn not_running(path: &Path, error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => Failure::new(
            Exit::Failed,
            "not_allowed",
            "the reflector can't be asked",
            format!("this user may not open {}", path.display()),
            "run this as the reflector's own user, or as root",
        ),
        _ => Failure::new(
            Exit::Failed,
            "not_running",
            "the reflector is not running",
            format!("nothing answers at {}", path.display()),
            "start it with `reflector serve`; if it runs with another --state-dir, say the same one here",
        ),
    }
}

fn broken(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        Exit::Failed,
        "admin",
        "the reflector did not answer",
        error,
        "its log says more; `reflector health` tells whether it runs",
    )
}

async fn one_answer(client: &mut Client, ask: &Ask, json: bool) -> Result<(), Failure> {
    client.ask(ask).await.map_err(|error| broken(&error))?;
    let answer = client.answer().await.map_err(|error| broken(&error))?;
    match answer {
        Some(Tell::Failed { because }) => Err(refused(&because)),
        Some(Tell::Peers { peers }) if json => print_json(&peers),
        Some(Tell::Peers { peers }) => {
            if peers.is_empty() {
                note("nobody is paired yet: `reflector pair` opens a code");
            }
            for peer in peers {
                let linked = if peer.linked { "  linked now" } else { "" };
                print_line(&format!("{}  {}{linked}", peer.endpoint_id, peer.name));
            }
            Ok(())
        }
        Some(Tell::Status(status)) if json => print_json(&*status),
        Some(Tell::Status(status)) => {
            print_status(&status);
            Ok(())
        }
        Some(Tell::Done { what }) => {
            print_line(what.as_str());
            Ok(())
        }
        other => Err(broken(&format!("it said {other:?}"))),
    }
}

fn refused(because: &str) -> Failure {
    Failure::new(
        Exit::Failed,
        "refused",
        "the reflector did not do it",
        because,
        "`reflector peers` and `reflector status` show how things stand",
    )
}

async fn health(client: &mut Client) -> Result<(), Failure> {
    client.ask(&Ask::Status).await.map_err(|error| broken(&error))?;
    match client.answer().await.map_err(|error| broken(&error))? {
        Some(Tell::Status(status)) if status.problems.is_empty() => {
            print_line(&status.state);
            Ok(())
        }
        Some(Tell::Status(status)) => Err(Failure::new(
            Exit::Failed,
            "unhealthy",
            format!("the reflector is {}", status.state),
            status.problems.join("; "),
            "remove that cause: the reflector grants again within 5 s of a write that succeeds",
        )),
        other => Err(broken(&format!("it said {other:?}"))),
    }
}

async fn pair(client: &mut Client, ttl: Duration, name: Option<String>, json: bool) -> Result<(), Failure> {
    let name = name.map(|name| PeerText::new(&name)).filter(|name| !name.is_empty());
    client.ask(&Ask::Pair { ttl_s: ttl.as_secs(), name }).await.map_err(|error| broken(&error))?;
    while let Some(answer) = client.next().await.map_err(|error| broken(&error))? {
        match &answer {
            Tell::Failed { because } => return Err(refused(because)),
            Tell::CodeClosed { why } => {
                return Err(Failure::new(
                    Exit::Failed,
                    "code_closed",
                    "nobody paired",
                    format!("the code is {why}"),
                    "run `reflector pair` again; --ttl makes it live longer",
                ));
            }
            event if json => print_json_line(event)?,
            Tell::Code { code, expires_in_s } => {
                show_qr(code);
                print_line(code);
                let life = sessions::span(Duration::from_secs(*expires_in_s));
                note(&format!("good once, for {life}, as long as this command waits. On the appliance:"));
                note("  packetparamedic pair-reflector --peer HOST      (it asks for the code)");
            }
            Tell::Paired { endpoint_id, name } => print_line(&format!("paired with {name}  {endpoint_id}")),
            _ => {}
        }
        if matches!(answer, Tell::Paired { .. }) {
            return Ok(());
        }
    }
    Err(broken(&"it hung up"))
}

/// For a phone or a camera; only where a person looks.
fn show_qr(code: &str) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    if let Ok(qr) = qrcode::QrCode::new(code.as_bytes()) {
        let picture = qr.render::<qrcode::render::unicode::Dense1x2>().quiet_zone(true).build();
        anstream::eprintln!("{picture}");
    }
}

fn rotate(config: &Config, yes: bool) -> Result<(), Failure> {
    if !yes {
        return Err(Failure::new(
            Exit::Usage,
            "not_confirmed",
            "the identity stays as it is",
            "with a new one, every device that is paired must be paired again",
            "say --yes if that is what you want; stop `reflector serve` first",
        ));
    }
    if std::os::unix::net::UnixStream::connect(config.admin_socket()).is_ok() {
        return Err(Failure::new(
            Exit::Failed,
            "running",
            "the identity stays as it is",
            "the reflector is running with it",
            "stop it first: `reflector drain`, or systemctl stop reflector",
        ));
    }
    let rotated = key_file::rotate(&config.key_file())?;
    print_line(&rotated.new.id().to_string());
    note(&format!("the old identity was {}; its key is kept in {}", rotated.old, rotated.kept.display()));
    note("every device that was paired knows only the old one: pair each again (`reflector pair`)");
    Ok(())
}

fn verify(config: &Config) -> Result<Exit, Failure> {
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::new(
            Exit::Failed,
            "audit_unreadable",
            "the audit log can't be checked",
            error,
            "run this as the reflector's own user, with its --state-dir",
        )
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| unusable(&error))?;
    let read_states = || {
        let states = runtime.block_on(Store::read_audit_chains(&config.database()));
        states.map_err(|error| unusable(&error))
    };
    let mut states = read_states()?;
    let verified = loop {
        match audit::verify(&config.audit_dir(), Some(&states)) {
            Ok(verified) => break verified,
            Err(bad) => {
                // A running reflector may have trimmed the log meanwhile.
                let now = read_states()?;
                let bases =
                    |states: &BTreeMap<_, ChainState>| states.values().map(|state| state.base).collect::<Vec<_>>();
                if bases(&now) != bases(&states) {
                    states = now;
                    continue;
                }
                return Err(Failure::new(
                    Exit::Failed,
                    "audit_broken",
                    "the audit log is not what was written",
                    bad,
                    "restore it from a backup; what stands before that line is whole",
                ));
            }
        }
    };
    let mut exit = Exit::Done;
    for (name, chain) in ["the audit log is", "its refusals are"].into_iter().zip(verified) {
        let counted = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let at_hand = format!("{} in {}", counted(chain.lines, "line"), counted(chain.segments, "file"));
        let since = match chain.begins {
            Beginning::First => None,
            Beginning::BegunAnew(line) => Some((line, "the log was begun anew there, the one before was moved away")),
            Beginning::Trimmed(line) => Some((line, "the lines before it were trimmed to keep within audit_max_size")),
        };
        match since {
            None => print_line(&format!("{name} whole: {at_hand}")),
            Some((line, why)) => {
                exit = Exit::WholeSince;
                print_line(&format!("{name} whole since line {line}: {at_hand}; {why}"));
            }
        }
    }
    Ok(exit)
}

fn show_config(command: ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Template => {
            print_text(&config::template());
            Ok(())
        }
        ConfigCommand::Check(flags) => {
            let loaded = config::load(&flags, &|name| std::env::var_os(name))?;
            let files = loaded.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
            let read = if files.is_empty() { "no file".to_owned() } else { files.join(", ") };
            print_line(&format!("the configuration is good (read: {read})"));
            Ok(())
        }
        ConfigCommand::Show { flags, origin } => {
            let loaded = config::load(&flags, &|name| std::env::var_os(name))?;
            print_text(&loaded.show(origin));
            Ok(())
        }
    }
}

fn print_status(status: &Status) {
    let line = |name: &str, value: String| print_line(&format!("{name:<14}{value}"));
    line("reflector", format!("{} ({})", status.name, status.endpoint_id));
    line("version", status.version.clone());
    let uptime = Duration::from_secs(status.uptime_s);
    line("state", format!("{}, up for {}", status.state, sessions::span(uptime)));
    for problem in &status.problems {
        line("problem", problem.clone());
    }
    let modes = status.data_modes.iter().map(ToString::to_string).collect::<Vec<_>>();
    line("data modes", modes.join(", "));
    let engines = status.engines.iter().map(ToString::to_string).collect::<Vec<_>>();
    line("engines", engines.join(", "));
    for lacking in &status.engines_lacking {
        line("not offered", format!("{}: {}; try: {}", lacking.engine, lacking.because, lacking.try_));
    }
    line("peers", format!("{} paired, {} links now", status.peers, status.links));
    for (name, value) in status.sessions.rows() {
        line(name, value);
    }
    for (reason, count) in &status.refused {
        line("refused", format!("{count} × {reason}"));
    }
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = parse_duration(text)?;
    if ttl < Duration::from_secs(10) || ttl > pairing::LONGEST_TTL {
        return Err("a code lives from 10s to 1h".to_owned());
    }
    Ok(ttl)
}

fn print_json<T: Serialize>(value: &T) -> Result<(), Failure> {
    print_line(&serde_json::to_string_pretty(value).map_err(|error| broken(&error))?);
    Ok(())
}

fn print_json_line<T: Serialize>(value: &T) -> Result<(), Failure> {
    print_line(&serde_json::to_string(value).map_err(|error| broken(&error))?);
    Ok(())
}

/// One line of the answer. A reader that has gone wants no more of it.
fn print_line(line: &str) {
    print_text(&format!("{line}\n"));
}

fn print_text(text: &str) {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(harmless(text).as_bytes()).and_then(|()| out.flush());
    if written.is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
        std::process::exit(0);
    }
}

/// Beside the answer, for a person.
fn note(line: &str) {
    anstream::eprintln!("{}", harmless(line));
}

/// The last guard: whatever a text is made of, it moves no cursor.
fn harmless(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n').collect()
}
