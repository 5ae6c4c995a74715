use assert_matches::assert_matches;

use super::*;
use crate::{
    clock::ManualClock,
    store::{
        db::values,
        messages,
        outbox::tests::{put, webhook},
    },
    testing::{self, START},
};

const DAY: Duration = Duration::from_hours(24);

struct Office<'a> {
    store: &'a Store,
    clock: &'a ManualClock,
    webhooks: &'a [WebhookId],
    retention: Duration,
}

impl Office<'_> {
    async fn sweep(&self) -> Swept {
        let stop = CancellationToken::new();
        let round = Round {
            store: self.store,
            clock: self.clock,
            periods: Periods::of(self.retention),
            webhooks: self.webhooks,
            holder: "a",
            stop: &stop,
        };
        round.run().await.unwrap()
    }
}

async fn deliver(store: &Store) {
    let mut tx = store.begin().await.unwrap();
    tx.execute("UPDATE deliveries SET state = 'delivered'", vec![]).await.unwrap();
    tx.execute("UPDATE room_queues SET pending_count = 0", vec![]).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn content_expires_by_the_clock_and_ids_much_later() {
    for test in testing::both().await {
        let store = &test.store;
        let clock = ManualClock::at(START);
        let main = webhook(store, "main").await;
        let office = Office { store, clock: &clock, webhooks: &[main], retention: DAY * 30 };
        // More than a batch, so that a round takes several.
        let many: Vec<(&str, i64)> = (1..=retention::BATCH + 7).map(|n| ("!a", n)).collect();
        put(store, &[main], &many, START).await;
        clock.advance(DAY * 40);
        let swept = office.sweep().await;
        assert_eq!((swept.contents, swept.undelivered), (0, many.len() as u64), "nothing was delivered yet");
        deliver(store).await;
        put(store, &[main], &[("!b", 1)], clock.now()).await;
        let swept = office.sweep().await;
        assert_eq!((swept.contents, swept.ids), (many.len() as u64, 0));
        assert_eq!(office.sweep().await, Swept::default());
        let left = messages::newest(store.db(), store.seal().unwrap(), 1000).await.unwrap();
        assert_eq!(left.len(), 1);
        clock.advance(DAY * 300);
        assert_eq!(office.sweep().await.ids, 0);
        clock.advance(DAY * 30);
        assert_eq!(office.sweep().await.ids, many.len() as u64);
    }
}

#[tokio::test]
async fn a_retention_of_nothing_takes_what_is_delivered_and_waits_for_keys_nonetheless() {
    for test in testing::both().await {
        let store = &test.store;
        let clock = ManualClock::at(START);
        let main = webhook(store, "main").await;
        let office = Office { store, clock: &clock, webhooks: &[main], retention: Duration::ZERO };
        put(store, &[main], &[("!a", 1)], START).await;
        put(store, &[], &[("!b", 1)], START).await;
        let mut tx = store.begin().await.unwrap();
        let sql = "INSERT INTO pending_events (event_id, room_id, sender, state, reason, event, \
                   origin_server_ts, received_at) VALUES ('$e', '!a', '@a:b', 'ledger', 'no_key', $1, 0, $2)";
        tx.execute(sql, values![vec![1_u8], START]).await.unwrap();
        tx.commit().await.unwrap();
        let swept = office.sweep().await;
        assert_eq!((swept.contents, swept.undelivered, swept.unread), (1, 1, 0));
        deliver(store).await;
        clock.advance(DAY * 8);
        let swept = office.sweep().await;
        assert_eq!((swept.contents, swept.undelivered, swept.unread), (1, 0, 1));
    }
}

#[tokio::test]
async fn a_webhook_that_is_gone_keeps_its_messages_for_a_week() {
    for test in testing::both().await {
        let store = &test.store;
        let clock = ManualClock::at(START);
        let gone = webhook(store, "gone").await;
        let office = Office { store, clock: &clock, webhooks: &[], retention: DAY };
        put(store, &[gone], &[("!a", 1)], START).await;
        clock.advance(DAY * 6);
        let swept = office.sweep().await;
        assert_eq!((swept.abandoned, swept.contents, swept.undelivered), (0, 0, 1));
        clock.advance(DAY * 2);
        let swept = office.sweep().await;
        assert_eq!((swept.abandoned, swept.contents, swept.undelivered), (1, 1, 0));
        let back = Office { webhooks: &[gone], ..office };
        assert_eq!(back.sweep().await, Swept::default());
    }
}

#[tokio::test]
async fn one_process_at_a_time_deletes() {
    let test = testing::postgres().await;
    let store = &test.store;
    let clock = ManualClock::at(START);
    let office = Office { store, clock: &clock, webhooks: &[], retention: Duration::ZERO };
    put(store, &[], &[("!a", 1)], START).await;
    let mut tx = store.begin().await.unwrap();
    let other = leases::claim(&mut tx, LEASE, "another", clock.now(), LASTS).await.unwrap();
    tx.commit().await.unwrap();
    assert_matches!(other, Some(_));
    assert_eq!(office.sweep().await, Swept::default());
    // It died: its lease ends.
    clock.advance(LASTS * 2);
    assert_eq!(office.sweep().await.contents, 1);
    // And a round gives it back.
    put(store, &[], &[("!a", 2)], START).await;
    assert_eq!(office.sweep().await.contents, 1);
}
