//! `GET /metrics`: what Prometheus reads.
//!
//! What the process counted is told as it is; what only the store knows is read then, along indexes and maintained counts, by one
//! reader at a time. While the store is away the rest is told.

use std::{error::Error, sync::Arc};

use axum::{
    Extension, Router,
    extract::{ConnectInfo, State},
    http::{
        HeaderMap, HeaderValue,
        header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use tokio::sync::Mutex;

use super::{Access, Health, StoreState, connections::Peer, error::Problem};
use crate::{
    clock::SharedClock,
    metrics::{self, Metrics, metrics, process},
    model::ledger::Reason,
    store::{Store, StoreError, inbox, outbox, pending, silence, stats, webhooks},
};

/// Who may read.
#[derive(Debug)]
pub enum Guard {
    /// Everybody who reaches the port.
    Open,
    /// Whoever shows one of these tokens; nobody, when there are none.
    Tokens(Access),
}

/// Reads and tells; clones share it.
#[derive(Clone, Debug)]
pub struct Exporter(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    store: Store,
    clock: SharedClock,
    health: Health,
    guard: Guard,
    most_connections: Option<u32>,
    /// Gauges are cleared and set again: two readers at once would see each other's half.
    turn: Mutex<()>,
}

impl Exporter {
    /// One that tells of this store, whose pool may have so many connections.
    #[must_use]
    pub fn new(
        store: Store,
        clock: SharedClock,
        health: Health,
        guard: Guard,
        most_connections: Option<u32>,
    ) -> Self {
        Self(Arc::new(Parts { store, clock, health, guard, most_connections, turn: Mutex::default() }))
    }

    async fn text(&self) -> String {
        let parts = &*self.0;
        let _turn = parts.turn.lock().await;
        let metrics = metrics();
        process::measure(metrics);
        metrics.build.set(&[env!("CARGO_PKG_VERSION")], 1.0);
        begin(metrics);
        let (open, idle) = parts.store.db().connections();
        let idle = u64::try_from(idle).unwrap_or(0);
        metrics.store_connections.count(&["idle"], idle);
        metrics.store_connections.count(&["used"], u64::from(open).saturating_sub(idle));
        if let Some(most) = parts.most_connections {
            metrics.store_connections_max.count(&[], u64::from(most));
        }
        forget(metrics);
        let mut is_up = parts.health.store() == StoreState::Ready;
        if is_up && let Err(error) = parts.read(metrics).await {
            tracing::debug!(error = &error as &dyn Error, "metrics of the store cannot be read");
            forget(metrics);
            is_up = false;
        }
        metrics.store_up.count(&[parts.store.backend()], u64::from(is_up));
        metrics.text()
    }
}

/// Has counters that alerts look at be there before anything is counted; those of webhooks are, once their names are read.
fn begin(metrics: &Metrics) {
    for reason in Reason::CLASSES {
        metrics.undecryptable.begin(&[reason]);
    }
    for found in ["routine", "outage", "gap", "check"] {
        metrics.reconciled_rooms.begin(&[found]);
        metrics.reconciled_events.begin(&[found]);
    }
    for outcome in ["store", "timed_out"] {
        metrics.transactions.begin(&[outcome]);
    }
}

/// Forgets what the store said the last time.
fn forget(metrics: &Metrics) {
    for gauge in [
        &metrics.inbox_rows,
        &metrics.inbox_oldest,
        &metrics.transaction_at,
        &metrics.lease_held,
        &metrics.room_keys_stored,
        &metrics.message_at,
        &metrics.ledger,
        &metrics.pending,
        &metrics.oldest_pending,
        &metrics.dead,
        &metrics.disabled,
        &metrics.rooms,
        &metrics.bridge_alarms,
    ] {
        gauge.clear();
    }
}

impl Parts {
    async fn read(&self, metrics: &Metrics) -> Result<(), StoreError> {
        let (db, now) = (self.store.db(), self.clock.now());
        let depth = inbox::depth(db).await?;
        metrics.inbox_rows.count(&[], depth.count);
        let waited = depth.oldest_at.map(|at| now.since(at)).unwrap_or_default();
        metrics.inbox_oldest.set(&[], waited.as_secs_f64());
        if let Some(at) = stats::last_row(db, "push").await? {
            metrics.transaction_at.set(&[], at.unix_seconds());
        }
        let is_held = stats::holder(db).await?.is_some_and(|holder| holder.until >= now);
        metrics.lease_held.count(&[], u64::from(is_held));
        metrics.room_keys_stored.count(&[], stats::keys(db).await?.count);
        if let Some(at) = stats::newest_message(db).await? {
            metrics.message_at.set(&[], at.unix_seconds());
        }
        let mut ledger = std::collections::BTreeMap::<&str, u64>::new();
        for (reason, count) in pending::counts(db).await? {
            *ledger.entry(reason.class()).or_default() += count;
        }
        for (reason, count) in ledger {
            metrics.ledger.count(&[reason], count);
        }
        let mut rooms = std::collections::BTreeMap::<String, u64>::new();
        for (relay, _, count) in stats::rooms(db).await? {
            *rooms.entry(relay).or_default() += count;
        }
        for (relay, count) in rooms {
            metrics.rooms.count(&[&relay], count);
        }
        for (reason, count) in silence::counts(db).await? {
            metrics.bridge_alarms.count(&[reason.as_str()], count);
        }
        self.read_outbox(metrics).await
    }

    async fn read_outbox(&self, metrics: &Metrics) -> Result<(), StoreError> {
        let (db, now) = (self.store.db(), self.clock.now());
        let (backlogs, dead) = (outbox::backlogs(db).await?, outbox::dead(db).await?);
        let disabled = webhooks::disabled(db).await?;
        for (id, name) in webhooks::all(db).await? {
            let name = [name.as_str()];
            let backlog = backlogs.iter().find(|backlog| backlog.webhook_id == id);
            metrics.pending.count(&name, backlog.map_or(0, |backlog| backlog.pending_count));
            let oldest = backlog.and_then(|backlog| backlog.oldest_at).map(|at| now.since(at));
            metrics.oldest_pending.set(&name, oldest.unwrap_or_default().as_secs_f64());
            metrics.dead.count(&name, dead.iter().find(|(of, _)| *of == id).map_or(0, |(_, count)| *count));
            let is_disabled = disabled.iter().any(|disabled| disabled.webhook_id == id);
            metrics.disabled.count(&name, u64::from(is_disabled));
            // So that the first that is given up is seen, and a webhook that has taken nothing since the start.
            for outcome in ["delivered", "dead"] {
                metrics.attempts.begin(&[name[0], outcome]);
            }
        }
        Ok(())
    }
}

/// The one route.
pub fn router(path: &str, exporter: Exporter) -> Router {
    Router::new().route(path, get(tell)).with_state(exporter)
}

async fn tell(
    State(exporter): State<Exporter>,
    peer: Option<Extension<ConnectInfo<Peer>>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if let Guard::Tokens(access) = &exporter.0.guard {
        let peer = peer.map(|Extension(ConnectInfo(Peer(address)))| address);
        access.scope(&as_bearer(headers), peer)?;
    }
    let headers = [(CONTENT_TYPE, metrics::CONTENT_TYPE), (CACHE_CONTROL, "no-store")];
    Ok((headers, exporter.text().await).into_response())
}

/// The password of a basic authorization as a bearer token: some collectors know no other way.
fn as_bearer(mut headers: HeaderMap) -> HeaderMap {
    let password = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, rest) = value.as_bytes().split_at_checked(6)?;
        let basic = scheme.eq_ignore_ascii_case(b"basic ");
        let pair = basic.then(|| BASE64_STANDARD.decode(rest.trim_ascii()).ok())??;
        let colon = pair.iter().position(|byte| *byte == b':')?;
        let mut bearer = b"Bearer ".to_vec();
        bearer.extend_from_slice(pair.get(colon + 1..)?);
        HeaderValue::from_bytes(&bearer).ok()
    });
    if let Some(password) = password {
        headers.insert(AUTHORIZATION, password);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_stands_for_a_token() {
        let offered = |value: &str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
            as_bearer(headers)[AUTHORIZATION].to_str().unwrap().to_owned()
        };
        assert_eq!(offered("Bearer one"), "Bearer one");
        assert_eq!(offered("Basic YW55Ym9keTpvbmU6dHdv"), "Bearer one:two");
        assert_eq!(offered("basic Om9uZQ=="), "Bearer one");
        for other in ["Basic !", "Basic bm9ib2R5", "Basic", "Digest x"] {
            assert_eq!(offered(other), other);
        }
    }
}
