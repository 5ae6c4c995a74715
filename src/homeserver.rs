//! The homeserver's [client-server API][spec], spoken as an application service.
//!
//! Every request bears the `as_token` and, in its query, the [`Identity`] it is made for. One client keeps
//! its connections alive; nothing is retried here, because only the caller knows whether a request may be
//! made again. Answers are bounded in size and in time, and are not trusted to be well-formed.
//!
//! The process must have installed a rustls crypto provider before the first [`Homeserver::new`].
//!
//! [spec]: https://spec.matrix.org/latest/application-service-api/#client-server-api-extensions

mod account_data;
mod accounts;
mod backup;
mod error;
mod glance;
mod history;
mod media;
mod rooms;
mod standing;
mod sync;
#[cfg(test)]
mod tests;
mod timelines;

use std::{borrow::Cow, sync::Arc, time::Duration};

use reqwest::{
    Client, Method, Request, Response,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
    redirect::Policy,
};
use ruma::{
    OwnedDeviceId, OwnedUserId, UserId,
    api::{
        AppserviceUserIdentity, IncomingResponse, MatrixVersion, OutgoingRequest,
        OutgoingRequestAppserviceExt, SupportedVersions,
        auth_scheme::{AuthScheme, SendAccessToken},
        path_builder::PathBuilder,
    },
};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use url::Url;

use self::standing::Standing;
pub use backup::{BackupVersion, RoomKeys};
pub use error::HomeserverError;
pub use glance::{Greeting, PublishedDevice, PublishedKeys};
pub use history::{Direction, Entry, Page};
pub use media::Download;
pub use rooms::Invite;
pub use timelines::{Timeline, Timelines};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a request may take, its answer included.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);

/// What a long poll may take beyond the time that the homeserver was asked to hold it.
const POLL_MARGIN: Duration = Duration::from_secs(30);

/// The most bytes of an ordinary answer.
const SMALL_ANSWER: usize = 4 << 20;

/// The most bytes of a room's state or a page of `/sync`.
const LARGE_ANSWER: usize = 64 << 20;

/// Whom a request is made for ([identity assertion][spec]).
///
/// A device is never asserted without its user: homeservers take the two together only.
///
/// [spec]: https://spec.matrix.org/latest/application-service-api/#identity-assertion
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device, where the request is about one.
    pub device_id: Option<OwnedDeviceId>,
}

impl Identity {
    /// The user, without a device.
    #[must_use]
    pub fn user(user_id: &UserId) -> Self {
        Self { user_id: user_id.to_owned(), device_id: None }
    }

    /// The query parameters that assert it.
    fn query(&self) -> Vec<(&'static str, &str)> {
        let device_id = self.device_id.as_ref().map(|device_id| ("device_id", device_id.as_str()));
        [("user_id", self.user_id.as_str())].into_iter().chain(device_id).collect()
    }
}

/// The homeserver; clones share its connections.
#[derive(Clone, Debug)]
pub struct Homeserver {
    client: Client,
    url: Url,
    as_token: SecretString,
    authorization: HeaderValue,
    versions: Arc<SupportedVersions>,
    standing: Standing,
}

/// A request of our own making.
struct Call<'a> {
    method: Method,
    /// The segments of the path, not yet escaped.
    path: &'a [&'a str],
    query: Vec<(&'static str, &'a str)>,
    body: Option<Json>,
    timeout: Duration,
    limit: usize,
}

impl<'a> Call<'a> {
    fn new(method: Method, path: &'a [&'a str]) -> Self {
        let (timeout, limit) = (REQUEST_TIMEOUT, SMALL_ANSWER);
        Self { method, path, query: Vec::new(), body: None, timeout, limit }
    }

    fn get(path: &'a [&'a str]) -> Self {
        Self::new(Method::GET, path)
    }

    fn post(path: &'a [&'a str], body: Json) -> Self {
        Self { body: Some(body), ..Self::new(Method::POST, path) }
    }

    fn with_identity(mut self, identity: &'a Identity) -> Self {
        self.query.extend(identity.query());
        self
    }
}

impl Homeserver {
    /// Prepares to speak with the homeserver at `url`; connects when first used.
    ///
    /// # Errors
    /// When `url` cannot be a base, the token cannot stand in a header, or TLS cannot be set up.
    pub fn new(url: &Url, as_token: SecretString) -> Result<Self, HomeserverError> {
        if !matches!(url.scheme(), "http" | "https") || url.cannot_be_a_base() {
            return Err(HomeserverError::Malformed("the homeserver's URL"));
        }
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", as_token.expose_secret()))
            .map_err(|_| HomeserverError::Malformed("the as_token"))?;
        authorization.set_sensitive(true);
        let client = Client::builder()
            .user_agent(concat!("coucou/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .tcp_keepalive(Duration::from_secs(30))
            // A redirect would carry the token elsewhere.
            .redirect(Policy::none())
            .build()
            .map_err(HomeserverError::Client)?;
        let mut url = url.clone();
        url.set_query(None);
        url.set_fragment(None);
        // Every endpoint used has been stable since v1.1, and homeservers that speak less are no longer met.
        let versions = [MatrixVersion::V1_1, MatrixVersion::V1_11].into();
        let versions = Arc::new(SupportedVersions { versions, features: [].into() });
        let standing = Standing::default();
        Ok(Self { client, url, as_token, authorization, versions, standing })
    }

    /// Makes a request of ruma's for `identity`.
    ///
    /// # Errors
    /// When the homeserver cannot be reached, refuses, or answers what cannot be read.
    pub async fn send<R>(
        &self,
        identity: &Identity,
        request: R,
    ) -> Result<R::IncomingResponse, HomeserverError>
    where
        R: OutgoingRequest,
        for<'a> R::Authentication: AuthScheme<Input<'a> = SendAccessToken<'a>>,
        for<'a> R::PathBuilder: PathBuilder<Input<'a> = Cow<'a, SupportedVersions>>,
    {
        let mut user = AppserviceUserIdentity::new(&identity.user_id);
        user.device_id = identity.device_id.as_deref();
        let request: http::Request<Vec<u8>> = request
            .try_into_http_request_with_identity(
                self.url.as_str(),
                SendAccessToken::Appservice(self.as_token.expose_secret()),
                user,
                Cow::Borrowed(&*self.versions),
            )
            .map_err(|_| HomeserverError::Malformed("a request of our own"))?;
        let mut request =
            Request::try_from(request).map_err(|error| HomeserverError::Client(error.without_url()))?;
        request.headers_mut().insert(AUTHORIZATION, self.authorization.clone());
        let answer = self.exchange(request, SMALL_ANSWER).await?;
        R::IncomingResponse::try_from_http_response(http::Response::new(answer))
            .map_err(|_| HomeserverError::Malformed("the homeserver's answer"))
    }

    /// Makes a request and reads its answer as JSON.
    async fn call<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, HomeserverError> {
        let limit = call.limit;
        let answer = self.exchange(self.request(call)?, limit).await?;
        serde_json::from_slice(&answer).map_err(|_| HomeserverError::Malformed("the homeserver's answer"))
    }

    fn request(&self, call: Call<'_>) -> Result<Request, HomeserverError> {
        let mut url = self.url.clone();
        url.path_segments_mut()
            .map_err(|()| HomeserverError::Malformed("the homeserver's URL"))?
            .pop_if_empty()
            .extend(call.path);
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(call.query);
        }
        let mut request = Request::new(call.method, url);
        request.headers_mut().insert(AUTHORIZATION, self.authorization.clone());
        if let Some(body) = call.body {
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(body.to_string().into());
        }
        *request.timeout_mut() = Some(call.timeout);
        Ok(request)
    }

    /// Sends a request and reads its answer, up to `limit` bytes of it.
    async fn exchange(&self, request: Request, limit: usize) -> Result<Vec<u8>, HomeserverError> {
        let answer = self.try_exchange(request, limit).await;
        self.standing.note(&answer);
        answer
    }

    async fn try_exchange(&self, request: Request, limit: usize) -> Result<Vec<u8>, HomeserverError> {
        let response = self.client.execute(request).await.map_err(HomeserverError::unreachable)?;
        let status = response.status();
        if status.is_success() {
            return read(response, limit).await;
        }
        let retry_after = error::retry_after(response.headers());
        // What cannot be read of a refusal does not make it less of one.
        let body = read(response, SMALL_ANSWER).await.unwrap_or_default();
        Err(HomeserverError::refused(status.as_u16(), retry_after, &body, &self.as_token))
    }
}

/// Reads a body, up to `limit` bytes of it.
async fn read(mut response: Response, limit: usize) -> Result<Vec<u8>, HomeserverError> {
    const TOO_LARGE: HomeserverError = HomeserverError::Malformed("the homeserver's answer: it is too large");
    let announced = usize::try_from(response.content_length().unwrap_or(0)).unwrap_or(usize::MAX);
    if announced > limit {
        return Err(TOO_LARGE);
    }
    let mut body = Vec::with_capacity(announced);
    while let Some(chunk) = response.chunk().await.map_err(HomeserverError::unreachable)? {
        if body.len() + chunk.len() > limit {
            return Err(TOO_LARGE);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
