//! The choice of colours, which a cookie keeps.

use axum::Extension;
use axum::http::HeaderValue;
use axum::http::header::SET_COOKIE;
use axum::response::{AppendHeaders, IntoResponse, Response};

use super::super::extract::FormBody;
use super::super::guard::NothingChanged;
use super::layout::{Theme, own_path, see_other};
use super::visitor::THEME_COOKIE;

/// How long the cookie keeps the choice of colours, in seconds: a year.
const LIFETIME_S: u32 = 365 * 86_400;

/// Stores the choice of colours in a cookie, and leads back to the page on which the viewer made the choice.
pub(super) async fn choose(form: FormBody) -> Response {
    let theme = form.text("theme").and_then(Theme::of_word).unwrap_or_default();
    let cookie = format!("{THEME_COOKIE}={}; Path=/; Max-Age={LIFETIME_S}; HttpOnly; SameSite=Lax", theme.word());
    // The words of the themes consist of letters, so this does not fail.
    let cookie = HeaderValue::from_str(&cookie).unwrap_or_else(|_| HeaderValue::from_static(""));
    let back = form.text("next").and_then(own_path).unwrap_or("/");
    (Extension(NothingChanged), AppendHeaders([(SET_COOKIE, cookie)]), see_other(back)).into_response()
}
