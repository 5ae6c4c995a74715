//! What can go wrong when speaking with the homeserver.

use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value as Json;

/// The most characters of a homeserver's own words that are kept.
const MESSAGE_LENGTH: usize = 300;

/// The longest that a homeserver's wish to be left alone is granted.
const MOST_RETRY_AFTER: Duration = Duration::from_hours(1);

/// What can go wrong with a request to the homeserver. No message contains a token.
#[derive(Debug, thiserror::Error)]
pub enum HomeserverError {
    /// No answer: no connection, a broken one, or none in time.
    #[error("the homeserver cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    /// An answer began, and then nothing more of it came.
    #[error("the homeserver's answer does not go on")]
    Stalled,
    /// The homeserver answered with another status than success.
    #[error("the homeserver answered {status} {errcode}: {message}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// The Matrix error code; `M_UNKNOWN` when the answer has none, as a proxy's.
        errcode: String,
        /// The homeserver's own words.
        message: String,
        /// How long it asks to be left alone; an hour at most.
        retry_after: Option<Duration>,
    },
    /// The named thing is not what it must be.
    #[error("{0} cannot be used")]
    Malformed(&'static str),
    /// The HTTP client cannot be set up, or a request not be made.
    #[error("the HTTP client failed")]
    Client(#[source] reqwest::Error),
}

impl HomeserverError {
    /// Whether the same request can succeed later without anybody's doing.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Stalled => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..),
            Self::Malformed(_) | Self::Client(_) => false,
        }
    }

    /// The Matrix error code, when the homeserver gave an answer.
    #[must_use]
    pub fn errcode(&self) -> Option<&str> {
        match self {
            Self::Status { errcode, .. } => Some(errcode),
            _ => None,
        }
    }

    /// Whether the homeserver does not know our token.
    #[must_use]
    pub fn is_unknown_token(&self) -> bool {
        // The second, when it does not look like a token at all.
        matches!(self.errcode(), Some("M_UNKNOWN_TOKEN" | "M_MISSING_TOKEN"))
    }

    /// Whether the homeserver does not know the device that the request was made for
    /// ([MSC4326](https://github.com/matrix-org/matrix-spec-proposals/pull/4326)). Older ones say so in words only.
    #[must_use]
    pub fn is_unknown_device(&self) -> bool {
        let Self::Status { errcode, message, .. } = self else { return false };
        errcode == "M_UNKNOWN_DEVICE"
            || (errcode == "M_EXCLUSIVE" && message.contains("device that doesn't exist"))
    }

    /// How long the homeserver asks to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub(super) fn unreachable(error: reqwest::Error) -> Self {
        Self::Unreachable(error.without_url())
    }

    /// Reads a refusal, which may come from a proxy that speaks no Matrix.
    pub(super) fn refused(
        status: u16,
        retry_after: Option<Duration>,
        body: &[u8],
        as_token: &SecretString,
    ) -> Self {
        let body: Json = serde_json::from_slice(body).unwrap_or_default();
        let text = |name: &str, otherwise: &str| {
            let text = body.get(name).and_then(Json::as_str).unwrap_or(otherwise);
            // A homeserver that repeats the token it does not know must not put it into our log.
            let text = text.replace(as_token.expose_secret(), "<as_token>");
            text.chars().filter(|character| !character.is_control()).take(MESSAGE_LENGTH).collect::<String>()
        };
        let asked = body.get("retry_after_ms").and_then(Json::as_u64).map(Duration::from_millis);
        Self::Status {
            status,
            errcode: text("errcode", "M_UNKNOWN"),
            message: text("error", "no Matrix error in the answer"),
            retry_after: retry_after.max(asked).map(|wish| wish.min(MOST_RETRY_AFTER)),
        }
    }
}

/// The `Retry-After` header in its form of seconds, the one that Matrix uses
/// ([spec](https://spec.matrix.org/latest/client-server-api/#rate-limiting)).
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
