//! The homeserver's proof of who it is
//! ([spec](https://spec.matrix.org/latest/application-service-api/#authorization)).

use std::fmt;

use axum::{
    extract::{Request, State},
    http::{StatusCode, header::AUTHORIZATION},
    middleware::Next,
    response::Response,
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use url::form_urlencoded;

use super::{HttpState, error::MatrixError};

const MISSING: MatrixError =
    MatrixError::new(StatusCode::UNAUTHORIZED, "M_MISSING_TOKEN", "the hs_token is missing");
const WRONG: MatrixError =
    MatrixError::new(StatusCode::FORBIDDEN, "M_FORBIDDEN", "the hs_token is not the registration's");

/// The `hs_token`, as a hash: two of them compare in constant time whatever their lengths.
#[derive(Clone)]
pub struct HsToken([u8; 32]);

impl HsToken {
    /// The registration's `hs_token`.
    #[must_use]
    pub fn new(token: &SecretString) -> Self {
        Self(Sha256::digest(token.expose_secret()).into())
    }

    fn matches(&self, offered: &[u8]) -> bool {
        self.0.ct_eq(&<[u8; 32]>::from(Sha256::digest(offered))).into()
    }
}

impl fmt::Debug for HsToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HsToken")
    }
}

/// Lets only the homeserver through, before anything of a body is read.
pub(super) async fn homeserver(
    State(state): State<HttpState>,
    request: Request,
    next: Next,
) -> Result<Response, MatrixError> {
    check(&state.hs_token, &request)?;
    Ok(next.run(request).await)
}

/// The token comes in the header, from old homeservers in the query; where both are there, both must be right.
pub(super) fn check(hs_token: &HsToken, request: &Request) -> Result<(), MatrixError> {
    let header = request.headers().get(AUTHORIZATION).map(|value| bearer(value.as_bytes()));
    let query = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
        .find(|(name, _)| name == "access_token")
        .map(|(_, value)| value);
    let header = match header {
        // Another scheme than Bearer is no token, nor a reason to look past it.
        Some(None) => return Err(WRONG),
        Some(Some(token)) => Some(hs_token.matches(token)),
        None => None,
    };
    let query = query.map(|token| hs_token.matches(token.as_bytes()));
    match (header, query) {
        (None, None) => Err(MISSING),
        (Some(false), _) | (_, Some(false)) => Err(WRONG),
        _ => Ok(()),
    }
}

/// The token of a `Bearer` authorization; the scheme's name has no case.
pub(super) fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(authorization: Option<&str>, query: &str) -> Result<(), MatrixError> {
        let mut request = axum::http::Request::put(format!("http://localhost/transactions/1{query}"));
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        check(&HsToken::new(&"secret".into()), &request.body(axum::body::Body::empty()).unwrap())
    }

    #[test]
    fn the_token_may_come_in_header_or_query_and_must_be_right_in_both() {
        for (authorization, query) in [
            (Some("Bearer secret"), ""),
            (Some("bearer  secret "), ""),
            (None, "?access_token=secret"),
            (None, "?x=1&access_token=%73ecret"),
            (Some("Bearer secret"), "?access_token=secret"),
        ] {
            assert_eq!(verdict(authorization, query), Ok(()), "{authorization:?} {query}");
        }
        for (authorization, query) in [
            (Some("Bearer secre"), ""),
            (Some("Bearer secret2"), ""),
            (Some("Bearer"), ""),
            (Some("Bearer "), ""),
            (Some("Basic secret"), "?access_token=secret"),
            (None, "?access_token="),
            (Some("Bearer secret"), "?access_token=other"),
            (Some("Bearer other"), "?access_token=secret"),
        ] {
            assert_eq!(verdict(authorization, query), Err(WRONG), "{authorization:?} {query}");
        }
        assert_eq!(verdict(None, ""), Err(MISSING));
        assert_eq!(verdict(None, "?token=secret"), Err(MISSING));
    }

    #[test]
    fn the_token_is_not_shown() {
        assert_eq!(format!("{:?}", HsToken::new(&"secret".into())), "HsToken");
    }
}
