//! `channel`: lists, adds, removes, enables, disables and tests the channels of alert messages; lists the messages.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use jiff::tz::TimeZone;
use paramedic_appliance::alerts::channel::{MailSecurity, NewChannel, NewDestination};
use paramedic_appliance::alerts::secret_text::SecretText;
use paramedic_appliance::app::ChannelTest;
use paramedic_appliance::store::{DeliveryOutcome, MessageDelivery, StoredChannel, StoredMessage};
use paramedic_link::PeerText;
use serde_json::json;

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use super::object_args::ObjectArgs;
use crate::web::channels::{channel_route, messages_route};

/// The maximum length of a secret in a file or on stdin, in bytes, including its newline.
const MAX_SECRET_BYTES: u64 = 8192;

pub(super) type Args = ObjectArgs<Command>;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List the channels, without their secrets; the default subcommand
    List,
    /// Add a channel; secrets are read from files, or from stdin if the file is -
    #[command(subcommand)]
    Add(Box<NewCommand>),
    /// Remove a channel and discard its undelivered messages
    Remove {
        /// The name of the channel
        name: String,
    },
    /// Enable a channel again
    Enable {
        /// The name of the channel
        name: String,
    },
    /// Disable a channel and discard its undelivered messages
    Disable {
        /// The name of the channel
        name: String,
    },
    /// Send a test message now; exit code 1 if it is not delivered
    Test {
        /// The name of the channel
        name: String,
    },
    /// List the latest messages and whether they were delivered
    Messages {
        /// List at most this many messages
        #[arg(short = 'n', long, default_value_t = 20)]
        limit: u32,
    },
}

#[derive(clap::Subcommand)]
pub(super) enum NewCommand {
    /// Post each message as JSON to a URL
    Webhook {
        /// The name of the channel: letters, digits, dots, dashes and underscores
        name: String,
        /// The URL to which messages are posted; other users of this host can see it in the list of processes
        #[arg(long, required_unless_present = "url_file", conflicts_with = "url_file")]
        url: Option<String>,
        /// Read the URL from this file, for a URL that contains a secret
        #[arg(long, value_name = "FILE")]
        url_file: Option<PathBuf>,
        /// The file with the token that is sent in the header Authorization: Bearer
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Publish each message to a topic of ntfy
    Ntfy {
        /// The name of the channel
        name: String,
        /// The topic to publish to; on a public server, every client that knows the topic can read its messages
        #[arg(long)]
        topic: String,
        /// The URL of the ntfy server [default: https://ntfy.sh]
        #[arg(long, value_name = "URL")]
        server: Option<String>,
        /// The file with an access token for the ntfy server
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Send each message as mail
    Smtp(Box<MailArgs>),
    /// Run a program for each message; environment variables such as PACKETPARAMEDIC_TITLE and PACKETPARAMEDIC_TEXT
    /// hold the message
    Command {
        /// The name of the channel
        name: String,
        /// The absolute path of the program; the file must be writable only by root
        program: String,
        /// Arguments of the program
        #[arg(last = true)]
        args: Vec<String>,
    },
}

#[derive(clap::Args)]
pub(super) struct MailArgs {
    /// The name of the channel
    name: String,
    /// The host of the mail server that accepts the messages (submission server)
    #[arg(long, value_name = "HOST")]
    server: String,
    /// The port of the mail server [default: 587 with starttls, 465 with tls, 25 with none]
    #[arg(long)]
    port: Option<u16>,
    /// Encryption: starttls (the server must offer it), tls (encryption from the first byte), or none (a password is
    /// then not allowed)
    #[arg(long, value_name = "starttls|tls|none", value_parser = security, default_value = "starttls")]
    security: MailSecurity,
    /// The user name for the login at the mail server
    #[arg(long, requires = "password_file")]
    user: Option<String>,
    /// The file with the password for the login at the mail server
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// The mail address of the sender
    #[arg(long, value_name = "ADDRESS")]
    from: String,
    /// The mail address of a recipient; can be given several times
    #[arg(long, value_name = "ADDRESS", required = true)]
    to: Vec<String>,
}

pub(super) fn security(text: &str) -> Result<MailSecurity, String> {
    match text {
        "starttls" => Ok(MailSecurity::Starttls),
        "tls" => Ok(MailSecurity::Tls),
        "none" => Ok(MailSecurity::None),
        _ => Err("valid: starttls, tls or none".to_owned()),
    }
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let json = args.json;
    match args.command.unwrap_or(Command::List) {
        Command::List => list(json, context).await,
        Command::Add(new) => add(new_channel(*new)?, json, context).await,
        Command::Remove { name } => {
            let removed: StoredChannel = match context.service().await? {
                Some(service) => service.delete(&channel_route(&name, "")).await?,
                None => {
                    let appliance = context.appliance()?;
                    appliance.remove_channel(appliance.channel(&name).await?).await?
                }
            };
            say(json, "removed", &removed, context)
        }
        Command::Enable { name } => enable(&name, true, json, context).await,
        Command::Disable { name } => enable(&name, false, json, context).await,
        Command::Test { name } => test(&name, json, context).await,
        Command::Messages { limit } => messages(limit, json, context).await,
    }
}

/// Builds the channel that the command-line flags describe. Reads secrets from the files that the flags name.
fn new_channel(new: NewCommand) -> Result<NewChannel, CommandFailure> {
    let (name, destination) = match new {
        NewCommand::Webhook { name, url, url_file, token_file } => {
            let url = match (url, url_file) {
                (_, Some(file)) => secret(&file)?,
                (url, None) => SecretText::new(url.unwrap_or_default()),
            };
            (name, NewDestination::Webhook { url, token: optional_secret(token_file)? })
        }
        NewCommand::Ntfy { name, topic, server, token_file } => {
            (name, NewDestination::Ntfy { server, topic, token: optional_secret(token_file)? })
        }
        NewCommand::Smtp(mail) => {
            let MailArgs { name, server, port, security, user, password_file, from, to } = *mail;
            let (security, password) = (Some(security), optional_secret(password_file)?);
            (name, NewDestination::Smtp { server, port, security, user, password, from, to })
        }
        NewCommand::Command { name, program, args } => (name, NewDestination::Command { program, args }),
    };
    Ok(NewChannel { name, destination })
}

fn optional_secret(file: Option<PathBuf>) -> Result<Option<SecretText>, CommandFailure> {
    file.map(|file| secret(&file)).transpose()
}

/// Reads a secret: the first line of `file`, or of stdin if `file` is `-`.
pub(super) fn secret_of(file: &Path) -> io::Result<SecretText> {
    let source: Box<dyn Read> =
        if file.as_os_str() == "-" { Box::new(io::stdin()) } else { Box::new(File::open(file)?) };
    let mut line = zeroize::Zeroizing::new(String::new());
    BufReader::new(source.take(MAX_SECRET_BYTES)).read_line(&mut line)?;
    Ok(SecretText::new(line.trim_end_matches(['\r', '\n']).to_owned()))
}

fn secret(file: &Path) -> Result<SecretText, CommandFailure> {
    secret_of(file).map_err(|error| {
        let what = format!("cannot read {}", file.display());
        let try_ = "check the path, and that this user may read it";
        CommandFailure::new(ExitStatus::Usage, "unreadable", what, error, try_)
    })
}

async fn add(new: NewChannel, json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let added: StoredChannel = match context.service().await? {
        Some(service) => service.post("/channels", &new).await?,
        None => context.appliance()?.add_channel(new).await?,
    };
    say(json, "added", &added, context)?;
    if !json {
        context.output.note(&format!("try it: packetparamedic channel test {}", added.channel.name));
    }
    Ok(ExitStatus::Done)
}

async fn enable(name: &str, enabled: bool, json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let (event, action) = if enabled { ("enabled", "/enable") } else { ("disabled", "/disable") };
    let stored: StoredChannel = match context.service().await? {
        Some(service) => service.post(&channel_route(name, action), &()).await?,
        None => {
            let appliance = context.appliance()?;
            appliance.enable_channel(appliance.channel(name).await?, enabled).await?
        }
    };
    say(json, event, &stored, context)
}

/// Prints that `event`, such as `enabled`, happened to the channel `stored`.
fn say(json: bool, event: &str, stored: &StoredChannel, context: &Context) -> Result<ExitStatus, CommandFailure> {
    if json {
        context.output.json_line(&json!({ "event": event, "channel": stored }))?;
    } else {
        context.output.line(&format!("{event}: {}", stored.channel.name))?;
    }
    Ok(ExitStatus::Done)
}

async fn list(json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let all: Vec<StoredChannel> = match context.service().await? {
        Some(service) => service.get("/channels").await?,
        None => context.appliance()?.channels().await?,
    };
    if json {
        context.output.json_line(&all)?;
        return Ok(ExitStatus::Done);
    }
    if all.is_empty() {
        context.output.note("no channels yet: packetparamedic channel add ntfy phone --topic TOPIC");
    }
    for StoredChannel { channel, enabled, secrets, .. } in &all {
        let state = if *enabled { "" } else { "  disabled" };
        let with = if secrets.is_empty() { String::new() } else { format!("  with {}", secrets.join(" and ")) };
        let summary = PeerText::harmless(&channel.destination.summary(), 200);
        context.output.line(&format!("{}  {}  {summary}{with}{state}", channel.name, channel.destination.kind()))?;
    }
    Ok(ExitStatus::Done)
}

async fn test(name: &str, json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let tested: ChannelTest = match context.service().await? {
        Some(service) => service.post_slow(&channel_route(name, "/test"), &()).await?,
        None => context.appliance()?.test_channel(name).await?,
    };
    if let Some(reason) = &tested.reason {
        let what = format!("the test message was not delivered to {}", tested.channel);
        let try_ = "check the server or program that receives the messages; to change the channel, remove it and add \
                    it again";
        return Err(CommandFailure::new(ExitStatus::Failed, "not_delivered", what, reason, try_));
    }
    if json {
        context.output.json_line(&tested)?;
    } else {
        context.output.line(&format!("delivered: a test message to {}", tested.channel))?;
    }
    Ok(ExitStatus::Done)
}

async fn messages(limit: u32, json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let all: Vec<StoredMessage> = match context.service().await? {
        Some(service) => service.get(&messages_route(limit)).await?,
        None => context.appliance()?.messages(None, limit.clamp(1, 1000)).await?,
    };
    if json {
        context.output.json_line(&all)?;
        return Ok(ExitStatus::Done);
    }
    if all.is_empty() {
        context.output.note("no messages");
    }
    for StoredMessage { message, deliveries } in &all {
        let at = message.at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %Z");
        context.output.line(&format!(
            "{at}  {}  {}",
            message.kind.as_str(),
            PeerText::harmless(&message.title, 200)
        ))?;
        for delivery in deliveries {
            context.output.line(&format!("  {}", described(delivery)))?;
        }
    }
    Ok(ExitStatus::Done)
}

/// Describes the delivery of a message to one channel in one line: the channel, whether the message was delivered, and
/// why not.
fn described(delivery: &MessageDelivery) -> String {
    let outcome = match delivery.outcome {
        DeliveryOutcome::Due => "due",
        DeliveryOutcome::Delivered => "delivered",
        DeliveryOutcome::GivenUp => "given up",
    };
    let attempts = match delivery.attempts {
        0 | 1 => String::new(),
        attempts => format!(" after {attempts} attempts"),
    };
    let reason = delivery.reason.as_deref().map(|reason| format!(": {}", PeerText::harmless(reason, 400)));
    format!("{}: {outcome}{attempts}{}", delivery.channel, reason.unwrap_or_default())
}
