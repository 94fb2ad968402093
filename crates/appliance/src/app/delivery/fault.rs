//! The reasons why a message was not delivered, and whether a repeated attempt can help. No error text contains a
//! secret.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use crate::alerts::backoff::RetryAdvice;
use crate::alerts::channel::ChannelError;
use crate::app::web_client::WebFault;

/// The maximum length of a stored reason, in characters.
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
    /// The web server refused the message with this status.
    #[error("the server answered {status}{}", .name.map(|name| format!(" ({name})")).unwrap_or_default())]
    Status {
        status: u16,
        /// The standard phrase for the status, such as `Not Found`; `None` if the status has none.
        name: Option<&'static str>,
        advice: RetryAdvice,
    },
    /// The web server redirects to another URL, which is not followed.
    #[error("the server redirects to {to}; redirects are not followed: add the channel again with its final URL")]
    Redirect { to: &'static str },
    /// The attempt to deliver the message took longer than this.
    #[error("the message was not delivered within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The mail could not be composed or sent, for this reason.
    #[error("{0}")]
    Mail(String),
    /// The mail server permanently refuses the mail.
    #[error("{0}")]
    MailRefused(String),
    /// The mail server does not offer STARTTLS, which the channel needs.
    #[error("the server does not offer STARTTLS, so nothing is sent to it")]
    NoStarttls,
    /// The program of the command is not an executable file that only root can change.
    #[error(transparent)]
    Program(#[from] ChannelError),
    /// The stored command was not confirmed on this device.
    #[error("the command was not confirmed on this device; remove the channel, and add it again")]
    Unconfirmed,
    /// The command could not be started.
    #[error("the command cannot be started: {0}")]
    NotStarted(io::Error),
    /// The command ended with a failure.
    #[error("the command ended with {status}{output}")]
    Exit {
        status: ExitStatus,
        /// A colon and the last part of the command's output; empty if the command printed nothing.
        output: String,
    },
    /// The command did not end within this time.
    #[error("the command did not end within {} s and was killed", .0.as_secs())]
    Endless(Duration),
    /// A secret that the channel needs is not in the store.
    #[error("the secrets of the channel are incomplete; remove the channel, and add it again")]
    SecretMissing,
    /// The stored message cannot be read, because a later version of this program stored it.
    #[error("the message cannot be read: {0}")]
    Unreadable(String),
}

impl DeliveryFault {
    /// Whether a repeated attempt to deliver the message can help.
    pub(crate) fn advice(&self) -> RetryAdvice {
        match self {
            Self::Status { advice, .. } => *advice,
            Self::MailRefused(_) | Self::SecretMissing | Self::Unreadable(_) => RetryAdvice::Never,
            // A later attempt can help, because the owner of the channel or the other end may correct the problem.
            _ => RetryAdvice::LATER,
        }
    }
}
