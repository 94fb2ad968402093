//! The failures of commands about the channels of alert messages.

use paramedic_appliance::alerts::channel::ChannelError;

use super::{CommandFailure, ExitStatus};

/// The failure of a command whose channel is not valid.
pub(super) fn not_accepted(error: &ChannelError) -> CommandFailure {
    let (exit, code) = match error {
        ChannelError::CommandRefused => (ExitStatus::Denied, "command_refused"),
        _ => (ExitStatus::Usage, "bad_channel"),
    };
    let try_ = match error {
        ChannelError::Name(_) => "choose a valid name, such as phone",
        ChannelError::Url => "use a URL such as https://hooks.example.org/KEY",
        ChannelError::NoUrl => "name the file that contains the URL: url_file = \"FILE\"",
        ChannelError::OtherServer => "set `server` to the server of the URL, or omit `server`",
        ChannelError::ForeignSecret { .. } => "remove that secret",
        ChannelError::NtfyServer => "use the URL of the server alone, as in --server https://ntfy.example.org",
        ChannelError::Topic(_) => "choose a valid topic that is hard to guess, such as pp-7f3k2m9q",
        ChannelError::Token => "pass a file that has only the token, in one line",
        ChannelError::MailServer => "name the host with --server, and its port with --port",
        ChannelError::MailLogin | ChannelError::HalfMailLogin => {
            "pass --user NAME and --password-file FILE, which has only the password, in one line"
        }
        ChannelError::PasswordInClear => "use --security starttls or --security tls",
        ChannelError::MailAddress(_) => "use the bare address, without a name",
        ChannelError::Recipients => "name each recipient with --to",
        ChannelError::ProgramPath(_) => "use the whole path, such as /usr/bin/apprise",
        ChannelError::Args => "put the command into a script, and name the script",
        ChannelError::ProgramFile { .. } => {
            "name an executable file that belongs to root and that other users cannot write to (chown root FILE; chmod \
             755 FILE); all folders above it must belong to root, too"
        }
        ChannelError::CommandRefused => {
            "run `packetparamedic channel` or `packetparamedic apply` on the host of the service"
        }
    };
    CommandFailure::new(exit, code, "the channel is not accepted", error, try_)
}
