//! The client of the running reflector's admin socket, and the failures of a request.

use std::path::Path;

use super::load;
use super::output::{broken, print_line};
use crate::config::{Config, PlaceFlags};
use crate::failure::{Exit, Failure};
use crate::server::{AdminClient, AdminReply, AdminRequest};

/// Connects to the running reflector, and runs `work` with the connection.
pub(super) fn asking(
    place: &PlaceFlags,
    work: impl AsyncFnOnce(&mut AdminClient) -> Result<(), Failure>,
) -> Result<(), Failure> {
    asking_at(&load(&place.values)?, work)
}

/// Connects to the reflector that runs with `config`, and runs `work` with the connection.
pub(super) fn asking_at<T>(
    config: &Config,
    work: impl AsyncFnOnce(&mut AdminClient) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let path = config.admin_socket();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| broken(&error))?;
    runtime.block_on(async {
        let mut client = AdminClient::connect(&path).await.map_err(|error| not_running(&path, &error))?;
        let (server, user) = (client.server_user(), rustix::process::geteuid());
        // Another user's program may answer at this path. It must not receive requests, and its answers cannot be
        // trusted.
        if server != 0 && server != user.as_raw() && !(user.is_root() && config.has_root_runtime_dir()) {
            return Err(Failure::new(
                Exit::Failed,
                "not_trusted",
                "cannot talk to the reflector",
                format!(
                    "user {server} answers at {}, but is neither root nor the user who runs this command",
                    path.display()
                ),
                "run this command as the user of the reflector; if you do not know that user, find the program that created the socket",
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
            "cannot talk to the reflector",
            format!("this user is not allowed to open {}", path.display()),
            "run this command as the user of the reflector, or as root",
        ),
        _ => Failure::new(
            Exit::Failed,
            "not_running",
            "the reflector is not running",
            format!("no program answers at {}", path.display()),
            "start it with `reflector serve`; if it runs with another --state-dir, run this command with the same one",
        ),
    }
}

/// Sends one request and passes the answer to `read`. Fails if the reflector refuses the request.
pub(super) async fn one_answer<T>(
    client: &mut AdminClient,
    ask: &AdminRequest,
    read: impl FnOnce(AdminReply) -> Result<T, Failure>,
) -> Result<T, Failure> {
    client.ask(ask).await.map_err(|error| broken(&error))?;
    match client.answer().await.map_err(|error| broken(&error))? {
        Some(AdminReply::Failed { because }) => Err(refused(&because)),
        Some(answer) => read(answer),
        None => Err(unexpected(&None)),
    }
}

/// Prints what the reflector did to carry out the request. Fails if the answer is not [`AdminReply::Done`].
pub(super) fn print_done(answer: AdminReply) -> Result<(), Failure> {
    match answer {
        AdminReply::Done { what } => {
            print_line(what.as_str());
            Ok(())
        }
        other => Err(unexpected(&Some(other))),
    }
}

/// The failure of a command if the answer of the reflector is of an unexpected kind, or if there was no answer
/// (`None`).
pub(super) fn unexpected(answer: &Option<AdminReply>) -> Failure {
    broken(&format!("unexpected answer {answer:?}"))
}

pub(super) fn refused(because: &str) -> Failure {
    Failure::new(
        Exit::Failed,
        "refused",
        "the reflector refused the command",
        because,
        "run `reflector peers` and `reflector status` to see the current state",
    )
}
