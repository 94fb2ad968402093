//! A channel that carries messages, as its owner defines it, and the checks before it is accepted. The secrets are
//! separate from the definition.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret_text::SecretText;
use crate::monitor::http_url::HttpUrl;
use crate::object_name::is_name_char;
use crate::targets::HostPort;

/// The longest name of a channel, in characters.
const MAX_NAME_CHARS: usize = 60;
/// The longest topic of ntfy, in characters.
const MAX_TOPIC_CHARS: usize = 64;
/// The longest mail address, in bytes (RFC 5321, section 4.5.3.1.3, without the angle brackets).
const MAX_ADDRESS: usize = 254;
/// The maximum number of recipients of a mail.
const MAX_RECIPIENTS: usize = 20;
/// The longest user name, password or token, in bytes.
const MAX_SECRET: usize = 4096;
/// The maximum number of arguments of a command.
const MAX_ARGS: usize = 50;
/// The maximum length of the path of a program, and of each argument, in bytes.
const MAX_ARG: usize = 4096;
/// The public ntfy server, which the ntfy project runs.
pub const NTFY_SERVER: &str = "https://ntfy.sh/";

/// A channel, without its secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Channel {
    /// The name of the channel.
    pub name: String,
    /// Where the messages of the channel go.
    #[serde(flatten)]
    pub destination: Destination,
}

/// Where the messages of a channel go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Destination {
    /// A web server, which gets each message as JSON.
    Webhook {
        /// The scheme, the host and the port of the webhook's URL. The rest of the URL is secret: many services put a
        /// key there.
        server: String,
    },
    /// A topic of an ntfy server.
    Ntfy {
        /// The URL of the ntfy server.
        server: HttpUrl,
        /// The name of the topic.
        topic: String,
    },
    /// Mail to one or more recipients.
    Smtp(MailDestination),
    /// A program of this host, which runs for each message.
    Command {
        /// The absolute path of the program.
        program: String,
        /// The arguments of the program.
        args: Vec<String>,
    },
}

/// How the messages are sent by mail: the submission server, the sender and the recipients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MailDestination {
    /// The host of the submission server.
    pub server: String,
    /// The port of the submission server.
    pub port: u16,
    /// How the connection to the submission server is protected.
    pub security: MailSecurity,
    /// The user name for the login at the submission server; absent: no login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The address of the sender.
    pub from: String,
    /// The addresses of the recipients.
    pub to: Vec<String>,
}

/// How the connection to a mail server is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MailSecurity {
    /// TLS after STARTTLS (RFC 3207). Nothing is sent to a server without STARTTLS.
    #[default]
    Starttls,
    /// TLS from the first byte (RFC 8314, section 3.3).
    Tls,
    /// No protection. Only for a relay on this host or in this network; a password is not allowed.
    None,
}

/// The secrets of a channel. They are stored apart from its definition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChannelSecrets {
    /// The whole URL of a webhook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<SecretText>,
    /// The bearer token for a webhook or an ntfy server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<SecretText>,
    /// The password of a mail server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretText>,
}

/// A channel to add, with its secrets.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NewChannel {
    /// The name of the channel.
    pub name: String,
    /// Where the messages of the channel go.
    #[serde(flatten)]
    pub destination: NewDestination,
}

/// Where the messages of the new channel go.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum NewDestination {
    /// A web server, which gets each message as JSON.
    Webhook {
        /// The whole URL of the webhook.
        url: SecretText,
        /// A token for the header `Authorization: Bearer`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<SecretText>,
    },
    /// A topic of an ntfy server.
    Ntfy {
        /// The URL of the ntfy server; absent: <https://ntfy.sh>.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
        /// The name of the topic.
        topic: String,
        /// An access token of the ntfy server.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<SecretText>,
    },
    /// Mail to one or more recipients.
    Smtp {
        /// The host of the submission server.
        server: String,
        /// The port of the submission server; absent: 587 with STARTTLS, 465 with TLS, 25 with none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// How the connection to the submission server is protected; absent: by STARTTLS.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        security: Option<MailSecurity>,
        /// The user name for the login at the submission server.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// The password of the user.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        password: Option<SecretText>,
        /// The address of the sender.
        from: String,
        /// The addresses of the recipients.
        to: Vec<String>,
    },
    /// A program of this host, which runs for each message.
    Command {
        /// The absolute path of the program.
        program: String,
        /// The arguments of the program.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        args: Vec<String>,
    },
}

/// Why a channel is not accepted. No error text contains a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The name of the channel is not valid.
    #[error("{0:?} is not a valid name; valid: 1 to 60 letters, digits, dots, dashes and underscores")]
    Name(String),
    /// The URL of a webhook is not valid.
    #[error("the URL must be an http or https URL without a user, a password or a fragment")]
    Url,
    /// The whole URL of the webhook is not given; only its server is known.
    #[error("a webhook needs a URL: the stored URL is kept only if the server stays the same")]
    NoUrl,
    /// The URL of the webhook is not on the server that the channel's definition names.
    #[error("the URL of the webhook is not on the server that the channel names")]
    OtherServer,
    /// This kind of channel does not have the given secret.
    #[error("a channel of kind {kind} can have no {secret}")]
    ForeignSecret {
        /// The kind of the channel.
        kind: &'static str,
        /// The name of the secret.
        secret: String,
    },
    /// The URL of the ntfy server is not valid.
    #[error("the URL of the ntfy server must be an http or https URL without a path")]
    NtfyServer,
    /// The topic of the ntfy server is not valid.
    #[error("{0:?} is not a valid topic; valid: 1 to 64 ASCII letters, digits, dashes and underscores")]
    Topic(String),
    /// The access token is not valid.
    #[error("a token must have 1 to 4096 printable ASCII characters, without spaces")]
    Token,
    /// The host or the port of the mail server is not valid.
    #[error("the mail server must be a host name or an address without a port, and the port must not be 0")]
    MailServer,
    /// The user or the password of a mail server is not valid.
    #[error("a user and a password must each have 1 to 4096 bytes, without control characters")]
    MailLogin,
    /// A user has no password, or a password has no user.
    #[error("a user needs a password, and a password needs a user")]
    HalfMailLogin,
    /// A password would be sent over a connection that is not encrypted.
    #[error("a password can be sent only over TLS")]
    PasswordInClear,
    /// A mail address is not valid.
    #[error("{0:?} is not a mail address such as name@example.org")]
    MailAddress(String),
    /// The mail has no recipient, or too many.
    #[error("a mail channel needs 1 to 20 recipients")]
    Recipients,
    /// The path of a command is not absolute.
    #[error("{0:?} is not an absolute path")]
    ProgramPath(String),
    /// The arguments of a command are not valid.
    #[error("a command can have at most 50 arguments, each of at most 4096 bytes and without NUL")]
    Args,
    /// The file of a command must not be run.
    #[error("{path}: {fault}")]
    ProgramFile {
        /// The file, or a folder above it.
        path: String,
        /// Why the file must not be run.
        fault: ProgramFault,
    },
    /// A command channel can be added, changed or removed only through the service's Unix socket or in the user's own
    /// store.
    #[error(
        "a command channel can be added, changed or removed only through the service's unix socket, or in this user's \
         own store"
    )]
    CommandRefused,
}

/// Why the file of a command must not be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramFault {
    /// The metadata of the file or folder cannot be read. The text says why.
    #[error("{0}")]
    Unreadable(String),
    /// The path does not name an executable file.
    #[error("this is not an executable file")]
    NotExecutable,
    /// The file or folder does not belong to root, so its owner could change it.
    #[error("the file or folder belongs to user {owner}, not to root")]
    NotOfRoot {
        /// The user id of the owner.
        owner: u32,
    },
    /// Users other than root could change the file or folder.
    #[error("users other than root can write to this file or folder (mode {mode:04o})")]
    Writable {
        /// The mode of the file or folder.
        mode: u32,
    },
}

/// The metadata of one part of a path: of a file, a folder or a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathPart {
    /// The user id of the owner.
    pub owner: u32,
    /// The file type and the mode bits (`st_mode`).
    pub mode: u32,
    /// Whether the part is a folder.
    pub is_folder: bool,
    /// Whether the part is a regular file.
    pub is_file: bool,
    /// Whether the part is a symbolic link, whose mode means nothing.
    pub is_link: bool,
}

impl PathPart {
    /// The sticky bit: in a folder that has it, a file can be removed or renamed only by its owner.
    const STICKY: u32 = 0o1000;
    const OTHERS_WRITE: u32 = 0o022;
    const EXECUTE: u32 = 0o111;

    /// Checks one part of the path of a program: only root may be able to change what is run. `is_program`: the part is
    /// the program itself, not a folder above it.
    pub fn check(self, is_program: bool) -> Result<(), ProgramFault> {
        let mode = self.mode & 0o7777;
        if self.owner != 0 {
            return Err(ProgramFault::NotOfRoot { owner: self.owner });
        }
        let is_protected = self.is_link || (self.is_folder && mode & Self::STICKY != 0);
        if mode & Self::OTHERS_WRITE != 0 && !is_protected {
            return Err(ProgramFault::Writable { mode });
        }
        if is_program && !(self.is_file && mode & Self::EXECUTE != 0) {
            return Err(ProgramFault::NotExecutable);
        }
        Ok(())
    }
}

impl NewChannel {
    /// Checks the definition and separates the channel from its secrets. Does not check the file of a command.
    pub fn checked(self) -> Result<(Channel, ChannelSecrets), ChannelError> {
        let is_name = !self.name.is_empty() && self.name.chars().all(is_name_char);
        if !is_name || self.name.chars().count() > MAX_NAME_CHARS {
            return Err(ChannelError::Name(begin_of(&self.name)));
        }
        let (destination, secrets) = self.destination.checked()?;
        Ok((Channel { name: self.name, destination }, secrets))
    }
}

impl Channel {
    /// Combines this channel with these secrets into a [`NewChannel`], which can be checked.
    pub fn with_secrets(self, secrets: ChannelSecrets) -> Result<NewChannel, ChannelError> {
        let known: &[&str] = match self.destination {
            Destination::Webhook { .. } => &["url", "token"],
            Destination::Ntfy { .. } => &["token"],
            Destination::Smtp(_) => &["password"],
            Destination::Command { .. } => &[],
        };
        if let Some(secret) = secrets.names().into_iter().find(|name| !known.contains(&name.as_str())) {
            return Err(ChannelError::ForeignSecret { kind: self.destination.kind(), secret });
        }
        let ChannelSecrets { url, token, password } = secrets;
        let destination = match self.destination {
            Destination::Webhook { server } => {
                let url = url.ok_or(ChannelError::NoUrl)?;
                // A stored token must go only to the server for which it was stored.
                if HttpUrl::parse(url.expose().trim()).is_some_and(|url| url.origin() != server) {
                    return Err(ChannelError::OtherServer);
                }
                NewDestination::Webhook { url, token }
            }
            Destination::Ntfy { server, topic } => {
                NewDestination::Ntfy { server: Some(server.to_string()), topic, token }
            }
            Destination::Smtp(MailDestination { server, port, security, user, from, to }) => {
                let (port, security) = (Some(port), Some(security));
                NewDestination::Smtp { server, port, security, user, password, from, to }
            }
            Destination::Command { program, args } => NewDestination::Command { program, args },
        };
        Ok(NewChannel { name: self.name, destination })
    }
}

impl NewDestination {
    /// Whether the channel runs a program of this host.
    pub fn is_command(&self) -> bool {
        matches!(self, Self::Command { .. })
    }

    fn checked(self) -> Result<(Destination, ChannelSecrets), ChannelError> {
        match self {
            Self::Webhook { url, token } => {
                let parsed = HttpUrl::parse(url.expose().trim()).ok_or(ChannelError::Url)?;
                check_token(token.as_ref())?;
                let url = Some(SecretText::new(parsed.to_string()));
                Ok((Destination::Webhook { server: parsed.origin() }, ChannelSecrets { url, token, password: None }))
            }
            Self::Ntfy { server, topic, token } => {
                let text = server.as_deref().unwrap_or(NTFY_SERVER).trim();
                let server = HttpUrl::parse(text).filter(|server| server.path() == "/");
                let server = server.ok_or(ChannelError::NtfyServer)?;
                let is_topic_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
                if topic.is_empty() || topic.len() > MAX_TOPIC_CHARS || !topic.chars().all(is_topic_char) {
                    return Err(ChannelError::Topic(begin_of(&topic)));
                }
                check_token(token.as_ref())?;
                Ok((Destination::Ntfy { server, topic }, ChannelSecrets { token, ..ChannelSecrets::default() }))
            }
            Self::Smtp { server, port, security, user, password, from, to } => {
                let security = security.unwrap_or_default();
                let destination = MailDestination {
                    port: port.unwrap_or(security.usual_port()),
                    server: server.trim().to_owned(),
                    security,
                    user,
                    from: from.trim().to_owned(),
                    to: to.iter().map(|to| to.trim().to_owned()).filter(|to| !to.is_empty()).collect(),
                };
                destination.check(password.as_ref())?;
                Ok((Destination::Smtp(destination), ChannelSecrets { password, ..ChannelSecrets::default() }))
            }
            Self::Command { program, args } => {
                if !program.starts_with('/') || program.contains('\0') || program.len() > MAX_ARG {
                    return Err(ChannelError::ProgramPath(begin_of(&program)));
                }
                if args.len() > MAX_ARGS || args.iter().any(|arg| arg.len() > MAX_ARG || arg.contains('\0')) {
                    return Err(ChannelError::Args);
                }
                Ok((Destination::Command { program, args }, ChannelSecrets::default()))
            }
        }
    }
}

impl Destination {
    /// The name of this kind of destination.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Webhook { .. } => "webhook",
            Self::Ntfy { .. } => "ntfy",
            Self::Smtp(_) => "smtp",
            Self::Command { .. } => "command",
        }
    }

    /// Whether the destination is a program of this host.
    pub fn is_command(&self) -> bool {
        matches!(self, Self::Command { .. })
    }

    /// Whether both destinations send their secrets to the same server. For mail, the user and the protection must also
    /// be the same. If so, stored secrets may be kept, because this server already knows them.
    pub fn has_server_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Webhook { server }, Self::Webhook { server: other }) => server == other,
            (Self::Ntfy { server, .. }, Self::Ntfy { server: other, .. }) => server == other,
            (Self::Smtp(mail), Self::Smtp(other)) => {
                let server = |mail: &MailDestination| (mail.server.clone(), mail.port, mail.security);
                server(mail) == server(other) && mail.user == other.user
            }
            _ => false,
        }
    }

    /// The destination in a few words, without secrets.
    pub fn summary(&self) -> String {
        match self {
            Self::Webhook { server } => server.clone(),
            Self::Ntfy { server, topic } => format!("{}/{topic}", server.origin()),
            Self::Smtp(mail) => format!("{} by {}:{}", mail.to.join(", "), mail.server, mail.port),
            Self::Command { program, args } => {
                let args = args.iter().map(|arg| format!(" {arg:?}"));
                [program.clone()].into_iter().chain(args).collect()
            }
        }
    }
}

impl MailSecurity {
    /// The name of the protection in documents and options.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starttls => "starttls",
            Self::Tls => "tls",
            Self::None => "none",
        }
    }

    /// The port that mail servers usually have for this protection.
    fn usual_port(self) -> u16 {
        match self {
            Self::Starttls => 587,
            Self::Tls => 465,
            Self::None => 25,
        }
    }
}

impl MailDestination {
    fn check(&self, password: Option<&SecretText>) -> Result<(), ChannelError> {
        let host = HostPort::parse(&self.server, self.port);
        if host.is_err() || self.port == 0 || self.server.contains(['[', ']', '%']) || has_port(&self.server) {
            return Err(ChannelError::MailServer);
        }
        let is_valid = |text: &str| !text.is_empty() && text.len() <= MAX_SECRET && !text.chars().any(char::is_control);
        match (&self.user, password) {
            (Some(user), Some(password)) if !is_valid(user) || !is_valid(password.expose()) => {
                return Err(ChannelError::MailLogin);
            }
            (Some(_), Some(_)) if self.security == MailSecurity::None => return Err(ChannelError::PasswordInClear),
            (Some(_), None) | (None, Some(_)) => return Err(ChannelError::HalfMailLogin),
            _ => {}
        }
        if self.to.is_empty() || self.to.len() > MAX_RECIPIENTS {
            return Err(ChannelError::Recipients);
        }
        match self.to.iter().chain([&self.from]).find(|address| !is_mail_address(address)) {
            Some(wrong) => Err(ChannelError::MailAddress(begin_of(wrong))),
            None => Ok(()),
        }
    }
}

impl ChannelSecrets {
    /// The names of those secrets of the channel that are set.
    pub fn names(&self) -> Vec<String> {
        let all = [("url", &self.url), ("token", &self.token), ("password", &self.password)];
        all.into_iter().filter(|(_, secret)| secret.is_some()).map(|(name, _)| name.to_owned()).collect()
    }

    /// Takes each secret that is not set here from `stored`.
    #[must_use]
    pub fn or(self, stored: Self) -> Self {
        Self {
            url: self.url.or(stored.url),
            token: self.token.or(stored.token),
            password: self.password.or(stored.password),
        }
    }
}

fn check_token(token: Option<&SecretText>) -> Result<(), ChannelError> {
    let is_valid = |token: &str| {
        !token.is_empty() && token.len() <= MAX_SECRET && token.bytes().all(|byte| byte.is_ascii_graphic())
    };
    if token.is_none_or(|token| is_valid(token.expose())) { Ok(()) } else { Err(ChannelError::Token) }
}

/// Whether a text is a mail address that has no display name, comments or quotes (RFC 5322, section 3.4.1).
fn is_mail_address(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else { return false };
    let is_local_char = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
    let is_local = !local.is_empty() && local.len() <= 64 && local.chars().all(is_local_char);
    let is_dotted = !local.starts_with('.') && !local.ends_with('.') && !local.contains("..");
    let is_domain_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let is_label =
        |label: &str| !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-');
    let is_domain = domain.chars().all(is_domain_char) && domain.split('.').all(is_label);
    text.len() <= MAX_ADDRESS && is_local && is_dotted && is_domain
}

/// Whether a port follows the host. The colons of an IPv6 address do not count.
fn has_port(host: &str) -> bool {
    host.matches(':').count() == 1
}

/// The first characters of a text, for an error message.
fn begin_of(text: &str) -> String {
    text.chars().take(MAX_NAME_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> Result<(Channel, ChannelSecrets), String> {
        let new = serde_json::from_str::<NewChannel>(json).map_err(|error| error.to_string())?;
        new.checked().map_err(|error| error.to_string())
    }

    #[test]
    fn a_channel_is_stored_without_its_secrets() {
        let (channel, secrets) = read(
            r#"{"name": "ops", "kind": "webhook", "url": "https://hooks.example.org/services/T0/B1/geheim?key=topsecret",
                "token": "abcdef123"}"#,
        )
        .unwrap();
        let text = serde_json::to_string(&channel).unwrap();
        assert_eq!(text, r#"{"name":"ops","kind":"webhook","server":"https://hooks.example.org"}"#);
        assert_eq!(serde_json::from_str::<Channel>(&text).unwrap(), channel);
        assert_eq!(secrets.names(), ["url", "token"]);
        let debug = format!("{channel:?} {secrets:?} {}", channel.destination.summary());
        for secret in ["geheim", "topsecret", "abcdef123"] {
            assert!(!debug.contains(secret), "{debug}");
        }
        let stored = serde_json::to_string(&secrets).unwrap();
        assert_eq!(serde_json::from_str::<ChannelSecrets>(&stored).unwrap(), secrets);
    }

    #[test]
    fn what_cannot_work_or_is_not_safe_is_refused_with_its_cause() {
        let smtp = |more: &str| {
            format!(
                r#"{{"name": "a", "kind": "smtp", "server": "mail.example.org", "from": "a@b.c", "to": ["d@e.f"]{more}}}"#
            )
        };
        assert!(read(&smtp("")).is_ok());
        assert!(read(&smtp(r#", "security": "none""#)).is_ok());
        for (json, cause) in [
            (r#"{"name": "a b", "kind": "ntfy", "topic": "x"}"#.to_owned(), "is not a valid name"),
            (r#"{"name": "\u3164", "kind": "ntfy", "topic": "x"}"#.to_owned(), "is not a valid name"),
            (r#"{"name": "a", "kind": "ntfy", "topic": "x/y"}"#.to_owned(), "is not a valid topic"),
            (r#"{"name": "a", "kind": "ntfy", "topic": ""}"#.to_owned(), "is not a valid topic"),
            (r#"{"name": "a", "kind": "ntfy", "topic": "x", "server": "ntfy.sh"}"#.to_owned(), "must be an http"),
            (r#"{"name": "a", "kind": "ntfy", "topic": "x", "server": "https://a.b/c"}"#.to_owned(), "without a path"),
            (
                r#"{"name": "a", "kind": "ntfy", "topic": "x", "server": "https://ann:geheim@ntfy.example"}"#
                    .to_owned(),
                "must be an http",
            ),
            (
                r#"{"name": "a", "kind": "ntfy", "topic": "x", "server": "https://ntfy.sh/?auth=geheim"}"#.to_owned(),
                "must be an http",
            ),
            (
                r#"{"name": "a", "kind": "ntfy", "topic": "x", "server": "https://ntfy.sh/#geheim"}"#.to_owned(),
                "must be an http",
            ),
            (
                r#"{"name": "a", "kind": "ntfy", "topic": "x", "server": "https://hooks.example/T0/geheim"}"#
                    .to_owned(),
                "without a path",
            ),
            (r#"{"name": "a", "kind": "ntfy", "topic": "x", "token": "a b"}"#.to_owned(), "a token must have"),
            (r#"{"name": "a", "kind": "ntfy", "topic": "x", "pasword": "y"}"#.to_owned(), "unknown field"),
            (r#"{"name": "a", "kind": "webhook", "url": "https://ann:geheim@b.c/"}"#.to_owned(), "the URL must be"),
            (
                r#"{"name": "a", "kind": "webhook", "url": "http://b.c/", "token": "geheim\r\nX: y"}"#.to_owned(),
                "a token must have",
            ),
            (r#"{"name": "a", "kind": "webhook", "url": 471147114711}"#.to_owned(), "a secret must be text"),
            (r#"{"name": "a", "kind": "pigeon"}"#.to_owned(), "unknown variant"),
            (smtp(r#", "user": "u""#), "a user needs a password"),
            (smtp(r#", "password": "geheim""#), "a password needs a user"),
            (smtp(r#", "user": "u", "password": "geheim", "security": "none""#), "only over TLS"),
            (smtp(r#", "user": "u", "password": "geheim\nx""#), "without control characters"),
            (smtp("").replace("mail.example.org", "mail.example.org:25"), "must be a host name"),
            (smtp("").replace("mail.example.org", "a b"), "must be a host name"),
            (smtp("").replace("mail.example.org", "ann:geheim@smtp.example"), "must be a host name"),
            (smtp("").replace("mail.example.org", "ann:geheim"), "must be a host name"),
            (smtp("").replace("a@b.c", "a@b.c\\r\\nBcc: x@y.z"), "is not a mail address"),
            (smtp("").replace("d@e.f", "Ann <d@e.f>"), "is not a mail address"),
            (smtp("").replace(r#""d@e.f""#, ""), "1 to 20 recipients"),
            (r#"{"name": "a", "kind": "command", "program": "apprise"}"#.to_owned(), "not an absolute path"),
            (
                r#"{"name": "a", "kind": "command", "program": "/bin/a", "args": ["a\u0000b"]}"#.to_owned(),
                "without NUL",
            ),
        ] {
            let error = read(&json).unwrap_err();
            assert!(error.contains(cause) && !error.contains("geheim") && !error.contains("4711"), "{json}: {error}");
        }
    }

    #[test]
    fn a_command_is_what_only_root_can_change() {
        let file = PathPart { owner: 0, mode: 0o100_755, is_folder: false, is_file: true, is_link: false };
        let folder = PathPart { owner: 0, mode: 0o040_755, is_folder: true, is_file: false, is_link: false };
        let link = PathPart { owner: 0, mode: 0o120_777, is_folder: false, is_file: false, is_link: true };
        assert_eq!((file.check(true), folder.check(false)), (Ok(()), Ok(())));
        assert_eq!(link.check(false), Ok(()));
        assert_eq!(PathPart { owner: 1000, ..link }.check(false), Err(ProgramFault::NotOfRoot { owner: 1000 }));
        assert_eq!(PathPart { mode: 0o041_777, ..folder }.check(false), Ok(()), "the sticky bit protects its files");
        assert_eq!(PathPart { owner: 1000, ..file }.check(true), Err(ProgramFault::NotOfRoot { owner: 1000 }));
        for mode in [0o100_775, 0o100_757, 0o101_777] {
            assert!(matches!(PathPart { mode, ..file }.check(true), Err(ProgramFault::Writable { .. })), "{mode:o}");
        }
        assert!(matches!(PathPart { mode: 0o040_775, ..folder }.check(false), Err(ProgramFault::Writable { .. })));
        assert_eq!(PathPart { mode: 0o100_644, ..file }.check(true), Err(ProgramFault::NotExecutable));
        assert_eq!(folder.check(true), Err(ProgramFault::NotExecutable));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_accepted_is_one_line(name in "\\PC{0,70}", text in "(?s).{0,40}") {
            for kind in ["webhook", "ntfy", "smtp", "command"] {
                let body = serde_json::json!({ "name": name, "kind": kind, "url": text, "topic": text, "program": text,
                    "server": text, "from": text, "to": [text], "args": [text] });
                // The fields that this kind of channel has.
                let known: &[&str] = match kind {
                    "webhook" => &["name", "kind", "url"],
                    "ntfy" => &["name", "kind", "topic"],
                    "smtp" => &["name", "kind", "server", "from", "to"],
                    _ => &["name", "kind", "program", "args"],
                };
                let body = body.as_object().unwrap().iter().filter(|(key, _)| known.contains(&key.as_str()));
                let body = serde_json::Value::Object(body.map(|(key, value)| (key.clone(), value.clone())).collect());
                if let Ok((channel, _)) = read(&body.to_string()) {
                    prop_assert!(!channel.name.contains(char::is_whitespace));
                    if !channel.destination.is_command() {
                        prop_assert!(!channel.destination.summary().contains(char::is_control));
                    }
                }
            }
        }
    }
}
