//! The address on which coucou listens: coucou is there, somebody else is, or nobody.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use reqwest::{Client, StatusCode, redirect::Policy};
use secrecy::ExposeSecret;
use serde_json::Value as Json;
use tokio::{
    net::TcpListener,
    sync::mpsc::{self, UnboundedReceiver},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Report, Scene, said};
use crate::http::{
    self,
    stand_in::{self, Heard, HsToken},
};

/// How long whoever listens may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who answers at coucou's address.
pub(super) enum Door {
    /// coucou.
    Serves,
    /// This process, for as long as the check takes.
    StandIn(StandIn),
    /// Somebody else, or nobody.
    Closed,
}

/// Answers in coucou's place.
pub(super) struct StandIn {
    heard: UnboundedReceiver<Heard>,
    stop: CancellationToken,
    tasks: JoinSet<std::io::Result<()>>,
}

impl StandIn {
    /// The next thing that the homeserver does, if it does one in time.
    pub(super) async fn hear(&mut self, patience: Duration) -> Option<Heard> {
        timeout(patience, self.heard.recv()).await.ok().flatten()
    }
}

impl Door {
    /// Ends the standing in.
    pub(super) async fn close(self) {
        if let Self::StandIn(StandIn { stop, mut tasks, .. }) = self {
            stop.cancel();
            let _ = timeout(PATIENCE, tasks.join_next()).await;
        }
    }
}

/// Finds out who is there, and stands in when nobody is.
pub(super) async fn knock(scene: &Scene<'_>, report: &mut Report) -> Door {
    let address = SocketAddr::new(scene.config.http.host, scene.config.http.port);
    if address.port() == 0 {
        let remedy = "set http.port (COUCOU_HTTP_PORT) to one that the homeserver knows";
        report.warn(
            "http",
            "http.port is 0, any free port: whether coucou listens cannot be found out",
            remedy,
        );
        return Door::Closed;
    }
    match TcpListener::bind(address).await {
        Ok(listener) => {
            let also = if scene.is_led { "; another process works on the store" } else { "" };
            let says = format!("coucou does not run on {address}{also}: this check answers there meanwhile");
            report.warn("http", says, "start `coucou serve`");
            Door::StandIn(stand_in(scene, listener))
        }
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => visit(scene, address, report).await,
        Err(error) => {
            let remedy = "correct http.host and http.port (COUCOU_HTTP_HOST, COUCOU_HTTP_PORT)";
            report.fail("http", format!("cannot listen on {address}: {}", said(&error)), remedy);
            Door::Closed
        }
    }
}

fn stand_in(scene: &Scene<'_>, listener: TcpListener) -> StandIn {
    let (tell, heard) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let router = stand_in::router(HsToken::new(&scene.config.appservice.hs_token), tell);
    let mut tasks = JoinSet::new();
    tasks.spawn(http::serve(listener, router, stop.clone()));
    StandIn { heard, stop, tasks }
}

/// Asks whoever listens whether it is coucou, and one with these settings.
async fn visit(scene: &Scene<'_>, address: SocketAddr, report: &mut Report) -> Door {
    let near = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let base = format!("http://{}", SocketAddr::new(near, address.port()));
    let stranger = || format!("something else than coucou listens on {address}");
    let remedy = "end that program, or set http.port (COUCOU_HTTP_PORT) to a free port";
    let client = Client::builder().timeout(PATIENCE).redirect(Policy::none()).build();
    let asked = async {
        let client = client.ok()?;
        let health = client.get(format!("{base}/api/v1/health")).send().await.ok()?;
        let health: Json = serde_json::from_slice(&health.bytes().await.ok()?).ok()?;
        let version = health["version"].as_str()?.to_owned();
        let store = health["store"]["state"].as_str()?.to_owned();
        let reason = health["store"]["reason"].as_str().unwrap_or_default().to_owned();
        let token = scene.config.appservice.hs_token.expose_secret();
        let ping = client.post(format!("{base}/_matrix/app/v1/ping")).bearer_auth(token).body("{}");
        let ping = ping.send().await.ok()?.status();
        Some((version, store, reason, ping))
    };
    let Some((version, store, reason, ping)) = asked.await else {
        report.fail("http", stranger(), remedy);
        return Door::Closed;
    };
    let says = format!("coucou {version} runs on {address}");
    if store == "ready" {
        report.ok("http", says);
    } else {
        let says = format!("{says}, degraded: its store is {store} {reason}");
        report.fail("http", says.trim_end(), "see the line about the store");
    }
    if ping == StatusCode::FORBIDDEN {
        let says = "the coucou that runs has another hs_token than these settings";
        report.fail("http", says, "restart `coucou serve` with the same registration as this check");
    }
    Door::Serves
}
