//! `GET /api/v1/media/{id}`: files of messages, decrypted, for whoever has a signed address.
//!
//! The address is all that is needed, so that it can stand in a page or be given to a program. What it opens was
//! written by others: browsers are told to run nothing of it, to guess no type, and to show only what is harmless.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{
    super::{HttpState, error::Problem},
    query::{Query, Segment, Segments},
};
use crate::{
    links::Verdict,
    media::{Found, Opened},
    model::MediaPart,
};

/// Types that a browser may show in its window, as Synapse has them: nothing that can hold a program.
const INLINE: &[&str] = &[
    "audio/aac",
    "audio/flac",
    "audio/mp4",
    "audio/mpeg",
    "audio/ogg",
    "audio/wav",
    "audio/wave",
    "audio/webm",
    "audio/x-flac",
    "audio/x-pn-wav",
    "audio/x-wav",
    "image/apng",
    "image/avif",
    "image/gif",
    "image/jpeg",
    "image/png",
    "image/webp",
    "text/plain",
    "video/mp4",
    "video/ogg",
    "video/quicktime",
    "video/webm",
];

/// Whatever a file turns out to be, it runs nothing and loads nothing.
const POLICY: HeaderValue = HeaderValue::from_static(
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; media-src 'self'; img-src 'self'; frame-ancestors 'none'",
);

/// The most characters of a file's name that are told.
const NAME_LENGTH: usize = 200;

/// A message's file
///
/// The address comes with the message, as `content.media.url` of its webhook call and of `/messages/{id}`; it needs no
/// token, and cannot be made up. The file is fetched from the homeserver when it is asked for first, checked against
/// the hash that its sender stated, and decrypted on its way. `Range` is understood.
#[utoipa::path(
    get, path = "/api/v1/media/{id}", tag = "media", security(()),
    params(
        ("id" = String, Path, description = "The message's id."),
        ("expires" = String, Query, description = "Of the address."),
        ("signature" = String, Query, description = "Of the address."),
    ),
    responses(
        (status = 200, description = "The file.", content_type = "*/*"),
        (status = 206, description = "A part of it.", content_type = "*/*"),
        super::openapi::MediaRefusals,
    ),
)]
pub(super) async fn file(
    State(state): State<HttpState>,
    Segment(id): Segment,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, Problem> {
    serve(&state, &id, &MediaPart::File, &headers, query).await
}

/// The smaller picture of a message's file
///
/// As `/media/{id}`; its address is `content.media.thumbnail.url`.
#[utoipa::path(
    get, path = "/api/v1/media/{id}/thumbnail", tag = "media", security(()),
    params(
        ("id" = String, Path, description = "The message's id."),
        ("expires" = String, Query, description = "Of the address."),
        ("signature" = String, Query, description = "Of the address."),
    ),
    responses(
        (status = 200, description = "The picture.", content_type = "*/*"),
        (status = 206, description = "A part of it.", content_type = "*/*"),
        super::openapi::MediaRefusals,
    ),
)]
pub(super) async fn thumbnail(
    State(state): State<HttpState>,
    Segment(id): Segment,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, Problem> {
    serve(&state, &id, &MediaPart::Thumbnail, &headers, query).await
}

/// Another of a message's files
///
/// As `/media/{id}`, for every file that a message has beside its own: one of a gallery, the picture of a link's
/// preview, the sender's avatar. Each comes in the payload with its `part` and its `url`.
#[utoipa::path(
    get, path = "/api/v1/media/{id}/{part}", tag = "media", security(()),
    params(
        ("id" = String, Path, description = "The message's id."),
        ("part" = String, Path, pattern = "^[a-z0-9.]{1,64}$",
            description = "Which of its files: `part` in the payload."),
        ("expires" = String, Query, description = "Of the address."),
        ("signature" = String, Query, description = "Of the address."),
    ),
    responses(
        (status = 200, description = "The file.", content_type = "*/*"),
        (status = 206, description = "A part of it.", content_type = "*/*"),
        super::openapi::MediaRefusals,
    ),
)]
pub(super) async fn part(
    State(state): State<HttpState>,
    Segments([id, part]): Segments<2>,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, Problem> {
    // Nothing was signed that is called otherwise.
    let part = MediaPart::named(&part).ok_or_else(Problem::url_invalid)?;
    serve(&state, &id, &part, &headers, query).await
}

async fn serve(
    state: &HttpState,
    id: &str,
    part: &MediaPart,
    headers: &HeaderMap,
    mut query: Query,
) -> Result<Response, Problem> {
    let (expires, signature) = (query.take("expires"), query.take("signature"));
    query.finish()?;
    let (Some(expires), Some(signature)) = (expires, signature) else { return Err(Problem::url_invalid()) };
    let now = state.api.clock.now();
    let until = match state.api.signer()?.verify(id, part, &expires, &signature, now) {
        Verdict::Valid { until } => until,
        Verdict::Expired => return Err(Problem::url_expired()),
        Verdict::Invalid => return Err(Problem::url_invalid()),
    };
    let found = state.api.media.find(id, part).await?;
    // A message's file is never another one.
    let etag = format!("\"{id}.{}\"", part.as_str());
    let mut answer = HeaderMap::new();
    put(&mut answer, header::ETAG, &etag);
    let seconds = until.saturating_sub(now.0.div_euclid(1000));
    put(&mut answer, header::CACHE_CONTROL, &format!("private, max-age={seconds}, immutable"));
    if matches_etag(headers, header::IF_NONE_MATCH, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, answer).into_response());
    }
    describe(&mut answer, &found);
    let opened = found.open().await?;
    let is_same = !headers.contains_key(header::IF_RANGE) || matches_etag(headers, header::IF_RANGE, &etag);
    let range = headers.get(header::RANGE).filter(|_| is_same).and_then(|range| range.to_str().ok());
    content(opened, range.and_then(Range::parse), answer)
}

/// The part of a file that was asked for.
fn content(opened: Opened, range: Option<Range>, mut headers: HeaderMap) -> Result<Response, Problem> {
    let size = opened.size();
    let (status, from, length) = match range.map(|range| range.of(size)) {
        None => (StatusCode::OK, 0, size),
        Some(Some((from, length))) => {
            let last = from + length - 1;
            put(&mut headers, header::CONTENT_RANGE, &format!("bytes {from}-{last}/{size}"));
            (StatusCode::PARTIAL_CONTENT, from, length)
        }
        Some(None) => return Err(Problem::range_unsatisfiable(size)),
    };
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok((status, headers, Body::from_stream(opened.read(from, length))).into_response())
}

/// What a browser is told of a file beside its size.
fn describe(headers: &mut HeaderMap, found: &Found) {
    let mimetype = found.mimetype().and_then(clean_type);
    let is_inline = mimetype.as_deref().is_some_and(|mimetype| INLINE.contains(&mimetype));
    let shown = match mimetype.as_deref() {
        // Without it browsers guess, and may see another alphabet's letters in markup.
        Some("text/plain") => "text/plain; charset=utf-8",
        other => other.unwrap_or("application/octet-stream"),
    };
    put(headers, header::CONTENT_TYPE, shown);
    put(headers, header::CONTENT_DISPOSITION, &disposition(is_inline, found.filename()));
    put(headers, header::ACCEPT_RANGES, "bytes");
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
    // The address is what protects a file, so pages of other origins may use what they have an address of.
    put(headers, header::ACCESS_CONTROL_ALLOW_ORIGIN, "*");
    put(headers, HeaderName::from_static("cross-origin-resource-policy"), "cross-origin");
    put(headers, HeaderName::from_static("x-robots-tag"), "noindex, nofollow, noarchive, noimageindex");
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// A type as the sender claims it, without parameters, if it has the form of one.
fn clean_type(claimed: &str) -> Option<String> {
    let mimetype = claimed.split(';').next()?.trim().to_ascii_lowercase();
    let token = |text: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&byte);
        (1..=64).contains(&text.len()) && text.bytes().all(allowed)
    };
    let (kind, subtype) = mimetype.split_once('/')?;
    (token(kind) && token(subtype)).then_some(mimetype)
}

/// `Content-Disposition` ([RFC 6266](https://www.rfc-editor.org/rfc/rfc6266)): the name twice, plain and with every
/// letter.
fn disposition(is_inline: bool, filename: Option<&str>) -> String {
    let kind = if is_inline { "inline" } else { "attachment" };
    // No path, and nothing that steers how a name is shown.
    let steers = |char: char| {
        char.is_control()
            || matches!(char, '/' | '\\' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let name: String =
        filename.unwrap_or_default().chars().filter(|char| !steers(*char)).take(NAME_LENGTH).collect();
    let name = name.trim_matches(|char: char| char == '.' || char.is_whitespace());
    if name.is_empty() {
        return kind.to_owned();
    }
    let plain: String = name
        .chars()
        .map(|char| if char == '"' || char == '%' || !(' '..='~').contains(&char) { '_' } else { char })
        .collect();
    let attr = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte);
    let whole: String = name
        .bytes()
        .map(|byte| if attr(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    format!("{kind}; filename=\"{plain}\"; filename*=UTF-8''{whole}")
}

/// Whether a header names our tag.
fn matches_etag(headers: &HeaderMap, name: HeaderName, etag: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// One range of bytes ([RFC 9110](https://www.rfc-editor.org/rfc/rfc9110#name-range)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Range {
    From(u64),
    Between(u64, u64),
    Last(u64),
}

impl Range {
    /// What is no single range of bytes is none: then the whole file is sent, as the RFC allows.
    fn parse(header: &str) -> Option<Self> {
        let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
        let number =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?;
        match (first.trim(), last.trim()) {
            ("", last) => number(last).map(Self::Last),
            (first, "") => number(first).map(Self::From),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    /// Where it begins in so many bytes and how many it has; `None` when it has none.
    fn of(self, size: u64) -> Option<(u64, u64)> {
        let (from, to) = match self {
            Self::From(from) => (from, size),
            Self::Between(from, last) => (from, last.saturating_add(1).min(size)),
            Self::Last(count) => (size.saturating_sub(count), size),
        };
        to.checked_sub(from).filter(|length| *length > 0).map(|length| (from, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_a_part_of_what_there_is() {
        for (header, expected) in [
            ("bytes=0-0", Some((0, 1))),
            ("bytes=3-", Some((3, 7))),
            ("bytes=3-5", Some((3, 3))),
            ("bytes=3-99999999999", Some((3, 7))),
            ("bytes=-4", Some((6, 4))),
            ("bytes=-99", Some((0, 10))),
            ("bytes=10-", None),
            ("bytes=-0", None),
        ] {
            assert_eq!(Range::parse(header).unwrap().of(10), expected, "{header}");
        }
        for odd in
            ["", "bytes=", "bytes=-", "bytes=5-3", "bytes=1-2,4-5", "bytes=+1-2", "items=0-1", "bytes=a-b"]
        {
            assert_eq!(Range::parse(odd), None, "{odd}");
        }
        assert_eq!(Range::From(0).of(0), None);
    }

    #[test]
    fn a_name_is_told_without_what_could_do_harm() {
        assert_eq!(disposition(true, None), "inline");
        assert_eq!(disposition(false, Some("..")), "attachment");
        assert_eq!(
            disposition(false, Some("../../ä\"\r\n\u{202e}%.p;df")),
            "attachment; filename=\"___.p;df\"; filename*=UTF-8''%C3%A4%22%25.p%3Bdf"
        );
        let long = disposition(true, Some(&"x".repeat(5000)));
        assert!(long.len() < 500);
    }

    #[test]
    fn a_type_is_one_or_none() {
        assert_eq!(clean_type("Image/PNG; x=y").as_deref(), Some("image/png"));
        assert_eq!(clean_type("application/vnd.a+json").as_deref(), Some("application/vnd.a+json"));
        for odd in ["", "png", "a/", "/b", "a/b c", "a/b\r\nx: y", "a/ü", "*/*"] {
            assert_eq!(clean_type(odd), None, "{odd}");
        }
        for active in ["text/html", "image/svg+xml", "application/pdf", "text/xml", "application/javascript"]
        {
            assert!(!INLINE.contains(&active), "{active}");
        }
    }
}
