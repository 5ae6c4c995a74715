//! Parameters of requests: read strictly, each refusal naming what is wrong.

use std::time::Duration;

use axum::{
    body::{Body, to_bytes},
    extract::{FromRequestParts, Path},
    http::request::Parts,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::de::DeserializeOwned;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::timeout;
use url::form_urlencoded;

use super::super::error::Problem;
use crate::clock::Timestamp;

/// Entries of a page, unless the caller says otherwise, and at most.
pub(super) const DEFAULT_LIMIT: u16 = 50;
pub(super) const MOST: u16 = 500;

/// The most bytes of a parameter's value.
const VALUE_LENGTH: usize = 1024;

/// A list that is read page by page; a cursor of one is none of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    Messages,
    Events,
    Rooms,
    Keys,
    Undecryptable,
    Deliveries,
    OpenDeliveries,
    Resend,
}

impl List {
    fn mark(self) -> &'static str {
        match self {
            Self::Messages => "m",
            Self::Events => "e",
            Self::Rooms => "r",
            Self::Keys => "k",
            Self::Undecryptable => "u",
            Self::Deliveries => "d",
            Self::OpenDeliveries => "o",
            Self::Resend => "s",
        }
    }

    /// The cursor that stands for a place in the list.
    pub(super) fn cursor(self, place: impl std::fmt::Display) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}:{place}", self.mark()))
    }

    /// The place that a cursor of this list stands for.
    pub(super) fn place(self, cursor: &str) -> Result<String, Problem> {
        let text = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let place = text.as_deref().and_then(|text| text.strip_prefix(self.mark())?.strip_prefix(':'));
        place.map(str::to_owned).ok_or_else(Problem::bad_cursor)
    }

    /// The number that a cursor of this list stands for.
    pub(super) fn number(self, cursor: &str) -> Result<i64, Problem> {
        let number = self.place(cursor)?.parse().ok().filter(|number| *number >= 0);
        number.ok_or_else(Problem::bad_cursor)
    }
}

/// The parameters of a request. What an endpoint knows it takes; [`Query::finish`] refuses the rest.
#[derive(Debug)]
pub(super) struct Query {
    given: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl Query {
    fn read(query: &str) -> Result<Self, Problem> {
        let mut given: Vec<(String, String)> = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()).into_owned() {
            if given.iter().any(|(known, _)| *known == name) {
                return Err(Problem::bad_parameter(format!("{} is there twice", shown(&name))));
            }
            if value.len() > VALUE_LENGTH || value.contains('\0') {
                return Err(Problem::bad_parameter(format!(
                    "{} is longer than {VALUE_LENGTH} bytes or holds a NUL",
                    shown(&name)
                )));
            }
            given.push((name, value));
        }
        Ok(Self { given, known: Vec::new() })
    }

    /// The value of a parameter.
    pub(super) fn take(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        let at = self.given.iter().position(|(given, _)| given == name)?;
        Some(self.given.remove(at).1)
    }

    /// The value of a parameter that `parse` understands.
    pub(super) fn parsed<T>(
        &mut self,
        name: &'static str,
        must: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(value) = self.take(name) else { return Ok(None) };
        parse(&value).map(Some).ok_or_else(|| Problem::bad_parameter(format!("{name} must be {must}")))
    }

    /// How many entries a page has at most.
    pub(super) fn limit(&mut self) -> Result<u16, Problem> {
        let limit = self.parsed("limit", "a number from 1 to 500", |text| {
            text.parse().ok().filter(|limit| (1..=MOST).contains(limit))
        })?;
        Ok(limit.unwrap_or(DEFAULT_LIMIT))
    }

    /// The cursor's number.
    pub(super) fn number(&mut self, name: &'static str, list: List) -> Result<Option<i64>, Problem> {
        self.take(name).map(|cursor| list.number(&cursor)).transpose()
    }

    /// A time.
    pub(super) fn time(&mut self, name: &'static str) -> Result<Option<Timestamp>, Problem> {
        self.parsed(name, "a time by RFC 3339, such as 2026-11-22T03:14:22Z", time)
    }

    /// `since` and `until`, of which the first must not lie after the second.
    pub(super) fn times(&mut self) -> Result<(Option<Timestamp>, Option<Timestamp>), Problem> {
        let (since, until) = (self.time("since")?, self.time("until")?);
        if since.zip(until).is_some_and(|(since, until)| since > until) {
            return Err(Problem::bad_parameter("since lies after until"));
        }
        Ok((since, until))
    }

    /// The id of a room.
    pub(super) fn room(&mut self) -> Result<Option<String>, Problem> {
        self.parsed("room", "a room id, which begins with !", |text| room_id(text).map(str::to_owned))
    }

    /// The name of a network.
    pub(super) fn network(&mut self) -> Result<Option<String>, Problem> {
        self.parsed("network", NETWORK, |text| network(text).map(str::to_owned))
    }

    /// Refuses what the endpoint has not taken.
    pub(super) fn finish(self) -> Result<(), Problem> {
        let unknown: Vec<String> = self.given.iter().map(|(name, _)| shown(name)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let known = if self.known.is_empty() { "none".to_owned() } else { self.known.join(", ") };
        let unknown = unknown.join(", ");
        Err(Problem::unknown_parameter(format!(
            "unknown parameters: {unknown}; this endpoint takes: {known}"
        )))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::read(parts.uri.query().unwrap_or_default())
    }
}

/// The one variable part of a path.
#[derive(Debug)]
pub(super) struct Segment(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let bad = || Problem::bad_parameter("the path is not UTF-8, too long, or holds control characters");
        let Path(segment) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| bad())?;
        if fits(&segment) { Ok(Self(segment)) } else { Err(bad()) }
    }
}

/// Several of the path's segments, decoded.
pub(super) struct Segments<const N: usize>(pub(super) [String; N]);

impl<const N: usize, S: Send + Sync> FromRequestParts<S> for Segments<N> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let bad = || Problem::bad_parameter("the path is not UTF-8, too long, or holds control characters");
        let Path(segments) =
            Path::<Vec<String>>::from_request_parts(parts, state).await.map_err(|_| bad())?;
        let segments: [String; N] = segments.try_into().map_err(|_| bad())?;
        if segments.iter().all(|segment| fits(segment)) { Ok(Self(segments)) } else { Err(bad()) }
    }
}

fn fits(segment: &str) -> bool {
    segment.len() <= VALUE_LENGTH && !segment.chars().any(char::is_control)
}

/// The most bytes of a body.
const BODY_LENGTH: usize = 64 << 10;

/// How long a body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// A body of JSON; an empty one is as `{}`.
pub(super) async fn body<T: DeserializeOwned>(body: Body) -> Result<T, Problem> {
    let read = timeout(BODY_TIMEOUT, to_bytes(body, BODY_LENGTH)).await;
    let read = read.map_err(|_| Problem::bad_body("the body did not come in time"))?;
    let bytes = read.map_err(|_| Problem::body_too_large())?;
    let bytes = if bytes.is_empty() { &b"{}"[..] } else { &bytes };
    serde_json::from_slice(bytes).map_err(|error| Problem::bad_body(error.to_string()))
}

/// What [`network`] takes.
pub(super) const NETWORK: &str = "the name of a network, of small letters, digits, - and _";

/// A network's name, if it can be one.
pub(super) fn network(text: &str) -> Option<&str> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    let valid = (1..=64).contains(&text.len()) && text.bytes().all(plain);
    valid.then_some(text)
}

/// A room id, as far as it can be told without a server's name.
pub(super) fn room_id(text: &str) -> Option<&str> {
    (text.starts_with('!') && (2..=255).contains(&text.len()) && !text.chars().any(char::is_control))
        .then_some(text)
}

/// A time by RFC 3339.
pub(super) fn time(text: &str) -> Option<Timestamp> {
    // An unescaped + of an offset comes as a space.
    let time = OffsetDateTime::parse(&text.replace(' ', "+"), &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok().map(Timestamp)
}

/// A name that the caller made up, in a form that can be shown.
fn shown(name: &str) -> String {
    name.chars().take(40).map(|char| if char.is_control() { '?' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_of_one_list_and_cannot_be_made_up() {
        let cursor = List::Messages.cursor(17);
        assert_eq!(List::Messages.number(&cursor), Ok(17));
        assert_eq!(List::Rooms.place(&List::Rooms.cursor("!a:b")), Ok("!a:b".to_owned()));
        let negative = List::Messages.cursor(-1);
        let bad = ["", "17", "!", "bToxNw==", &cursor[1..], &negative, &List::Events.cursor(17)];
        for bad in bad {
            assert_eq!(List::Messages.number(bad), Err(Problem::bad_cursor()), "{bad}");
        }
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time("1970-01-01T00:00:01Z"), Some(Timestamp(1000)));
        assert_eq!(time("1970-01-01T01:00:01.5+01:00"), Some(Timestamp(1500)));
        assert_eq!(time("1970-01-01T01:00:01 01:00"), Some(Timestamp(1000)));
        for bad in ["", "1000", "1970-01-01", "yesterday", "1970-01-01T00:00:01"] {
            assert_eq!(time(bad), None, "{bad}");
        }
    }

    #[test]
    fn unknown_and_repeated_parameters_are_named() {
        let mut query = Query::read("limit=7&rom=x&%00=y").unwrap();
        assert_eq!(query.limit(), Ok(7));
        assert_eq!(query.room(), Ok(None));
        let expected = "unknown parameters: rom, ?; this endpoint takes: limit, room".to_owned();
        assert_eq!(query.finish(), Err(Problem::unknown_parameter(expected)));
        let twice = Problem::bad_parameter("limit is there twice".to_owned());
        assert_eq!(Query::read("limit=7&limit=7").unwrap_err(), twice);
        for bad in ["0", "501", "-1", "x", "", "1e2", "99999999999999999999"] {
            assert!(Query::read(&format!("limit={bad}")).unwrap().limit().is_err(), "{bad}");
        }
    }
}
