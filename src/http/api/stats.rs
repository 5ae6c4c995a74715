//! `GET /api/v1/stats`: how coucou is, at a glance.
//!
//! It answers while the store is away, too, with what is known without it.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    super::{HttpState, StoreState, error::Problem},
    openapi::Refusals,
    query::Query,
    webhooks::{self, Webhook},
};
use crate::{
    clock::Timestamp,
    model::{self, HomeserverState, Role},
    store::{
        accounts,
        crypto::recovery_key::{self, RecoveryKeyHolder},
        inbox, messages, silence, stats,
    },
};

/// How coucou is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Stats {
    /// The version of coucou.
    version: &'static str,
    /// How long this process has run.
    uptime_seconds: u64,
    /// When this was answered, RFC 3339 in UTC.
    now: String,
    /// The store.
    store: Store,
    /// The homeserver, as the last request to it has shown: `ok`, `away`, `refuses: ` and why, or `unasked`, as by a
    /// process that stands by.
    homeserver: String,
    /// What the store says; null while it is away.
    stored: Option<Stored>,
}

/// The store.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Store {
    /// `postgres` or `sqlite`.
    backend: &'static str,
    /// `connected`, `starting`, or `unavailable: ` and why.
    state: String,
    /// Whether it stands in for PostgreSQL, which could not be reached at the start (`store.fallback`).
    fallback: bool,
    /// Why PostgreSQL could not be reached, while the store stands in for it.
    fallback_reason: Option<String>,
}

/// What the store says.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Stored {
    /// Who works the crypto.
    crypto: Crypto,
    /// The room keys.
    keys: Keys,
    /// The rooms.
    rooms: Rooms,
    /// The messages.
    messages: Messages,
    /// Events that could not be decrypted or believed, by reason, of those that came lately.
    undecryptable: BTreeMap<String, Lately>,
    /// What has come in.
    inbox: Inbox,
    /// When each network was heard of, and what is wrong with bridges.
    bridges: Bridges,
    /// What waits for each webhook.
    deliveries: Vec<Webhook>,
}

/// Who works the crypto.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Crypto {
    /// The process that holds the lease, `<process id>-<random>`; null before the first.
    holder: Option<String>,
    /// Whether it holds it now; false for more than some seconds means that nothing is decrypted.
    is_held: bool,
    /// How often the lease has changed hands.
    fence: i64,
    /// The Matrix users that coucou reads as, with its device on each.
    accounts: Vec<Account>,
    /// Who has the bot's recovery key besides the database: `given` to coucou, or made by it and `printed` or
    /// `not_printed`; null before there is one.
    recovery_key: Option<&'static str>,
}

/// A Matrix user that coucou reads as.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Account {
    /// The user.
    user_id: String,
    /// coucou's device.
    device_id: String,
    /// `bot` or `owner`.
    role: &'static str,
}

/// The room keys.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Keys {
    /// Inbound Megolm sessions, as `SELECT COUNT(*) FROM megolm_inbound_sessions` says.
    inbound_sessions: u64,
    /// Rooms that they are of.
    rooms: u64,
    /// When the newest came.
    newest_at: Option<String>,
}

/// The rooms.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Rooms {
    /// Those whose messages are relayed.
    tracked: u64,
    /// Those by network; without a bridge under the empty name.
    by_network: BTreeMap<String, u64>,
    /// Those that are not relayed.
    not_relayed: u64,
    /// Those whose state was not read yet.
    unknown: u64,
}

/// The messages.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Messages {
    /// All that were ever stored.
    total: i64,
    /// When the newest was stored.
    newest_at: Option<String>,
    /// Those of late.
    stored: Lately,
    /// Those of them that had to be decrypted.
    decrypted: Lately,
    /// Those by network; without a bridge under the empty name.
    by_network: BTreeMap<String, Lately>,
    /// Decrypted messages among all that had to be decrypted, from 0 to 1; null when there were none.
    decryptable_rate: Rates,
}

/// Numbers of late, to five minutes.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(super) struct Lately {
    /// Of the last hour.
    hour: u64,
    /// Of the last 24 hours.
    day: u64,
    /// Of the last 7 days.
    week: u64,
}

impl Lately {
    fn add(&mut self, hour: u64, day: u64, week: u64) {
        self.hour += hour;
        self.day += day;
        self.week += week;
    }
}

/// Rates of late.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(super) struct Rates {
    /// Of the last hour.
    hour: Option<f64>,
    /// Of the last 24 hours.
    day: Option<f64>,
    /// Of the last 7 days.
    week: Option<f64>,
}

/// What has come in.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Inbox {
    /// Rows that were not worked through yet.
    depth: u64,
    /// How long the first of them has waited.
    oldest_age_seconds: Option<u64>,
    /// When the homeserver's last transaction came; null when none did within a day.
    last_transaction_at: Option<String>,
    /// When the key lane last brought something; null when it did not within a day.
    last_key_lane_at: Option<String>,
}

/// When each network was heard of, and what is wrong with bridges.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Bridges {
    /// The networks, and when something of them last came.
    networks: Vec<Heard>,
    /// How much is wrong, by reason: `no_messages`, `no_transactions`, `bot_left`, `login_lost`, `messages_held`.
    alarm_counts: BTreeMap<&'static str, u64>,
    /// What is wrong, a hundred at most.
    alarms: Vec<Alarm>,
}

/// When a network was heard of.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Heard {
    /// The network.
    network: String,
    /// When something of it last came.
    last_at: String,
    /// Since when it is followed, of the last sixteen weeks; what is usual is known after two.
    known_since: String,
}

/// What is wrong with a bridge, or between the homeserver and coucou.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Alarm {
    /// `no_messages`, `no_transactions`, `bot_left`, `login_lost` or `messages_held`.
    reason: &'static str,
    /// Since when: of a silence, when something last came.
    since: String,
    /// When it was told.
    told_at: String,
    /// The network, when it is known.
    network: Option<String>,
    /// The bridge's bot, of what is about one.
    bot: Option<String>,
    /// The room, of `bot_left`.
    room_id: Option<String>,
    /// The login on the network, of `login_lost`.
    login: Option<String>,
    /// Its state as the bridge calls it.
    status: Option<String>,
    /// The code of an error as the bridge calls it.
    error: Option<String>,
    /// The line of the settings that ends it, of `messages_held`.
    settings: Option<String>,
    /// The message that told of it.
    message_id: String,
}

/// How coucou is
///
/// As quick with a million messages as with none. While the store is away `stored` is null, and `store` says why.
#[utoipa::path(
    get, path = "/api/v1/stats", tag = "stats",
    responses((status = 200, description = "How coucou is.", body = Stats), Refusals),
)]
pub(super) async fn get(State(state): State<HttpState>, query: Query) -> Result<Json<Stats>, Problem> {
    query.finish()?;
    let now = state.api.clock.now();
    let (text, is_ready) = match state.health.store() {
        StoreState::Ready => ("connected".to_owned(), true),
        StoreState::Starting => ("starting".to_owned(), false),
        StoreState::Unavailable { reason } => (format!("unavailable: {reason}"), false),
    };
    let stored = if is_ready { Some(stored(&state, now).await?) } else { None };
    Ok(Json(Stats {
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: state.api.started.elapsed().as_secs(),
        now: now.rfc3339(),
        store: Store {
            backend: state.api.store.backend(),
            state: text,
            fallback: state.health.stands_in().is_some(),
            fallback_reason: state.health.stands_in().map(str::to_owned),
        },
        homeserver: match state.health.homeserver() {
            HomeserverState::Refuses { why } => format!("refuses: {why}"),
            state => state.as_str().to_owned(),
        },
        stored,
    }))
}

/// Asks for everything, along three ways at once: each question is quick, but there are many, and an answer of the
/// database takes its time to come.
async fn stored(state: &HttpState, now: Timestamp) -> Result<Stored, Problem> {
    let db = state.api.store.db();
    let ((keys, rooms, crypto), (failures, messages), (inbox, bridges, deliveries)) = tokio::try_join!(
        async { Ok((keys(state).await?, rooms(state).await?, crypto(state, now).await?)) },
        async {
            let failures = stats::failures(db, now).await?;
            let messages = messages(state, &failures, now).await?;
            Ok::<_, Problem>((failures, messages))
        },
        async { Ok((inbox(state, now).await?, bridges(state).await?, webhooks::all(state).await?)) },
    )?;
    let failed =
        |failures: &stats::Failures| Lately { hour: failures.hour, day: failures.day, week: failures.week };
    let undecryptable = failures.iter().map(|one| (one.reason.clone(), failed(one))).collect();
    Ok(Stored { crypto, keys, rooms, messages, undecryptable, inbox, bridges, deliveries })
}

async fn keys(state: &HttpState) -> Result<Keys, Problem> {
    let keys = stats::keys(state.api.store.db()).await?;
    let newest_at = keys.newest_at.map(Timestamp::rfc3339);
    Ok(Keys { inbound_sessions: keys.count, rooms: keys.room_count, newest_at })
}

async fn inbox(state: &HttpState, now: Timestamp) -> Result<Inbox, Problem> {
    let db = state.api.store.db();
    let depth = inbox::depth(db).await?;
    Ok(Inbox {
        depth: depth.count,
        oldest_age_seconds: depth.oldest_at.map(|at| now.since(at).as_secs()),
        last_transaction_at: stats::last_row(db, "push").await?.map(Timestamp::rfc3339),
        last_key_lane_at: stats::last_row(db, "lane").await?.map(Timestamp::rfc3339),
    })
}

async fn crypto(state: &HttpState, now: Timestamp) -> Result<Crypto, Problem> {
    let db = state.api.store.db();
    let holder = stats::holder(db).await?;
    let accounts = accounts::all(db).await?;
    let recovery_key = match accounts.iter().find(|account| account.role == Role::Bot) {
        Some(bot) => recovery_key::holder(&state.api.store, bot.id).await?,
        None => None,
    };
    let accounts = accounts.into_iter().map(|account| Account {
        user_id: account.user_id.into(),
        device_id: account.device_id.to_string(),
        role: account.role.as_str(),
    });
    Ok(Crypto {
        is_held: holder.as_ref().is_some_and(|holder| holder.until >= now),
        fence: holder.as_ref().map_or(0, |holder| holder.fence),
        holder: holder.map(|holder| holder.holder),
        accounts: accounts.collect(),
        recovery_key: recovery_key.map(RecoveryKeyHolder::as_str),
    })
}

async fn bridges(state: &HttpState) -> Result<Bridges, Problem> {
    const MOST: i64 = 100;
    let db = state.api.store.db();
    let heard = |heard: silence::Heard| Heard {
        network: heard.network,
        last_at: heard.last_at.rfc3339(),
        known_since: Timestamp(heard.first_hour.saturating_mul(3_600_000)).rfc3339(),
    };
    let alarm = |alarm: model::Alarm| Alarm {
        reason: alarm.reason.as_str(),
        settings: alarm.settings_line(),
        since: alarm.since.rfc3339(),
        told_at: alarm.told_at.rfc3339(),
        network: alarm.network,
        bot: alarm.bot.map(Into::into),
        room_id: alarm.room_id.map(Into::into),
        login: alarm.login,
        status: alarm.status,
        error: alarm.error,
        message_id: alarm.message_id,
    };
    let counts = silence::counts(db).await?.into_iter();
    Ok(Bridges {
        networks: silence::heard(db).await?.into_iter().map(heard).collect(),
        alarm_counts: counts.map(|(reason, count)| (reason.as_str(), count)).collect(),
        alarms: silence::active(db, MOST).await?.into_iter().map(alarm).collect(),
    })
}

async fn rooms(state: &HttpState) -> Result<Rooms, Problem> {
    let mut rooms = Rooms { tracked: 0, by_network: BTreeMap::new(), not_relayed: 0, unknown: 0 };
    for (relay, network, count) in stats::rooms(state.api.store.db()).await? {
        match relay.as_str() {
            "yes" => {
                rooms.tracked += count;
                *rooms.by_network.entry(network.unwrap_or_default()).or_default() += count;
            }
            "no" => rooms.not_relayed += count,
            _ => rooms.unknown += count,
        }
    }
    Ok(rooms)
}

async fn messages(
    state: &HttpState,
    failures: &[stats::Failures],
    now: Timestamp,
) -> Result<Messages, Problem> {
    let db = state.api.store.db();
    let (mut stored, mut decrypted) = (Lately::default(), Lately::default());
    let mut by_network = BTreeMap::<String, Lately>::new();
    for count in messages::counts::lately(db, now).await? {
        stored.add(count.hour, count.day, count.week);
        by_network.entry(count.network).or_default().add(count.hour, count.day, count.week);
        if count.encrypted {
            decrypted.add(count.hour, count.day, count.week);
        }
    }
    let mut failed = Lately::default();
    for one in failures {
        failed.add(one.hour, one.day, one.week);
    }
    Ok(Messages {
        total: messages::read::last(db).await?,
        newest_at: stats::newest_message(db).await?.map(Timestamp::rfc3339),
        stored,
        decrypted,
        by_network,
        decryptable_rate: Rates {
            hour: rate(decrypted.hour, failed.hour),
            day: rate(decrypted.day, failed.day),
            week: rate(decrypted.week, failed.week),
        },
    })
}

/// How many of all were good.
fn rate(good: u64, bad: u64) -> Option<f64> {
    let as_float = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let all = good.saturating_add(bad);
    (all > 0).then(|| as_float(good) / as_float(all))
}
