//! Every lookup on a table that grows goes through an index, on both databases.

use super::{inbound, listed, olm, requests, rooms, users};
use crate::{
    store::{Store, db::Values, db::values},
    testing,
};

/// How the database would run a statement, sequential scans being the last resort.
pub(in crate::store) async fn plan(store: &Store, sql: &'static str, values: Values) -> String {
    plan_of_many(store, sql, values, vec![]).await
}

async fn plan_of_many(store: &Store, sql: &'static str, shared: Values, rows: Vec<Values>) -> String {
    let mut tx = store.begin().await.unwrap();
    if store.backend() == "postgres" {
        // An empty table is read whole, whatever its indexes.
        tx.execute("SET LOCAL enable_seqscan = off", vec![]).await.unwrap();
    }
    tx.explain(sql, shared, rows).await
}

/// Fails unless `table` is reached through an index by (at least) `columns`.
pub(in crate::store) async fn assert_indexed(
    store: &Store,
    table: &str,
    columns: &[&str],
    sql: &'static str,
    values: Values,
) {
    assert_many_indexed(store, table, columns, sql, values, vec![]).await;
}

/// As [`assert_indexed`], for a statement for many rows.
pub(in crate::store) async fn assert_many_indexed(
    store: &Store,
    table: &str,
    columns: &[&str],
    sql: &'static str,
    shared: Values,
    rows: Vec<Values>,
) {
    let plan = plan_of_many(store, sql, shared, rows).await;
    let postgres = store.backend() == "postgres";
    let bad = if postgres { format!("Seq Scan on {table}") } else { format!("SCAN {table}") };
    assert!(!plan.contains(&bad), "{sql}\n{plan}");
    let by_index = |line: &str| {
        let line = line.trim_start();
        if postgres { line.starts_with("Index Cond:") } else { line.contains("INDEX") }
    };
    let indexed = plan.lines().filter(|line| by_index(line)).collect::<Vec<_>>().join("\n");
    for column in columns {
        assert!(indexed.contains(column), "{column} is not looked up by index\n{sql}\n{plan}");
    }
}

const SESSIONS: &str = "megolm_inbound_sessions";

#[tokio::test]
async fn room_keys_are_found_by_index() {
    for test in testing::both().await {
        let store = &test.store;
        let session = ["account_id", "room_id", "session_id"];
        assert_indexed(store, SESSIONS, &session, inbound::FIND, values![1_i64, "!r", "s"]).await;
        assert_indexed(store, SESSIONS, &session[..2], inbound::OF_ROOM, values![1_i64, "!r"]).await;
        assert_indexed(
            store,
            SESSIONS,
            &["account_id", "sender_key", "sender_data_type", "session_id"],
            inbound::OF_DEVICE,
            values![1_i64, "k", 2_i64, "", 10_i64],
        )
        .await;
        let from = values![1_i64, "!r", "s", 10_i64];
        assert_indexed(store, SESSIONS, &session[..2], inbound::PAGE, from.clone()).await;
        assert_indexed(store, SESSIONS, &session, inbound::PAGE_OF_ROOM, from).await;
        let after = values![1_i64, "!r", "s", 10_i64];
        assert_indexed(store, SESSIONS, &session, listed::PAGE, after).await;
        let after = values!["!r", 1_i64, "s", 10_i64];
        assert_indexed(store, SESSIONS, &["room_id"], listed::PAGE_OF_ROOM, after).await;
        assert_indexed(store, SESSIONS, &["account_id"], inbound::TO_BACK_UP, values![1_i64, 9_i64]).await;
        let values = values![1_i64, 9_i64];
        assert_indexed(store, SESSIONS, &["account_id"], inbound::RELAYED_TO_BACK_UP, values).await;
        assert_indexed(store, SESSIONS, &session[..2], inbound::DELETE_OF_ROOM, values![1_i64, "!r"]).await;
        for many in [inbound::FIND_MANY, inbound::MARK, inbound::DELETE] {
            let rows = vec![values![1_i64, "!r", "s"], values![1_i64, "!r", "t"]];
            assert_many_indexed(store, SESSIONS, &session, many, vec![], rows).await;
        }
    }
}

#[tokio::test]
async fn to_back_up_uses_the_partial_index() {
    for test in testing::both().await {
        let plan = plan(&test.store, inbound::TO_BACK_UP, values![1_i64, 9_i64]).await;
        assert!(plan.contains("megolm_inbound_sessions_to_back_up"), "{plan}");
        let plan = self::plan(&test.store, requests::UNSENT, values![1_i64]).await;
        assert!(plan.contains("crypto_key_requests_unsent"), "{plan}");
    }
}

#[tokio::test]
async fn the_newest_room_key_is_read_off_an_index() {
    for test in testing::both().await {
        let sql = "SELECT MAX(created_at) FROM megolm_inbound_sessions";
        let plan = plan(&test.store, sql, vec![]).await;
        assert!(plan.contains("megolm_inbound_sessions_created"), "{plan}");
    }
}

#[tokio::test]
async fn users_messages_and_requests_are_found_by_index() {
    for test in testing::both().await {
        let store = &test.store;
        let user = ["account_id", "user_id"];
        assert_indexed(store, "crypto_devices", &user, users::OF_USER, values![1_i64, "@u"]).await;
        assert_indexed(store, "crypto_identities", &user, users::IDENTITY, values![1_i64, "@u"]).await;
        let device = ["account_id", "user_id", "device_id"];
        let rows = vec![values![1_i64, "@u", "D"]];
        assert_many_indexed(store, "crypto_devices", &device, users::DELETE_DEVICES, vec![], rows).await;
        let sender = ["account_id", "sender_key"];
        assert_indexed(store, "olm_sessions", &sender, olm::FIND_SESSIONS, values![1_i64, "k"]).await;
        let hash = ["account_id", "sender_key", "hash"];
        assert_indexed(store, "olm_hashes", &hash, olm::IS_KNOWN, values![1_i64, "k", "h"]).await;
        let withheld = ["account_id", "room_id", "session_id"];
        let values = values![1_i64, "!r", "s"];
        assert_indexed(store, "megolm_withheld", &withheld, rooms::FIND_WITHHELD, values).await;
        let info = ["account_id", "info"];
        assert_indexed(store, "crypto_key_requests", &info, requests::BY_INFO, values![1_i64, "i"]).await;
    }
}
