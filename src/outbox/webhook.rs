//! The destination that is called over HTTP: signing, sending, and what an answer means.
//!
//! Follows Standard Webhooks: a 2xx is a success, anything else is not, redirects included.

use std::{borrow::Cow, fmt, time::Duration};

use async_trait::async_trait;
use http::{
    HeaderName, HeaderValue, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use standardwebhooks::{HEADER_WEBHOOK_ID, HEADER_WEBHOOK_SIGNATURE, HEADER_WEBHOOK_TIMESTAMP};
use url::Url;

use super::{
    Body, Outcome, SendError, Signers, Sink, WebhookRequest,
    caller::{Answer, Caller, Client},
    retry, shape,
};
use crate::{
    clock::Timestamp,
    links::Links,
    model::{Detail, Format},
};

/// Standard Webhooks advises 15 to 30 seconds.
const TIMEOUT: Duration = Duration::from_secs(15);

const WEBHOOK_ID: HeaderName = HeaderName::from_static(HEADER_WEBHOOK_ID);
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static(HEADER_WEBHOOK_TIMESTAMP);
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static(HEADER_WEBHOOK_SIGNATURE);

/// A webhook that cannot be used as it is set.
#[derive(Debug, thiserror::Error)]
pub enum BadWebhook {
    /// A secret has the wrong form.
    #[error(
        "webhook {name:?}: the secret must be `whsec_` and the base64 of 16 to 64 bytes (make one with \
         `echo whsec_$(openssl rand -base64 32)`), or be left out, and coucou makes one"
    )]
    Secret {
        /// The webhook.
        name: String,
    },
    /// The address has the wrong form.
    #[error("webhook {name:?}: the URL must be http:// or https:// and a host")]
    Url {
        /// The webhook.
        name: String,
    },
    /// TLS could not be set up.
    #[error("the HTTP client could not be set up")]
    Client(#[source] rustls::Error),
}

/// The HTTP client for webhooks: one for all of them.
///
/// # Errors
/// [`BadWebhook::Client`] when TLS cannot be set up.
pub fn client() -> Result<Client, BadWebhook> {
    Client::new().map_err(BadWebhook::Client)
}

/// A destination that is called over HTTP, as [Standard Webhooks](https://www.standardwebhooks.com) has it.
pub struct WebhookSink {
    caller: Caller,
    /// For logs: the rest of the URL may hold a token.
    host: String,
    signers: Signers,
    timeout: Duration,
    detail: Detail,
    format: Format,
    links: Option<Links>,
}

impl fmt::Debug for WebhookSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookSink").field("host", &self.host).finish_non_exhaustive()
    }
}

impl WebhookSink {
    /// A destination at `url` that signs with each of `signers`: more than one while they are rotated.
    ///
    /// # Errors
    /// When the URL has the wrong form; the error names the webhook.
    pub fn new(client: Client, name: &str, url: &Url, signers: Signers) -> Result<Self, BadWebhook> {
        let bad = || BadWebhook::Url { name: name.to_owned() };
        let is_http = matches!(url.scheme(), "http" | "https");
        let host = url.host_str().filter(|host| is_http && !host.is_empty()).ok_or_else(bad)?;
        Ok(Self {
            caller: Caller::new(client, url).ok_or_else(bad)?,
            host: host.to_owned(),
            signers,
            timeout: TIMEOUT,
            detail: Detail::default(),
            format: Format::default(),
            links: None,
        })
    }

    /// The same, sending these headers along.
    #[must_use]
    pub fn headers(mut self, headers: &[(HeaderName, HeaderValue)]) -> Self {
        self.caller = self.caller.with(headers.iter().cloned().collect());
        self
    }

    /// The same, waiting so long for an answer.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The same, telling so much in such a form.
    #[must_use]
    pub fn telling(mut self, detail: Detail, format: Format) -> Self {
        (self.detail, self.format) = (detail, format);
        self
    }

    /// The same, with addresses for the files of messages.
    #[must_use]
    pub fn linking(mut self, links: Option<Links>) -> Self {
        self.links = links;
        self
    }

    /// The payload as this webhook gets it now: its files with addresses that work for the whole of their time.
    fn located<'a>(&self, payload: &'a [u8], now: Timestamp) -> Cow<'a, [u8]> {
        match &self.links {
            Some(links) if self.detail == Detail::Full => links.refresh(payload, now),
            _ => Cow::Borrowed(payload),
        }
    }
}

#[async_trait]
impl Sink for WebhookSink {
    async fn deliver(&self, request: WebhookRequest<'_>) -> Outcome {
        let timestamp = request.timestamp.0.div_euclid(1000);
        let unsendable = Outcome::Retry { after: None, why: SendError::Unsendable };
        let body = match request.body {
            Body::One(payload) => {
                let payload = self.located(payload, request.timestamp);
                shape::body(&payload, self.detail, self.format).map(Cow::into_owned)
            }
            Body::Batch(payloads) => {
                let payloads: Vec<_> =
                    payloads.iter().map(|payload| self.located(payload, request.timestamp)).collect();
                shape::batch(request.id, &payloads, self.detail, self.format)
            }
        };
        let Some(body) = body else { return unsendable };
        // A dot would make what is signed ambiguous.
        let signature = self.signers.sign(request.id, timestamp, &body);
        let Some(signature) = signature.filter(|_| !request.id.contains('.')) else { return unsendable };
        let (Ok(id), Ok(signature)) = (HeaderValue::from_str(request.id), HeaderValue::try_from(signature))
        else {
            return unsendable;
        };
        let content_type = shape::content_type(self.format, matches!(request.body, Body::Batch(_)));
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static(content_type)),
            (WEBHOOK_ID, id),
            (WEBHOOK_TIMESTAMP, HeaderValue::from(timestamp)),
            (WEBHOOK_SIGNATURE, signature),
        ];
        match self.caller.post(headers, body.into(), self.timeout).await {
            Ok(answer) => judge(&answer, request.timestamp),
            Err(why) => Outcome::Retry { after: None, why },
        }
    }
}

fn judge(answer: &Answer, now: Timestamp) -> Outcome {
    let status = answer.status;
    if status.is_success() {
        return Outcome::Delivered { status: Some(status.as_u16()) };
    }
    let after = answer.headers.get(RETRY_AFTER);
    let after = after.and_then(|header| retry::retry_after(header.to_str().ok()?, now));
    let why = match status {
        StatusCode::GONE => SendError::Gone,
        _ if status.is_redirection() => SendError::Redirect(status.as_u16()),
        _ => SendError::Status(status.as_u16()),
    };
    Outcome::Retry { after, why }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        net::SocketAddr,
        sync::{Arc, Mutex},
    };

    use assert_matches::assert_matches;
    use axum::{
        Router,
        extract::State,
        http::{HeaderMap, Method, Uri},
        response::IntoResponse,
    };
    use base64::Engine;
    use secrecy::SecretString;
    use standardwebhooks::Webhook;
    use tokio::net::TcpListener;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::{
        clock::{Clock, SystemClock},
        store::webhooks::secrets::Signing,
    };

    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const OTHER: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

    type Calls = Arc<Mutex<Vec<(Method, Uri, HeaderMap, String)>>>;

    fn spawn<F>(future: F) -> AbortOnDropHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        AbortOnDropHandle::new(tokio_util::task::TaskTracker::new().spawn(future))
    }

    /// A receiver that keeps what it gets and answers by path: `/204`, `/302`, `/hang`, ….
    async fn receiver() -> (SocketAddr, Calls, AbortOnDropHandle<io::Result<()>>) {
        async fn receive(
            State(calls): State<Calls>,
            method: Method,
            uri: Uri,
            headers: HeaderMap,
            body: String,
        ) -> axum::response::Response {
            let path = uri.path().trim_start_matches('/').to_owned();
            calls.lock().unwrap().push((method, uri, headers, body));
            match path.as_str() {
                "hang" => std::future::pending().await,
                "large" => vec![b'x'; 10_000_000].into_response(),
                "slow-answer" => {
                    let never = futures_util::stream::pending::<io::Result<Vec<u8>>>();
                    axum::body::Body::from_stream(never).into_response()
                }
                "429" => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "120")]).into_response(),
                "302" => (StatusCode::FOUND, [("location", "/200")]).into_response(),
                status => StatusCode::from_u16(status.parse().unwrap()).unwrap().into_response(),
            }
        }
        let calls = Calls::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(receive).with_state(Arc::clone(&calls));
        let server = spawn(async move { axum::serve(listener, router).await });
        (address, calls, server)
    }

    fn signers(secrets: &[&str]) -> Result<Signers, BadWebhook> {
        let secrets: Vec<Signing> = secrets.iter().map(|secret| SecretString::from(*secret).into()).collect();
        Signers::new("main", &secrets)
    }

    fn sink(address: SocketAddr, path: &str, secrets: &[&str]) -> WebhookSink {
        let url = Url::parse(&format!("http://{address}/{path}?token=hidden")).unwrap();
        let signers = signers(secrets).unwrap();
        WebhookSink::new(client().unwrap(), "main", &url, signers)
            .unwrap()
            .timeout(Duration::from_millis(500))
    }

    async fn deliver(sink: &WebhookSink) -> Outcome {
        let request = WebhookRequest {
            id: "msg_1",
            timestamp: SystemClock.now(),
            body: Body::One("{\"text\":\"hé\"}".as_bytes()),
        };
        sink.deliver(request).await
    }

    #[tokio::test]
    async fn a_call_is_signed_with_every_secret() {
        let (address, calls, _server) = receiver().await;
        let url = Url::parse(&format!("http://{address}/204?token=hidden")).unwrap();
        let signers = signers(&[SECRET, OTHER]).unwrap();
        let sink = WebhookSink::new(client().unwrap(), "main", &url, signers).unwrap();
        assert_matches!(deliver(&sink).await, Outcome::Delivered { status: Some(204) });
        assert_matches!(deliver(&sink).await, Outcome::Delivered { .. });
        let calls = calls.lock().unwrap();
        let (method, uri, headers, body) = &calls[0];
        assert_eq!((method, uri.to_string().as_str()), (&Method::POST, "/204?token=hidden"));
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(headers["user-agent"], concat!("coucou/", env!("CARGO_PKG_VERSION")));
        assert_eq!(headers["webhook-id"], "msg_1");
        for secret in [SECRET, OTHER] {
            Webhook::new(secret).unwrap().verify(body.as_bytes(), headers).unwrap();
        }
        let wrong = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        assert!(Webhook::new(wrong).unwrap().verify(body.as_bytes(), headers).is_err());
    }

    /// The vectors that the libraries of [Standard Webhooks](https://github.com/standard-webhooks/standard-webhooks)
    /// test themselves with.
    #[test]
    fn the_published_vectors_are_signed_as_published() {
        let published = [
            (
                "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                r#"{"test": 2432232314}"#,
                "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            ),
            (
                "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
                "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
                1_649_367_553,
                r#"{"email":"test@example.com","username":"test_user"}"#,
                "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
            ),
        ];
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        for (secret, id, timestamp, body, signature) in published {
            for secret in [secret, secret.trim_start_matches("whsec_")] {
                let sink = sink(address, "", &[secret]);
                assert_eq!(sink.signers.sign(id, timestamp, body.as_bytes()).as_deref(), Some(signature));
                for (id, timestamp, body) in
                    [("msg_other", timestamp, body), (id, timestamp + 1, body), (id, timestamp, "{}")]
                {
                    assert_ne!(sink.signers.sign(id, timestamp, body.as_bytes()).as_deref(), Some(signature));
                }
            }
        }
        let both = sink(address, "", &[published[0].0, published[1].0]);
        let (_, id, timestamp, body, signature) = published[1];
        let signed = both.signers.sign(id, timestamp, body.as_bytes()).unwrap();
        assert_eq!(signed.split(' ').nth(1), Some(signature), "each secret signs, in their order");
    }

    #[tokio::test]
    async fn only_a_2xx_is_a_success() {
        let (address, calls, _server) = receiver().await;
        let outcome = async |path: &str| deliver(&sink(address, path, &[SECRET])).await;
        assert_matches!(outcome("200").await, Outcome::Delivered { status: Some(200) });
        assert_matches!(outcome("large").await, Outcome::Delivered { status: Some(200) });
        assert_matches!(outcome("slow-answer").await, Outcome::Delivered { status: Some(200) });
        for status in [400, 404, 500, 503] {
            let why = assert_matches!(
                outcome(&status.to_string()).await, Outcome::Retry { after: None, why } => why
            );
            assert_matches!(&why, SendError::Status(answered) if *answered == status);
            assert_eq!(why.status(), Some(status));
        }
        assert_matches!(outcome("410").await, Outcome::Retry { why: SendError::Gone, .. });
        assert_matches!(
            outcome("429").await,
            Outcome::Retry { after: Some(after), why: SendError::Status(429) } if after.as_secs() == 120
        );
        let before = calls.lock().unwrap().len();
        assert_matches!(outcome("302").await, Outcome::Retry { why: SendError::Redirect(302), .. });
        assert_eq!(calls.lock().unwrap().len(), before + 1, "the redirect was followed");
        assert_matches!(outcome("hang").await, Outcome::Retry { why: SendError::Timeout, .. });
    }

    #[tokio::test]
    async fn a_failed_call_tells_nothing_of_the_url() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = spawn(async move {
            // Reads something, so that the request is on its way, and resets the connection.
            let (stream, _) = listener.accept().await.unwrap();
            stream.readable().await.unwrap();
            drop(listener);
        });
        let sink = sink(address, "200", &[SECRET]);
        let broken = assert_matches!(deliver(&sink).await, Outcome::Retry { why, .. } => why);
        assert_matches!(broken, SendError::Broken(_));
        server.await.unwrap();
        let refused = assert_matches!(deliver(&sink).await, Outcome::Retry { why, .. } => why);
        assert_matches!(refused, SendError::Connect(_));
        for shown in [format!("{broken:?} {broken}"), format!("{refused:?} {refused}"), format!("{sink:?}")] {
            assert!(!shown.contains("hidden"), "{shown}");
        }
    }

    #[tokio::test]
    async fn an_id_with_a_dot_is_not_sent() {
        let (address, calls, _server) = receiver().await;
        let request = WebhookRequest { id: "msg.1", timestamp: SystemClock.now(), body: Body::One(b"{}") };
        let outcome = sink(address, "200", &[SECRET]).deliver(request).await;
        assert_matches!(outcome, Outcome::Retry { why: SendError::Unsendable, .. });
        assert!(calls.lock().unwrap().is_empty());
    }

    #[test]
    fn a_secret_is_base64_of_16_to_64_bytes() {
        let of = |bytes: usize| base64::prelude::BASE64_STANDARD.encode(vec![7; bytes]);
        let good = [SECRET.to_owned(), of(16), format!("whsec_{}", of(64)), format!("{SECRET}\n")];
        for secret in good {
            assert!(signers(&[secret.as_str()]).is_ok(), "{secret}");
        }
        let bad = ["", "whsec_", "my secret", "whsec_not base64!", &of(15), &of(65), "WHSEC_AAAA"];
        for secret in bad {
            let error = signers(&[SECRET, secret]).unwrap_err();
            assert!(error.to_string().contains("\"main\""), "{error}");
            assert!(
                secret.is_empty()
                    || !error.to_string().replace("`whsec_`", "").contains(secret)
                    || secret == "whsec_"
            );
        }
        let url = Url::parse("ftp://127.0.0.1").unwrap();
        assert_matches!(
            WebhookSink::new(client().unwrap(), "main", &url, signers(&[SECRET]).unwrap()),
            Err(BadWebhook::Url { .. })
        );
        assert_matches!(signers(&[]), Err(BadWebhook::Secret { .. }));
    }
}
