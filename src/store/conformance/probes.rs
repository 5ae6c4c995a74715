use std::time::Duration;

use super::*;
use crate::{
    store::Looked,
    testing::{self, START},
};

#[tokio::test]
async fn a_probe_is_noted_once_a_way_and_forgotten() {
    for test in testing::both().await {
        let store = &test.store;
        let mut tx = store.begin().await.unwrap();
        put(&mut tx, &[("a".to_owned(), "push"), ("b".to_owned(), "lane")], START).await.unwrap();
        let later = START.plus(Duration::from_secs(1));
        put(&mut tx, &[("a".to_owned(), "push"), ("a".to_owned(), "lane")], later).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(find(store.db(), "a").await.unwrap(), ["lane", "push"]);
        assert!(find(store.db(), "c").await.unwrap().is_empty());
        let mut tx = store.begin().await.unwrap();
        assert_eq!(prune(&mut tx, later).await.unwrap(), 2, "those of the start, each when it first came");
        tx.commit().await.unwrap();
        assert_eq!(find(store.db(), "a").await.unwrap(), ["lane"]);
    }
}

#[tokio::test]
async fn a_store_is_looked_at_without_a_change() {
    for test in testing::both().await {
        let again = testing::open(&test.location, "test pickle key");
        assert_eq!(again.look().await.unwrap(), Looked::Ready);
        assert!(again.is_ready());
        let wrong = testing::open(&test.location, "another pickle key");
        assert!(matches!(wrong.look().await, Err(StoreError::WrongPickleKey)));
        let mut tx = again.begin().await.unwrap();
        tx.execute("DELETE FROM _sqlx_migrations WHERE version >= 17", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        let behind = testing::open(&test.location, "test pickle key").look().await.unwrap();
        assert_eq!(
            behind,
            Looked::Behind(vec![
                "0017_operator",
                "0018_silence",
                "0019_room_readings",
                "0021_settled_rooms",
                "0022_member_redactions",
                "0023_bridge_logins",
                "0028_key_bundles",
                "0029_session_claims",
            ])
        );
        let mut tx = again.begin().await.unwrap();
        tx.execute("DROP TABLE _sqlx_migrations", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(testing::open(&test.location, "test pickle key").look().await.unwrap(), Looked::Empty);
    }
}
