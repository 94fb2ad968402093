//! The settings of the channels: list, add, test, enable, disable, remove. No page shows a secret.

use askama::Template;
use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use paramedic_appliance::alerts::channel::{MailSecurity, NewChannel, NewDestination};
use paramedic_appliance::alerts::secret_text::SecretText;
use paramedic_appliance::store::StoredChannel;

use super::super::super::ApiState;
use super::super::super::channels::{removed, switched};
use super::super::super::connections::RequestSource;
use super::super::super::extract::{ApiPath, FormBody, encoded};
use super::super::super::problem::Problem;
use super::super::layout::{Layout, done, page_with};
use super::super::notice::Notice;
use super::super::outside_text::shown;
use super::super::visitor::Visitor;
use super::SettingsFrame;
use crate::cli::failure::{CommandFailure, ExitStatus};

/// The path of the settings of the channels.
pub(in super::super) const PATH: &str = "/settings/channels";

/// The fields of the form that can contain secrets. After an error, the page does not fill these fields in again.
const SECRET_FIELDS: [&str; 3] = ["url", "token", "password"];

/// The template of the settings of the channels.
#[derive(Template)]
#[template(path = "settings/channels.html")]
struct ChannelsPage {
    layout: Layout,
    frame: SettingsFrame,
    channels: Vec<ChannelView>,
    error: Option<Problem>,
    entered: FormBody,
}

/// A channel as the page shows it.
struct ChannelView {
    name: String,
    /// The path to which the forms of the channel are sent.
    path: String,
    kind: &'static str,
    summary: String,
    /// The names of the secrets that the channel has.
    secrets: String,
    is_enabled: bool,
    /// Whether the viewer may change the channel through this page.
    is_changeable: bool,
    from_file: bool,
}

impl ChannelView {
    fn of(stored: &StoredChannel) -> Self {
        let destination = &stored.channel.destination;
        Self {
            name: shown(&stored.channel.name),
            path: format!("{PATH}/{}", encoded(&stored.channel.name)),
            kind: match destination.kind() {
                "webhook" => "webhook",
                "ntfy" => "ntfy",
                "smtp" => "mail",
                _ => "command",
            },
            summary: shown(&destination.summary()),
            secrets: stored.secrets.join(", "),
            is_enabled: stored.enabled,
            is_changeable: !destination.is_command(),
            from_file: stored.from_file,
        }
    }
}

/// Shows the settings of the channels.
pub(in super::super) async fn show(State(state): State<ApiState>, visitor: Visitor) -> Result<Response, Problem> {
    page(&state, &visitor, StatusCode::OK, None, FormBody::default()).await
}

/// Adds the channel of the form.
pub(in super::super) async fn add(
    State(state): State<ApiState>,
    visitor: Visitor,
    form: FormBody,
) -> Result<Response, Problem> {
    let added = match new_channel(&form) {
        Ok(new) => state.service.appliance().add_channel(new).await.map_err(Problem::from),
        Err(because) => Err(not_accepted(because)),
    };
    match added {
        Ok(_) => Ok(done(PATH, Notice::ChannelAdded)),
        Err(problem) => {
            let harmless = form.0.into_iter().filter(|(name, _)| !SECRET_FIELDS.contains(&name.as_str())).collect();
            page(&state, &visitor, problem.status_code(), Some(problem), FormBody(harmless)).await
        }
    }
}

/// Builds the channel that a form describes. The error is the reason why a field is not valid. A form cannot describe a
/// command channel.
fn new_channel(form: &FormBody) -> Result<NewChannel, &'static str> {
    let text = |field| form.text(field).map(str::to_owned);
    let secret = |field| form.text(field).map(|text| SecretText::new(text.to_owned()));
    let destination = match form.value("kind") {
        "webhook" => NewDestination::Webhook {
            url: secret("url").unwrap_or_else(|| SecretText::new(String::new())),
            token: secret("token"),
        },
        "ntfy" => NewDestination::Ntfy {
            server: text("server"),
            topic: form.value("topic").to_owned(),
            token: secret("token"),
        },
        "smtp" => NewDestination::Smtp {
            server: form.value("server").to_owned(),
            port: match form.text("port") {
                Some(port) => Some(port.parse().map_err(|_| "the port must be a number from 1 to 65535")?),
                None => None,
            },
            security: Some(match form.value("security") {
                "tls" => MailSecurity::Tls,
                "none" => MailSecurity::None,
                _ => MailSecurity::Starttls,
            }),
            user: text("user"),
            password: secret("password"),
            from: form.value("from").to_owned(),
            to: form.value("to").split([',', ' ', ';']).map(str::to_owned).collect(),
        },
        _ => return Err("the kind must be webhook, ntfy or smtp"),
    };
    Ok(NewChannel { name: form.value("name").to_owned(), destination })
}

fn not_accepted(because: &str) -> Problem {
    let try_ = "correct that field";
    CommandFailure::new(ExitStatus::Usage, "bad_channel", "the channel is not accepted", because, try_).into()
}

/// Enables a channel if the form has the field `enabled`; otherwise disables the channel.
pub(in super::super) async fn switch(
    State(state): State<ApiState>,
    Extension(source): Extension<RequestSource>,
    ApiPath(name): ApiPath<String>,
    form: FormBody,
) -> Result<Response, Problem> {
    switched(&state, source, &name, form.is_ticked("enabled")).await?;
    Ok(done(PATH, Notice::ChannelChanged))
}

/// Sends a test message through a channel.
pub(in super::super) async fn test(
    State(state): State<ApiState>,
    visitor: Visitor,
    ApiPath(name): ApiPath<String>,
) -> Result<Response, Problem> {
    let tested = state.service.test_channel(&name).await?;
    let Some(reason) = &tested.reason else { return Ok(done(PATH, Notice::ChannelTested)) };
    let what = format!("The test message was not delivered to {}", shown(&tested.channel));
    let try_ = "check the server or program that receives the messages; to change the channel, remove it and add it \
                again";
    let failure = CommandFailure::new(ExitStatus::Failed, "not_delivered", what, reason, try_);
    page(&state, &visitor, StatusCode::OK, Some(failure.into()), FormBody::default()).await
}

/// Removes a channel.
pub(in super::super) async fn remove(
    State(state): State<ApiState>,
    Extension(source): Extension<RequestSource>,
    ApiPath(name): ApiPath<String>,
) -> Result<Response, Problem> {
    removed(&state, source, &name).await?;
    Ok(done(PATH, Notice::ChannelRemoved))
}

async fn page(
    state: &ApiState,
    visitor: &Visitor,
    status: StatusCode,
    error: Option<Problem>,
    entered: FormBody,
) -> Result<Response, Problem> {
    let (frame, layout) = SettingsFrame::of(PATH, visitor);
    let channels = state.service.appliance().channels().await?.iter().map(ChannelView::of).collect();
    Ok(page_with(status, &ChannelsPage { layout, frame, channels, error, entered }))
}
