//! What is counted and measured, for Prometheus.
//!
//! Every metric is declared here, with its help, and nowhere else; `docs/metrics.md` is made from these declarations. Labels
//! come from enums and from the settings, so their number is bounded: no room, no user, no address. Counting costs some
//! nanoseconds and never fails; what only the store knows is read when somebody asks (`http::metrics`).

pub mod process;

use std::{
    fmt,
    fmt::Write as _,
    sync::{LazyLock, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// The media type of what [`Metrics::text`] answers.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of what takes milliseconds to a minute, in seconds.
const QUICK: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// Upper bounds of what may take days, in seconds.
const SLOW: [f64; 12] =
    [0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0, 28_800.0, 86_400.0, 604_800.0];

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often something took how long.
    Histogram,
}

impl Kind {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// What there is to know about a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Its name, as queries have it.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it tells, in one sentence.
    pub help: &'static str,
}

type Labels = Vec<(&'static str, String)>;

fn labels(names: &[&'static str], values: &[&str]) -> Labels {
    names.iter().zip(values).map(|(name, value)| (*name, (*value).to_owned())).collect()
}

/// A counter for each set of label values.
#[derive(Debug)]
pub struct Counters {
    names: &'static [&'static str],
    family: Family<Labels, Counter>,
}

impl Counters {
    fn new(names: &'static [&'static str]) -> Self {
        let family = Family::<Labels, Counter>::default();
        if names.is_empty() {
            // So that it is there before it was ever counted.
            drop(family.get_or_create(&Labels::new()));
        }
        Self { names, family }
    }

    fn register(&self, registry: &mut Registry, definition: &Definition) {
        let name = definition.name.strip_suffix("_total").unwrap_or(definition.name);
        registry.register(name, definition.help.trim_end_matches('.'), self.family.clone());
    }

    /// Has it begin at 0, and not with the first that is counted: Prometheus sees no rise in the first value of a series.
    pub fn begin(&self, values: &[&str]) {
        self.add(values, 0);
    }

    /// Counts one.
    pub fn inc(&self, values: &[&str]) {
        self.add(values, 1);
    }

    /// Counts some.
    pub fn add(&self, values: &[&str], count: u64) {
        self.of(values).inc_by(count);
    }

    /// The one counter, for whoever counts it with every message.
    #[must_use]
    pub fn of(&self, values: &[&str]) -> Counter {
        self.family.get_or_create_owned(&labels(self.names, values))
    }
}

/// A total that somebody else counts, in fractions.
#[derive(Debug, Default)]
pub struct FloatCounter(Counter<f64, AtomicU64>);

impl FloatCounter {
    fn register(&self, registry: &mut Registry, definition: &Definition) {
        let name = definition.name.strip_suffix("_total").unwrap_or(definition.name);
        registry.register(name, definition.help.trim_end_matches('.'), self.0.clone());
    }

    /// Moves it on to where the other count is.
    pub fn advance_to(&self, total: f64) {
        let ahead = total - self.0.get();
        if ahead > 0.0 {
            self.0.inc_by(ahead);
        }
    }
}

/// A number for each set of label values.
#[derive(Debug)]
pub struct Gauges {
    names: &'static [&'static str],
    family: Family<Labels, Gauge<f64, AtomicU64>>,
}

impl Gauges {
    fn new(names: &'static [&'static str]) -> Self {
        Self { names, family: Family::default() }
    }

    fn register(&self, registry: &mut Registry, definition: &Definition) {
        registry.register(definition.name, definition.help.trim_end_matches('.'), self.family.clone());
    }

    /// Sets it.
    pub fn set(&self, values: &[&str], value: f64) {
        self.family.get_or_create(&labels(self.names, values)).set(value);
    }

    /// Sets it to a count.
    pub fn count(&self, values: &[&str], count: u64) {
        self.set(values, as_float(count));
    }

    /// Forgets all values: nothing is better than what is no longer so.
    pub fn clear(&self) {
        self.family.clear();
    }
}

/// A histogram for each set of label values.
#[derive(Debug)]
pub struct Histograms {
    names: &'static [&'static str],
    family: Family<Labels, Histogram, fn() -> Histogram>,
}

impl Histograms {
    fn new(names: &'static [&'static str], make: fn() -> Histogram) -> Self {
        let family = Family::<Labels, Histogram, fn() -> Histogram>::new_with_constructor(make);
        if names.is_empty() {
            drop(family.get_or_create(&Labels::new()));
        }
        Self { names, family }
    }

    fn register(&self, registry: &mut Registry, definition: &Definition) {
        registry.register(definition.name, definition.help.trim_end_matches('.'), self.family.clone());
    }

    /// Notes how long something took.
    pub fn observe(&self, values: &[&str], duration: Duration) {
        self.of(values).observe(duration.as_secs_f64());
    }

    /// The one histogram, for whoever notes something in it with every message.
    #[must_use]
    pub fn of(&self, values: &[&str]) -> Histogram {
        self.family.get_or_create_owned(&labels(self.names, values))
    }
}

/// A count as a float, exact up to 2⁵³.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a count beyond 2^53 need not be exact")]
pub fn as_float(count: u64) -> f64 {
    count as f64
}

macro_rules! metrics {
    ($($field:ident: $kind:ident $(($buckets:ident))? $name:literal [$($label:literal),*] $help:literal)+) => {
        /// All metrics.
        pub struct Metrics {
            registry: Registry,
            $(#[doc = concat!("`", $name, "`.")] pub $field: metrics!(@type $kind),)+
        }

        /// Every metric there is, in the order of the documentation.
        pub const DEFINITIONS: &[Definition] = &[$(Definition {
            name: $name, kind: metrics!(@kind $kind), labels: &[$($label),*], help: $help,
        }),+];

        impl Metrics {
            fn new() -> Self {
                let mut registry = Registry::default();
                let mut definitions = DEFINITIONS.iter();
                $(
                    let $field = metrics!(@new $kind $(($buckets))? [$($label),*]);
                    if let Some(definition) = definitions.next() {
                        $field.register(&mut registry, definition);
                    }
                )+
                Self { registry, $($field),+ }
            }
        }
    };
    (@kind FloatCounter) => { Kind::Counter };
    (@kind $kind:ident) => { Kind::$kind };
    (@type Counter) => { Counters };
    (@type FloatCounter) => { FloatCounter };
    (@type Gauge) => { Gauges };
    (@type Histogram) => { Histograms };
    (@new Counter [$($label:literal),*]) => { Counters::new(&[$($label),*]) };
    (@new FloatCounter []) => { FloatCounter::default() };
    (@new Gauge [$($label:literal),*]) => { Gauges::new(&[$($label),*]) };
    (@new Histogram ($buckets:ident) [$($label:literal),*]) => {
        Histograms::new(&[$($label),*], || Histogram::new($buckets))
    };
}

metrics! {
    build: Gauge "coucou_build_info" ["version"]
        "Always 1; the label is the version that runs."
    store_up: Gauge "coucou_store_up" ["backend"]
        "Whether the database answers: 1 or 0."
    store_connections: Gauge "coucou_store_connections" ["state"]
        "Connections to the database that this process has open: used or idle."
    store_connections_max: Gauge "coucou_store_connections_max" []
        "Connections to the database that this process may open, store.pool_size."
    task_restarts: Counter "coucou_task_restarts_total" ["task"]
        "Core tasks (store, outbox, crypto, retention, secrets, http or fallback) that ended before the process did, by a fault of coucou's own, and were begun again."
    statements: Counter "coucou_store_statements_total" []
        "Statements that were sent to the database, commits among them."
    cache_lookups: Counter "coucou_cache_lookups_total" ["cache", "outcome"]
        "What was looked for in memory first: room keys (sessions), devices, identities, which account holds a session (holders), and how far it is used (heights); hit, or miss, which asks the database."
    transactions: Counter "coucou_inbox_transactions_total" ["outcome"]
        "Transactions of the homeserver: new, repeat (harmless), malformed, or refused because of the store (store, timed_out, stopping), which the homeserver sends again."
    transaction_seconds: Histogram (QUICK) "coucou_inbox_transaction_seconds" []
        "How long it took to take a transaction, until its answer."
    inbox_rows: Gauge "coucou_inbox_rows" []
        "Transactions and pages of the key lane that are not worked through yet."
    inbox_oldest: Gauge "coucou_inbox_oldest_age_seconds" []
        "How long the first of them has waited."
    transaction_at: Gauge "coucou_inbox_last_transaction_timestamp_seconds" []
        "When the homeserver's last transaction came, as Unix time; absent when none did within a day."
    lease_held: Gauge "coucou_crypto_lease_held" []
        "Whether any process works the crypto: 1 or 0. At 0 nothing is decrypted."
    leader: Gauge "coucou_crypto_leader" []
        "Whether this process works the crypto: 1 or 0. One of several instances does."
    room_keys: Counter "coucou_crypto_room_keys_total" []
        "Room keys that came in, new or better ones, by push, key lane, forward, backup or import."
    room_keys_stored: Gauge "coucou_crypto_room_keys_stored" []
        "Room keys that are stored."
    one_time_keys: Gauge "coucou_crypto_one_time_keys" ["account"]
        "One-time keys left on the homeserver, as it last said to this process; at 0 bridges cannot begin sessions but by the fallback key."
    key_wait: Histogram (SLOW) "coucou_crypto_key_wait_seconds" []
        "How long encrypted messages waited from when they came until they were decrypted."
    lane_syncs: Counter "coucou_keylane_syncs_total" ["outcome"]
        "Requests of the key lane: news, idle, restarted (the homeserver did not know the position) or failed."
    lane_messages: Counter "coucou_keylane_messages_total" []
        "To-device messages that came by the key lane."
    lane_synced_at: Gauge "coucou_keylane_last_sync_timestamp_seconds" []
        "When the key lane of this process last had an answer, as Unix time."
    messages: Counter "coucou_messages_stored_total" ["type", "direction", "encrypted"]
        "Messages that were stored for delivery, by type (as docs/webhook.md lists them), direction and whether they were encrypted."
    message_at: Gauge "coucou_messages_newest_timestamp_seconds" []
        "When the newest message was stored, as Unix time."
    reconciled_rooms: Counter "coucou_reconciled_rooms_total" ["found"]
        "Rooms in which a comparison with their timeline found events that were not pushed: found by routine, after an outage, by a gap that was read page by page, at a join (what was said before and beside it), or by coucou check."
    reconciled_events: Counter "coucou_reconciled_events_total" ["found"]
        "The events that were not pushed, and were taken from the timeline instead, by how they were found."
    control_events: Counter "coucou_control_events_total" ["kind"]
        "Events that are no messages (as docs/webhook.md lists them): status, error_notice, verification, command, dummy, receipt or key."
    undecryptable: Counter "coucou_ledger_events_total" ["reason"]
        "Events that could not be decrypted or believed when they came, by reason (as docs/keys.md lists them)."
    ledger: Gauge "coucou_ledger_waiting" ["reason"]
        "Events that still cannot be decrypted or believed, by reason."
    attempts: Counter "coucou_outbox_attempts_total" ["webhook", "outcome"]
        "Attempts at deliveries: delivered, dead (given up), or why it failed and is tried again (status, gone, redirect, timeout, connect, broken, unsendable, missing, unreadable)."
    attempt_seconds: Histogram (QUICK) "coucou_outbox_attempt_seconds" ["webhook"]
        "How long attempts took, until the answer."
    pending: Gauge "coucou_outbox_pending" ["webhook"]
        "Deliveries that are still to be made."
    oldest_pending: Gauge "coucou_outbox_oldest_age_seconds" ["webhook"]
        "How long the oldest of them has waited."
    dead: Gauge "coucou_outbox_dead" ["webhook"]
        "Deliveries that were given up and are kept."
    disabled: Gauge "coucou_outbox_disabled" ["webhook"]
        "Whether a webhook is sent nothing, because somebody paused it or it answered 410: 1 or 0."
    bridge_alarms: Gauge "coucou_bridge_alarms" ["reason"]
        "What is wrong with bridges now, by reason: no_messages (a network is silent for longer than usual), no_transactions (the homeserver pushes nothing while keys or messages come by other ways), bot_left (a bridge's bot is no longer in a room), login_lost (a bridge says that a login does not work), messages_held (messages of a bridge are held, because nothing tells for whom it may speak)."
    rooms: Gauge "coucou_rooms" ["relay"]
        "Rooms that are relayed (yes), are not (no), or whose state was not read yet (unknown)."
    resident_memory: Gauge "process_resident_memory_bytes" []
        "Resident memory size in bytes."
    cpu: FloatCounter "process_cpu_seconds_total" []
        "User and system CPU time spent in seconds."
    open_fds: Gauge "process_open_fds" []
        "Number of open file descriptors."
    start_time: Gauge "process_start_time_seconds" []
        "When the process started, as Unix time."
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// All that is known, in the `OpenMetrics` text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        // A family without labels is encoded with empty braces, which many a tool for looking at it does not know.
        let plain = |line: &str| match line.split_once('{') {
            Some((name, rest)) if rest.starts_with('}') && !line.starts_with('#') => {
                format!("{name}{}\n", &rest[1..])
            }
            _ => format!("{line}\n"),
        };
        text.lines().map(plain).collect()
    }
}

impl Metrics {
    /// What counts the looks into a cache.
    #[must_use]
    pub fn lookups(&self, cache: &str) -> Lookups {
        Lookups {
            hits: self.cache_lookups.of(&[cache, "hit"]),
            misses: self.cache_lookups.of(&[cache, "miss"]),
        }
    }
}

/// How often something was in a cache, and how often it was not.
#[derive(Clone, Debug)]
pub struct Lookups {
    hits: Counter,
    misses: Counter,
}

impl Lookups {
    /// Counts a look into the cache, and gives on what it found.
    pub fn count<T>(&self, found: Option<T>) -> Option<T> {
        if found.is_some() { &self.hits } else { &self.misses }.inc();
        found
    }
}

/// The metrics of this process.
#[must_use]
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

/// The page of the documentation that lists all metrics.
#[must_use]
pub fn reference() -> String {
    let mut page = include_str!("metrics/reference.md").to_owned();
    for Definition { name, kind, labels, help } in DEFINITIONS {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(page, "| `{name}` | {} | {labels} | {help} |", kind.as_str());
    }
    page
}

#[cfg(test)]
mod tests;
