//! Why a message was not delivered, and whether a repetition can help. No error text contains a secret.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use crate::alerts::backoff::RetryAdvice;
use crate::alerts::channel::ChannelError;
use crate::app::web_client::WebFault;

/// The longest reason, in characters.
pub(super) const MAX_REASON_CHARS: usize = 300;

/// Why a message was not delivered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeliveryFault {
    /// The web server cannot be reached, or it sent something that is not a valid answer.
    #[error(transparent)]
    Web(#[from] WebFault),
    /// This host trusts no certificate authority, or the name of the server cannot be in a certificate.
    #[error("cannot set up TLS: {0}")]
    Tls(io::Error),
    /// The web server refuses the message.
    #[error("the server answered {status}{}", .name.map(|name| format!(" ({name})")).unwrap_or_default())]
    Status {
        status: u16,
        /// The standard phrase of the status, if the status is known.
        name: Option<&'static str>,
        advice: RetryAdvice,
    },
    /// The web server redirects to another URL.
    #[error("the server redirects to {to}; redirects are not followed: add the channel again with its final URL")]
    Redirect { to: &'static str },
    /// It took too long.
    #[error("not delivered within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The mail cannot be made or sent.
    #[error("{0}")]
    Mail(String),
    /// The mail server permanently refuses the mail.
    #[error("{0}")]
    MailRefused(String),
    /// The mail server offers no encryption.
    #[error("the server does not offer STARTTLS, so nothing is sent to it")]
    NoStarttls,
    /// The file of the command may not be run.
    #[error(transparent)]
    Program(#[from] ChannelError),
    /// This device did not confirm the stored command.
    #[error("the command was not confirmed on this device; remove the channel, and add it again")]
    Unconfirmed,
    /// The command cannot be started.
    #[error("the command cannot be started: {0}")]
    NotStarted(io::Error),
    /// The command failed.
    #[error("the command ended with {status}{output}")]
    Exit {
        status: ExitStatus,
        /// The end of its output, after a colon; or nothing.
        output: String,
    },
    /// The command did not end.
    #[error("the command did not end within {} s and was killed", .0.as_secs())]
    Endless(Duration),
    /// A secret that the channel needs is not in the store.
    #[error("the secrets of the channel are incomplete; remove it, and add it again")]
    SecretMissing,
    /// A message that a later version of this program stored.
    #[error("the message cannot be read: {0}")]
    Unreadable(String),
}

impl DeliveryFault {
    /// Whether a repetition can help.
    pub(crate) fn advice(&self) -> RetryAdvice {
        match self {
            Self::Status { advice, .. } => *advice,
            Self::MailRefused(_) | Self::SecretMissing | Self::Unreadable(_) => RetryAdvice::Never,
            // The owner of the channel, or the other end, may correct the problem.
            _ => RetryAdvice::LATER,
        }
    }
}
