//! The REST API, `/api/v1`: what coucou holds and does, for whoever has a token.
//!
//! Looking needs a token of the scope `read`, changing something one of the scope `admin`; files have signed
//! addresses instead. Lists are read page by page with an opaque cursor, and no page costs more because there is
//! more: every list runs along an index. A parameter that an endpoint does not have is refused, so that a filter
//! with a typing error does not answer everything. Errors are problem JSON with a `code` that stays.

pub mod access;
mod deliveries;
mod events;
mod keys;
mod media;
mod messages;
mod openapi;
mod query;
mod rooms;
mod rotation;
mod stats;
#[cfg(test)]
mod tests;
mod undecryptable;
mod webhooks;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::Request,
    http::{
        HeaderName, HeaderValue,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
        },
    },
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::{get, post},
};
use rand::Rng;
use ruma::OwnedUserId;
use tokio::sync::Notify;
use url::Url;

use super::{HttpState, error, is_api};
use crate::{
    clock::SharedClock,
    links::{self, Links, Signer},
    media::Media,
    store::{Store, StoreError},
};
use access::Access;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The most bytes of a request's id that are taken over.
const REQUEST_ID_LENGTH: usize = 64;

/// What the REST API answers from.
#[derive(Debug)]
pub struct Api {
    /// Who may ask.
    pub access: Access,
    /// The store.
    pub store: Store,
    /// The time.
    pub clock: SharedClock,
    /// When the process started.
    pub started: Instant,
    /// Names of networks by protocol id, from the settings.
    pub networks: BTreeMap<String, String>,
    /// The owner, of the settings.
    pub owner: Option<OwnedUserId>,
    /// The webhooks of the settings: names, and addresses as they may be shown, made by [`shown_url`].
    pub webhooks: BTreeMap<String, String>,
    /// Wakes the dispatchers.
    pub wake_outbox: Arc<Notify>,
    /// Tells who signs deliveries that a webhook has another secret.
    pub wake_signers: Arc<Notify>,
    /// Files of messages.
    pub media: Media,
    /// What addresses of files begin with, and how long they work; without it files have none.
    pub public: Option<(Url, Duration)>,
}

impl Api {
    /// The network that a caller means: `facebook` is another name of Messenger's, unless the settings use it.
    fn network(&self, name: String) -> String {
        let taken = || self.networks.values().any(|known| *known == name);
        if name == "facebook" && !taken() { "messenger".to_owned() } else { name }
    }

    /// What signs addresses of files.
    fn signer(&self) -> Result<Signer, StoreError> {
        Ok(Signer::new(self.store.seal()?.derive(links::LABEL)))
    }

    /// What makes addresses of files.
    fn links(&self) -> Result<Option<Links>, StoreError> {
        let make = |(base, lifetime): &(Url, Duration)| Ok(Links::new(self.signer()?, base, *lifetime));
        self.public.as_ref().map(make).transpose()
    }
}

/// An address without what may be secret in it: user, password, query and fragment.
#[must_use]
pub fn shown_url(url: &Url) -> String {
    let mut shown = url.clone();
    // Only an address without a host has no user to take away.
    let _ = (shown.set_username(""), shown.set_password(None));
    shown.set_query(None);
    shown.set_fragment(None);
    shown.into()
}

/// The routes that need a token.
pub(super) fn routes(state: &HttpState) -> Router<HttpState> {
    Router::new()
        .route("/api/v1/messages", get(messages::list))
        .route("/api/v1/messages/{network_or_id}", get(messages::of))
        .route("/api/v1/events", get(events::list))
        .route("/api/v1/undecryptable", get(undecryptable::list))
        .route("/api/v1/keys", get(keys::list))
        .route("/api/v1/rooms", get(rooms::list))
        .route("/api/v1/rooms/{room_id}", get(rooms::one))
        .route("/api/v1/deliveries", get(deliveries::list))
        .route("/api/v1/deliveries/{delivery_id}", get(deliveries::one))
        .route("/api/v1/deliveries/{delivery_id}/resend", post(deliveries::resend))
        .route("/api/v1/webhooks", get(webhooks::list))
        .route("/api/v1/webhooks/{name}/resend", post(webhooks::resend))
        .route("/api/v1/webhooks/{name}/test", post(webhooks::test))
        .route("/api/v1/webhooks/{name}/pause", post(webhooks::pause))
        .route("/api/v1/webhooks/{name}/resume", post(webhooks::resume))
        .route("/api/v1/webhooks/{name}/rotate-secret", post(rotation::rotate))
        .route("/api/v1/stats", get(stats::get))
        .route_layer(from_fn_with_state(state.clone(), access::check))
        // A signature stands for a token.
        .route("/api/v1/media/{id}", get(media::file))
        .route("/api/v1/media/{id}/thumbnail", get(media::thumbnail))
        .route("/api/v1/media/{id}/{part}", get(media::part))
        .route("/api/v1/openapi.json", get(openapi::serve))
}

/// Gives every answer of the API its request's id and the headers that keep browsers from doing anything with it,
/// but for those of its own that a file brings.
pub(super) async fn dress(request: Request, next: Next) -> Response {
    if !is_api(request.uri()) {
        return next.run(request).await;
    }
    let id = request_id(&request);
    let mut response = error::with_request_id(next.run(request).await, &id);
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// The id that the caller, or a proxy, gave the request; a fresh one when there is none of a harmless form.
fn request_id(request: &Request) -> String {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    request
        .headers()
        .get(REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .filter(|id| (1..=REQUEST_ID_LENGTH).contains(&id.len()) && id.bytes().all(harmless))
        .map_or_else(|| format!("{:016x}", rand::rng().random::<u64>()), str::to_owned)
}
