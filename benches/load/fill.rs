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

/// Fills a store.
pub(crate) async fn fill(url: &str, rows: i64) {
    if url.starts_with("postgres") {
        let mut connection = PgConnection::connect(url).await.unwrap();
        for statement in STATEMENTS {
            let statement = statement
                .replace("{numbers}", &format!("generate_series(1, {rows}) AS n"))
                .replace("{bytes}", "decode(repeat('5a', 700), 'hex')");
            sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
        }
        sqlx::query("ANALYZE").execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        return;
    }
    let mut connection = SqliteConnection::connect(url).await.unwrap();
    for statement in STATEMENTS {
        let numbers = format!(
            "(WITH RECURSIVE counted (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < {rows}) \
             SELECT n FROM counted)"
        );
        let statement = statement.replace("{numbers}", &numbers).replace("{bytes}", "zeroblob(700)");
        sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
}
