//! `[[channel]]`: its keys are the options of `packetparamedic channel add`. Secrets are in files of their own.

use std::path::{Path, PathBuf};

use paramedic_appliance::alerts::channel::{
    Channel, ChannelSecrets, Destination, MailDestination, NewChannel, NewDestination,
};
use paramedic_appliance::alerts::secret_text::SecretText;
use paramedic_appliance::app::ConfiguredChannel;
use toml::de::DeTable;

use super::super::super::channel::security;
use super::super::options::FileOption;
use super::SecretSource;
use super::text::{ENABLED, FileFault, FileText, disabled, in_order, switch_of, text_of, texts_of, value_of};

/// The kinds of channels, each with its keys in addition to [`COMMON`].
const KINDS: [(&str, &[&str]); 4] = [
    ("webhook", &["url", "url_file", "token_file", "server"]),
    ("ntfy", &["topic", "server", "token_file"]),
    ("smtp", &["server", "port", "security", "user", "password_file", "from", "to"]),
    ("command", &["program", "args"]),
];
/// The keys that a `[[channel]]` table can have for every kind of channel.
const COMMON: [&str; 3] = ["name", "kind", ENABLED];

/// The values of the keys in one `[[channel]]` table.
#[derive(Default)]
struct Values {
    name: Option<String>,
    texts: Vec<(&'static str, String)>,
    port: Option<u16>,
    to: Vec<String>,
    args: Vec<String>,
    secrets: ChannelSecrets,
}

impl Values {
    fn take(&mut self, key: &str) -> Option<String> {
        let at = self.texts.iter().position(|(known, _)| *known == key)?;
        Some(self.texts.swap_remove(at).1)
    }
}

pub(super) fn parse(
    file: &FileText<'_>,
    at: usize,
    table: &DeTable<'_>,
    secrets: &SecretSource<'_>,
) -> Result<ConfiguredChannel, FileFault> {
    let fault = |problem: &str| file.fault(at, format!("channel: {problem}"));
    let (mut values, mut enabled) = (Values::default(), true);
    let kind = table.iter().find(|(key, _)| *key.get_ref() == "kind");
    let (key, word) = kind.ok_or_else(|| fault("kind is missing"))?;
    let word = text_of(word.get_ref()).map_err(|problem| file.fault_of(key, &problem))?;
    let valid = KINDS.map(|(kind, _)| kind).join(", ");
    let known = KINDS.iter().find(|(kind, _)| *kind == word);
    let (kind, own) =
        known.ok_or_else(|| file.fault_of(key, &format!("{word:?} is not a kind of channel; valid: {valid}")))?;
    for (key, value) in in_order(table) {
        let wrong = |problem: String| file.fault_of(key, &problem);
        let known = COMMON.iter().chain(*own).find(|known| **known == *key.get_ref());
        match known.copied() {
            Some("kind") => {}
            Some(ENABLED) => enabled = switch_of(value.get_ref()).map_err(wrong)?,
            Some("name") => values.name = Some(text_of(value.get_ref()).map_err(wrong)?),
            Some("port") => {
                let port = value_of(value.get_ref()).map_err(wrong)?.parse::<u16>();
                values.port = Some(port.map_err(|_| wrong("valid: 1 to 65535".to_owned()))?);
            }
            Some("to") => values.to = texts_of(value.get_ref()).map_err(wrong)?,
            Some("args") => values.args = texts_of(value.get_ref()).map_err(wrong)?,
            Some(of_file @ ("url_file" | "token_file" | "password_file")) => {
                let path = PathBuf::from(text_of(value.get_ref()).map_err(wrong)?);
                if !path.is_absolute() {
                    return Err(wrong("it is not an absolute path".to_owned()));
                }
                let secret = Some(secrets(&path).map_err(wrong)?);
                match of_file {
                    "url_file" => values.secrets.url = secret,
                    "token_file" => values.secrets.token = secret,
                    _ => values.secrets.password = secret,
                }
            }
            Some(text) => values.texts.push((text, text_of(value.get_ref()).map_err(wrong)?)),
            None => {
                let keys = COMMON.iter().chain(*own).copied().collect::<Vec<_>>();
                return Err(file.unknown(key, &keys));
            }
        }
    }
    let name = values.name.take().ok_or_else(|| fault("name is missing"))?;
    if let Some(url) = values.take("url") {
        values.secrets.url = Some(SecretText::new(url));
    }
    let (channel, secrets) = built(name, kind, values).map_err(|problem| fault(&problem))?;
    Ok(ConfiguredChannel { enabled, channel, secrets })
}

/// Builds the channel that `values` describe. The checks that need the stored secrets follow when the file is applied.
fn built(name: String, kind: &str, mut values: Values) -> Result<(Channel, ChannelSecrets), String> {
    let missing = |key: &str| format!("{key} is missing");
    let destination = match kind {
        "webhook" => {
            let server = values.take("server");
            let Some(url) = values.secrets.url.clone() else {
                // An exported file names only the server, because the URL is a secret.
                let server = server.ok_or_else(|| missing("url_file"))?;
                return Ok((Channel { name, destination: Destination::Webhook { server } }, values.secrets));
            };
            NewDestination::Webhook { url, token: None }
        }
        "ntfy" => {
            let topic = values.take("topic").ok_or_else(|| missing("topic"))?;
            NewDestination::Ntfy { server: values.take("server"), topic, token: None }
        }
        "smtp" => {
            let server = values.take("server").ok_or_else(|| missing("server"))?;
            let security = values.take("security").map(|word| security(&word)).transpose();
            let security = security.map_err(|valid| format!("security: {valid}"))?;
            // The user is set below. It can be checked with the stored password only when the file is applied.
            let (user, password) = (None, None);
            let from = values.take("from").ok_or_else(|| missing("from"))?;
            NewDestination::Smtp { server, port: values.port, security, user, password, from, to: values.to.clone() }
        }
        _ => {
            let program = values.take("program").ok_or_else(|| missing("program"))?;
            NewDestination::Command { program, args: values.args.clone() }
        }
    };
    let (mut channel, _) = NewChannel { name, destination }.checked().map_err(|error| error.to_string())?;
    if let Destination::Smtp(mail) = &mut channel.destination {
        mail.user = values.take("user");
    }
    Ok((channel, values.secrets))
}

pub(super) fn rows(configured: &ConfiguredChannel) -> Vec<(String, FileOption)> {
    let text = |key: &str, value: &str| (key.to_owned(), FileOption::Value(value.to_owned()));
    let Channel { name, destination } = &configured.channel;
    let mut rows = vec![text("name", name), text("kind", destination.kind())];
    match destination {
        Destination::Webhook { server } => rows.push(text("server", server)),
        Destination::Ntfy { server, topic } => {
            rows.extend([text("server", &server.to_string()), text("topic", topic)]);
        }
        Destination::Smtp(MailDestination { server, port, security, user, from, to }) => {
            rows.extend([text("server", server), text("port", &port.to_string()), text("security", security.as_str())]);
            rows.extend(user.iter().map(|user| text("user", user)));
            rows.extend([text("from", from), ("to".to_owned(), FileOption::List(to.clone()))]);
        }
        Destination::Command { program, args } => {
            rows.extend([text("program", program), ("args".to_owned(), FileOption::List(args.clone()))]);
        }
    }
    rows.into_iter().chain(disabled(configured.enabled)).collect()
}

/// Reads the secret in a file: its first line.
pub(in super::super) fn read_secret(file: &Path) -> Result<SecretText, String> {
    super::super::super::channel::secret_of(file).map_err(|error| error.to_string())
}
