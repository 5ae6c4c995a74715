//! A store that has been in use for long: sessions and messages of other rooms, as their tables hold them.

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};

/// What to insert for `$1` rows, in the words that both databases share; `{numbers}` makes the rows.
const STATEMENTS: [&str; 4] = [
    "INSERT INTO megolm_inbound_sessions (account_id, room_id, session_id, created_at, sender_key, \
     sender_data_type, backed_up, pickle) \
     SELECT 1, '!old' || (n % 5000), 'session' || n, n, 'sender' || (n % 50), 1, 1, {bytes} FROM {numbers}",
    "INSERT INTO messages (message_id, event_id, room_id, sequence, type, network, direction, sender, \
     origin_server_ts, created_at, payload) \
     SELECT 'msg_old' || n, '$old' || n, '!old' || (n % 5000), n / 5000 + 1, 'message.created', 'instagram', \
     'in', '@instagram_1:localhost', n, n, {bytes} FROM {numbers}",
    "INSERT INTO deliveries (webhook_id, message_id, room_id, sequence, state, attempts, last_status, \
     created_at, finished_at) \
     SELECT 1, 'msg_old' || n, '!old' || (n % 5000), n / 5000 + 1, 'delivered', 1, 200, n, n FROM {numbers}",
    "INSERT INTO megolm_indexes (room_id, session_id, message_index, event_id) \
     SELECT '!old' || (n % 5000), 'session' || n, 0, '$old' || n FROM {numbers}",
];

/// What the operator's numbers are made of, for `$1` messages and a tenth as many sessions: rooms, a week's ledger and
/// counts, a day's inbox, and deliveries of which some wait or were given up. `{now}` is the time.
const OPERATORS: [(&str, i64); 12] = [
    (
        "INSERT INTO rooms (room_id, relay, network, last_sequence, tries, created_at) \
         SELECT '!old' || (n - 1), 'yes', CASE WHEN n % 2 = 0 THEN 'instagram' ELSE 'messenger' END, 200, 0, n FROM {numbers}",
        200,
    ),
    (
        "INSERT INTO megolm_inbound_sessions (account_id, room_id, session_id, created_at, sender_key, \
         sender_data_type, backed_up, pickle) \
         SELECT 1, '!old' || (n % 5000), 'session' || n, n, 'sender' || (n % 50), 1, 1, {bytes} FROM {numbers}",
        10,
    ),
    (
        "INSERT INTO messages (message_id, event_id, room_id, sequence, type, network, direction, sender, \
         origin_server_ts, created_at, payload, position) \
         SELECT 'msg_old' || n, '$old' || n, '!old' || (n % 5000), n / 5000 + 1, 'message.created', 'instagram', \
         'in', '@instagram_1:localhost', n, n, {bytes}, n + 1000 FROM {numbers}",
        1,
    ),
    ("UPDATE positions SET last = last + 1000 + (SELECT COUNT(*) FROM messages)", 0),
    (
        "INSERT INTO deliveries (webhook_id, message_id, room_id, sequence, state, attempts, last_status, \
         created_at, finished_at) \
         SELECT 1, 'msg_old' || n, '!old' || (n % 5000), n / 5000 + 1, 'delivered', 1, 200, n, n FROM {numbers}",
        1,
    ),
    (
        "UPDATE deliveries SET state = 'dead' WHERE message_id IN (SELECT 'msg_old' || (n * 7 + 1) FROM {numbers})",
        1_000,
    ),
    // For a webhook that is in the settings no more: nobody sends what is made up.
    ("INSERT INTO webhooks (name, created_at) VALUES ('old', 1)", 0),
    (
        "UPDATE deliveries SET state = 'pending', webhook_id = (SELECT webhook_id FROM webhooks WHERE name = 'old') \
         WHERE message_id IN (SELECT 'msg_old' || (n * 5) FROM {numbers})",
        200,
    ),
    (
        "INSERT INTO room_queues (webhook_id, room_id, pending_count, due_at, failures, lease_until, lease_token) \
         SELECT webhook_id, room_id, COUNT(*), 9000000000000, 1, 0, 0 FROM deliveries WHERE state = 'pending' \
         AND message_id LIKE 'msg_old%' GROUP BY webhook_id, room_id",
        0,
    ),
    (
        "INSERT INTO pending_events (event_id, room_id, session_id, sender, state, reason, event, origin_server_ts, \
         received_at, tries) \
         SELECT '$ledger' || n, '!old' || (n % 5000), 'lost' || (n % 100), '@a:localhost', 'ledger', 'replay', {bytes}, \
         n, {now} - (n % 600000) * 1000, 1 FROM {numbers}",
        200,
    ),
    (
        "INSERT INTO message_counts (bucket, network, encrypted, count) \
         SELECT {now} / 300000 - n - 1, network, encrypted, 7 FROM {numbers} \
         CROSS JOIN (SELECT 'instagram' AS network UNION ALL SELECT 'messenger') AS a \
         CROSS JOIN (SELECT CAST(0 AS BIGINT) AS encrypted UNION ALL SELECT 1) AS b WHERE n <= 2300",
        400,
    ),
    (
        "INSERT INTO inbox (source, txn_id, content_hash, received_at, processed_at) \
         SELECT CASE WHEN n % 3 = 0 THEN 'lane' ELSE 'push' END, 'old' || n, {bytes}, n, n FROM {numbers}",
        20,
    ),
];

/// Fills a store.
pub(crate) async fn fill(url: &str, rows: i64) {
    let mut store = Filling::open(url).await;
    for statement in STATEMENTS {
        store.run(statement, rows).await;
    }
    store.close().await;
}

/// Fills a store with what the operator's numbers are made of.
pub(crate) async fn fill_for_operators(url: &str, messages: i64) {
    let mut store = Filling::open(url).await;
    for (statement, share) in OPERATORS {
        store.run(statement, messages / share.max(1)).await;
    }
    store.close().await;
}

/// The store to fill.
enum Filling {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Filling {
    async fn open(url: &str) -> Self {
        if url.starts_with("postgres") {
            Self::Postgres(PgConnection::connect(url).await.unwrap())
        } else {
            Self::Sqlite(SqliteConnection::connect(url).await.unwrap())
        }
    }

    async fn run(&mut self, statement: &str, rows: i64) {
        let now = time::OffsetDateTime::now_utc().unix_timestamp() * 1_000;
        let statement = statement.replace("{now}", &now.to_string());
        match self {
            Self::Postgres(connection) => {
                let statement = statement
                    .replace("{numbers}", &format!("generate_series(1, {rows}) AS n"))
                    .replace("{bytes}", "decode(repeat('5a', 700), 'hex')");
                sqlx::query(AssertSqlSafe(statement)).execute(connection).await.unwrap();
            }
            Self::Sqlite(connection) => {
                let numbers = format!(
                    "(WITH RECURSIVE counted (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < {rows}) \
                     SELECT n FROM counted)"
                );
                let statement = statement.replace("{numbers}", &numbers).replace("{bytes}", "zeroblob(700)");
                sqlx::query(AssertSqlSafe(statement)).execute(connection).await.unwrap();
            }
        }
    }

    async fn close(self) {
        match self {
            Self::Postgres(mut connection) => {
                // As autovacuum does in the course of time.
                sqlx::query("VACUUM ANALYZE").execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            Self::Sqlite(connection) => connection.close().await.unwrap(),
        }
    }
}
