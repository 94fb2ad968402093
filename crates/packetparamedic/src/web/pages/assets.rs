//! The files that the pages load: one script, one style sheet, one icon. The program contains them. The URL of each has
//! a hash of its content, so that browsers may keep the file for good.

use std::io::Write;
use std::sync::LazyLock;

use aws_lc_rs::digest;
use axum::body::Bytes;
use axum::extract::Request;
use axum::http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use data_encoding::HEXLOWER;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::super::extract::ApiPath;
use super::super::problem::{self, Problem};

/// The scripts, in the order in which they run. They are sent as one file, because htmx starts as soon as the browser
/// has read its file, and must then find the code that extends htmx.
const SCRIPTS: [&str; 5] = [
    include_str!("../../../assets/vendor/htmx-4.0.1.min.js"),
    include_str!("../../../assets/vendor/uplot-1.6.32.iife.min.js"),
    include_str!("../../../assets/scripts/page.js"),
    include_str!("../../../assets/scripts/live.js"),
    include_str!("../../../assets/scripts/charts.js"),
];
const STYLES: [&str; 3] = [
    include_str!("../../../assets/vendor/uplot-1.6.32.min.css"),
    include_str!("../../../assets/styles/page.css"),
    include_str!("../../../assets/styles/charts.css"),
];
const ICON: &str = include_str!("../../../assets/icon.svg");

/// The number of letters of the content hash in the URL of a file.
const HASH_LETTERS: usize = 16;
/// The value of `Cache-Control` that lets a browser keep a file for a year without asking for it again (RFC 8246).
const FOR_GOOD: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// A file that the pages load.
struct Asset {
    /// The last part of the path of the file.
    name: String,
    kind: &'static str,
    plain: Bytes,
    compressed: Bytes,
}

static FILES: LazyLock<[Asset; 3]> = LazyLock::new(|| {
    [
        Asset::new("app", "js", "text/javascript; charset=utf-8", &SCRIPTS.join("\n;\n")),
        Asset::new("app", "css", "text/css; charset=utf-8", &STYLES.join("\n")),
        Asset::new("icon", "svg", "image/svg+xml", ICON),
    ]
});

/// The paths of the files that the pages load.
#[derive(Clone, Debug)]
pub(super) struct AssetPaths {
    /// The path of the script.
    pub(super) script: String,
    /// The path of the style sheet.
    pub(super) style: String,
    /// The path of the icon.
    pub(super) icon: String,
}

impl AssetPaths {
    /// Returns the paths of the files that this program contains.
    pub(super) fn current() -> Self {
        let [script, style, icon] = FILES.each_ref().map(|file| format!("/assets/{}", file.name));
        Self { script, style, icon }
    }
}

impl Asset {
    fn new(stem: &str, extension: &str, kind: &'static str, text: &str) -> Self {
        let hash = HEXLOWER.encode(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
        let hash = hash.get(..HASH_LETTERS).unwrap_or_default();
        Self {
            name: format!("{stem}.{hash}.{extension}"),
            kind,
            compressed: compressed(text.as_bytes(), Compression::best()),
            plain: Bytes::copy_from_slice(text.as_bytes()),
        }
    }
}

/// Answers with the file that the path names.
pub(super) async fn file(ApiPath(name): ApiPath<String>, request: Request) -> Result<Response, Problem> {
    let Some(file) = FILES.iter().find(|file| file.name == name) else {
        return Err(problem::no_route(request).await);
    };
    let headers = [(CONTENT_TYPE, HeaderValue::from_static(file.kind)), (CACHE_CONTROL, FOR_GOOD)];
    let mut response = (StatusCode::OK, headers, file.plain.clone()).into_response();
    if takes_gzip(request.headers()) {
        *response.body_mut() = file.compressed.clone().into();
        mark_compressed(response.headers_mut());
    }
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
    Ok(response)
}

/// Whether the client accepts gzip (RFC 9110, section 12.5.3).
pub(super) fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let is_refused = weight.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0));
        name.trim().eq_ignore_ascii_case("gzip") && !is_refused
    })
}

/// Sets the headers of an answer whose body is compressed.
pub(super) fn mark_compressed(headers: &mut HeaderMap) {
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
}

/// Compresses bytes with gzip.
pub(super) fn compressed(bytes: &[u8], effort: Compression) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), effort);
    // A write into memory does not fail.
    encoder.write_all(bytes).and_then(|()| encoder.finish()).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_client_without_gzip_gets_none() {
        for (value, takes) in [
            ("gzip, deflate, br", true),
            ("br;q=1.0, GZIP;q=0.8", true),
            ("gzip;q=0", false),
            ("gzip; q=0.0", false),
            ("br", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(value))]);
            assert_eq!(takes_gzip(&headers), takes, "{value}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[test]
    fn the_files_are_small_and_unpack_to_themselves() {
        let mut sum = 0;
        for file in FILES.iter() {
            let mut unpacked = Vec::new();
            flate2::read::GzDecoder::new(&file.compressed[..]).read_to_end(&mut unpacked).unwrap();
            assert_eq!(unpacked, file.plain);
            sum += file.compressed.len();
        }
        // The limit for all of the first page is 60 KiB, with its HTML.
        assert!(sum < 54 * 1024, "{sum}");
    }

    #[test]
    fn no_file_names_another_host() {
        for (name, text) in [("page", SCRIPTS[2]), ("live", SCRIPTS[3]), ("charts", SCRIPTS[4]), ("css", STYLES[1])] {
            assert!(!text.contains("//cdn") && !text.contains("http:") && !text.contains("https:"), "{name}");
        }
    }
}
