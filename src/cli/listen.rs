//! `coucou listen`: a receiver for development. It checks signatures as a real one must, prints each delivery,
//! and forgets everything when it ends.

mod print;
mod receive;

use std::{
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, anyhow};
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Method, StatusCode},
};
use tokio::net::TcpListener;

use crate::{
    clock::{Clock, SystemClock},
    config::Environment,
};
use print::Style;
use receive::Receiver;

/// Larger than any delivery: an event has 64 KiB at most.
const BODY_LIMIT: usize = 32 * 1024 * 1024;

/// Arguments of `coucou listen`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// TCP port; 0 takes any free one.
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// IP address.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// The webhook's secret, `whsec_…` [default: `COUCOU_WEBHOOK_SECRET`]. Other users of this machine can see
    /// arguments, but not the environment. Without one, signatures are not checked.
    #[arg(long)]
    secret: Option<String>,
    /// Print one line of JSON for each delivery: `received_at`, verified, repeat, `webhook_id`, body.
    #[arg(long)]
    json: bool,
}

/// What the handler needs.
struct Listener {
    receiver: Mutex<Receiver>,
    style: Style,
}

/// Receives until Ctrl-C.
pub(super) async fn run(args: Args, environment: Environment) -> Result<()> {
    let secret = args.secret.as_deref().or_else(|| environment.get("COUCOU_WEBHOOK_SECRET"));
    let receiver = Receiver::new(secret).map_err(|()| {
        anyhow!(
            "the secret must be whsec_ and base64 (--secret, or COUCOU_WEBHOOK_SECRET), as `coucou webhooks \
                 --show-secrets` prints it"
        )
    })?;
    let style = if args.json { Style::Json } else { Style::Text };
    let address = SocketAddr::new(args.host, args.port);
    let socket = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let checked = if secret.is_some() { "" } else { "not " };
    // Not on stdout, which belongs to the deliveries.
    writeln!(
        io::stderr(),
        "listening on http://{}, signatures are {checked}checked; Ctrl-C ends it",
        socket.local_addr()?
    )?;
    let listener = Arc::new(Listener { receiver: Mutex::new(receiver), style });
    let router = Router::new().fallback(handle).layer(DefaultBodyLimit::max(BODY_LIMIT)).with_state(listener);
    axum::serve(socket, router)
        .with_graceful_shutdown(async {
            // Without signals there is only killing, which is as good.
            let _ = crate::lifecycle::signalled().await;
        })
        .await
        .context("receiving failed")
}

/// Takes a POST on any path.
async fn handle(
    State(listener): State<Arc<Listener>>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, &'static str) {
    if method != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, "deliveries are posted\n");
    }
    // A poisoned lock is one whose holder panicked; what it guards is good enough to go on.
    let mut receiver = listener.receiver.lock().unwrap_or_else(PoisonError::into_inner);
    let delivery = receiver.receive(&headers, &body, SystemClock.now());
    let (status, text) = delivery.answer();
    let printed = print::delivery(&mut io::stdout().lock(), listener.style, &delivery);
    drop(receiver);
    if printed.is_err() {
        // Nobody reads any more: the sender shall keep it.
        return (StatusCode::INTERNAL_SERVER_ERROR, "printing failed\n");
    }
    (status, text)
}
