//! `token`: adds, lists and removes tokens of the service's API; prints a link to set the administrator's password.

use paramedic_appliance::app::NewToken;
use paramedic_appliance::store::{AccessScope, StoredToken};
use serde_json::json;

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use super::object_args::ObjectArgs;
use crate::web::client::ServiceClient;
use crate::web::login::SetupLinkAnswer;
use crate::web::tokens::TokenRequest;

pub(super) type Args = ObjectArgs<Command>;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List the tokens, without their secrets; the default subcommand
    List,
    /// Add a token and print it; it is not shown again
    Add {
        /// The name of the token: letters, digits, dots, dashes and underscores
        #[arg(long, value_name = "NAME")]
        name: String,
        /// What the token allows: read (read results and state), run (also run and cancel tests), admin (everything)
        #[arg(long, value_name = "read|run|admin", value_parser = scope, default_value = "read")]
        scope: AccessScope,
    },
    /// Print a link for setting the administrator's password; the link works once and expires after an hour
    Setup,
    /// Remove a token; the service then refuses requests with this token
    Remove {
        /// The name of the token
        name: String,
    },
}

fn scope(text: &str) -> Result<AccessScope, String> {
    let found = AccessScope::ALL.into_iter().find(|scope| scope.as_str() == text);
    found.ok_or_else(|| "valid: read, run or admin".to_owned())
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let json = args.json;
    match args.command.unwrap_or(Command::List) {
        Command::List => {
            let tokens: Vec<StoredToken> = match context.service().await? {
                Some(service) => service.get("/tokens").await?,
                None => context.appliance()?.tokens().await?,
            };
            if json {
                context.output.json_line(&tokens)?;
            } else if tokens.is_empty() {
                context.output.note("no tokens yet: packetparamedic token add --name grafana --scope read");
            } else {
                for StoredToken { name, scope, added_at } in &tokens {
                    context.output.line(&format!("{name}  {scope}  added {}", added_at.strftime("%Y-%m-%d")))?;
                }
            }
        }
        Command::Add { name, scope } => {
            let new: NewToken = match context.service().await? {
                Some(service) => service.post("/tokens", &TokenRequest { name, scope }).await?,
                None => context.appliance()?.add_token(&name, scope).await?,
            };
            if json {
                context.output.json_line(&new)?;
            } else {
                context.output.line(&new.token)?;
                context.output.note("store the token now: it is not shown again");
            }
        }
        Command::Setup => {
            let link: SetupLinkAnswer = match context.service().await? {
                Some(service) => service.post("/setup-links", &()).await?,
                None => context.appliance()?.new_setup_link().await?.into(),
            };
            if json {
                context.output.json_line(&link)?;
            } else {
                context.output.line(&link.path)?;
                context.output.note("open this path at the service's address, as in http://localhost:8068/setup/…");
            }
        }
        Command::Remove { name } => {
            let removed: StoredToken = match context.service().await? {
                Some(service) => service.delete(&ServiceClient::token_route(&name)).await?,
                None => context.appliance()?.remove_token(&name).await?,
            };
            if json {
                context.output.json_line(&json!({ "event": "removed", "token": removed.name }))?;
            } else {
                context.output.line(&format!("removed: {}", removed.name))?;
            }
        }
    }
    Ok(ExitStatus::Done)
}
