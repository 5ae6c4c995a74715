//! Who may use the REST API, and how much.
//!
//! Tokens are compared as hashes, each with every one of ours, so that the time tells nothing. A token has a
//! budget of requests; an address has one of wrong tokens, which right ones never touch: whoever is behind the
//! same proxy as somebody who guesses is not locked out.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    time::Duration,
};

use axum::{
    Extension,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, Method, header::AUTHORIZATION},
    middleware::Next,
    response::Response,
};
use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::HashMapStateStore,
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::super::{HttpState, auth::bearer, connections::Peer, error::Problem};
use crate::model::Scope;

/// Requests of one token: at once, and a second.
const BURST: NonZeroU32 = NonZeroU32::new(200).unwrap();
const PER_SECOND: NonZeroU32 = NonZeroU32::new(50).unwrap();

/// Wrong tokens of one address: at once, and how long until one more is forgiven.
const WRONG_BURST: NonZeroU32 = NonZeroU32::new(20).unwrap();
const FORGIVEN: Duration = Duration::from_secs(3);

/// Addresses that are remembered before those that have been forgiven are dropped.
const MOST_ADDRESSES: usize = 10_000;

type Limiter<K> = RateLimiter<K, HashMapStateStore<K>, DefaultClock>;

/// The tokens that are let in.
pub struct Access {
    tokens: Vec<([u8; 32], Scope)>,
    /// By the token's place.
    requests: Limiter<usize>,
    wrong: Limiter<IpAddr>,
}

impl Access {
    /// Lets these tokens in; without any, nobody.
    #[must_use]
    pub fn new(tokens: impl IntoIterator<Item = (SecretString, Scope)>) -> Self {
        let hashed =
            |(token, scope): (SecretString, Scope)| (Sha256::digest(token.expose_secret()).into(), scope);
        let forgiven = Quota::with_period(FORGIVEN).unwrap_or(Quota::per_second(NonZeroU32::MIN));
        Self {
            tokens: tokens.into_iter().map(hashed).collect(),
            requests: RateLimiter::hashmap(Quota::per_second(PER_SECOND).allow_burst(BURST)),
            wrong: RateLimiter::hashmap(forgiven.allow_burst(WRONG_BURST)),
        }
    }

    /// What the caller may do.
    pub(in crate::http) fn scope(&self, headers: &HeaderMap, peer: Option<IpAddr>) -> Result<Scope, Problem> {
        if self.tokens.is_empty() {
            return Err(Problem::api_disabled());
        }
        let header = headers.get(AUTHORIZATION).ok_or_else(Problem::token_missing)?;
        let offered = Sha256::digest(bearer(header.as_bytes()).unwrap_or_default());
        let mut found = None;
        for (place, (token, scope)) in self.tokens.iter().enumerate() {
            if bool::from(token.ct_eq(&<[u8; 32]>::from(offered))) {
                found = Some((place, *scope));
            }
        }
        let Some((place, scope)) = found else {
            return Err(self.refuse(peer));
        };
        self.requests.check_key(&place).map_err(|not_until| Self::wait(&not_until))?;
        Ok(scope)
    }

    fn refuse(&self, peer: Option<IpAddr>) -> Problem {
        let Some(peer) = peer else { return Problem::token_wrong() };
        if self.wrong.len() > MOST_ADDRESSES {
            self.wrong.retain_recent();
        }
        match self.wrong.check_key(&network(peer)) {
            Ok(()) => Problem::token_wrong(),
            Err(not_until) => Self::wait(&not_until),
        }
    }

    fn wait(not_until: &governor::NotUntil<<DefaultClock as governor::clock::Clock>::Instant>) -> Problem {
        Problem::too_many_requests(not_until.wait_time_from(DefaultClock::default().now()))
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("tokens", &self.tokens.len()).finish_non_exhaustive()
    }
}

/// What counts as one address: of IPv6 the network, as anybody has a whole one.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::from(u64::MAX) << 64)))
        }
        IpAddr::V4(_) => address,
    }
}

/// Lets only those through who may do what they ask, before anything of a body is read.
pub(in crate::http) async fn check(
    State(state): State<HttpState>,
    peer: Option<Extension<ConnectInfo<Peer>>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let peer = peer.map(|Extension(ConnectInfo(Peer(address)))| address);
    let scope = state.api.access.scope(request.headers(), peer)?;
    let looks = matches!(*request.method(), Method::GET | Method::HEAD);
    if !looks && scope != Scope::Admin {
        return Err(Problem::scope_insufficient());
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        headers
    }

    fn access() -> Access {
        Access::new([("one".into(), Scope::Admin), ("two".into(), Scope::Read)])
    }

    #[test]
    fn each_token_has_its_scope_and_nothing_else_has_one() {
        let access = access();
        assert_eq!(access.scope(&headers("Bearer one"), None), Ok(Scope::Admin));
        assert_eq!(access.scope(&headers("bearer two"), None), Ok(Scope::Read));
        for wrong in ["Bearer three", "Bearer", "Bearer ", "one", "Basic one", "Bearer onetwo"] {
            assert_eq!(access.scope(&headers(wrong), None), Err(Problem::token_wrong()), "{wrong}");
        }
        assert_eq!(access.scope(&HeaderMap::new(), None), Err(Problem::token_missing()));
        assert_eq!(Access::new([]).scope(&headers("Bearer "), None), Err(Problem::api_disabled()));
        assert_eq!(format!("{access:?}"), "Access { tokens: 2, .. }");
    }

    #[test]
    fn an_address_that_guesses_is_slowed_down_and_its_neighbours_with_a_token_are_not() {
        let access = access();
        let guess = |address: &str| access.scope(&headers("Bearer guess"), Some(address.parse().unwrap()));
        for _ in 0..WRONG_BURST.get() {
            assert_eq!(guess("2001:db8::1"), Err(Problem::token_wrong()));
        }
        assert_ne!(guess("2001:db8::2"), Err(Problem::token_wrong()), "the same network");
        assert_eq!(guess("2001:db8:0:1::1"), Err(Problem::token_wrong()), "another network");
        let right = access.scope(&headers("Bearer one"), Some("2001:db8::1".parse().unwrap()));
        assert_eq!(right, Ok(Scope::Admin));
    }

    #[test]
    fn a_token_has_a_budget_of_its_own() {
        let access = access();
        let ask = |token: &str| access.scope(&headers(&format!("Bearer {token}")), None);
        // More than a burst, and what comes back while this runs.
        let refused = (0..BURST.get() * 20).any(|_| ask("one").is_err());
        assert!(refused);
        assert_eq!(ask("two"), Ok(Scope::Read));
    }
}
