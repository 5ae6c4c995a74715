use super::*;
use crate::{
    store::webhooks,
    testing::{self, START},
};

const A: &str = "!a:example.org";
const B: &str = "!b:example.org";

#[tokio::test]
async fn messages_go_over_page_by_page_with_what_became_of_them() {
    for there in testing::both().await {
        let here = testing::sqlite().await;
        let all = [testing::message(A, 1), testing::message(B, 1), testing::message(A, 2)];
        let mut tx = there.store.begin().await.unwrap();
        let id = webhooks::ensure(&mut tx, "main", START).await.unwrap();
        messages::insert(&mut tx, there.store.seal().unwrap(), &all, START).await.unwrap();
        let queued = |message: &Message, sequence| {
            (message.message_id.as_str().to_owned(), message.room_id.clone(), sequence)
        };
        let queued = [queued(&all[0], 1), queued(&all[1], 1), queued(&all[2], 2)];
        let queued: Vec<_> = queued
            .iter()
            .map(|(message_id, room_id, sequence)| Queued {
                webhooks: vec![(id, Flow::default())],
                message_id,
                room_id,
                sequence: *sequence,
            })
            .collect();
        outbox::enqueue(&mut tx, &queued, START).await.unwrap();
        for sql in [
            "UPDATE deliveries SET state = 'dead', attempts = 9, last_error = 'timeout', finished_at = 5 \
             WHERE room_id = '!b:example.org'",
            "UPDATE messages SET redacted_at = 4 WHERE room_id = '!b:example.org'",
            "UPDATE messages SET purged_at = 3, payload = '' WHERE sequence = 2",
        ] {
            tx.execute(sql, vec![]).await.unwrap();
        }
        tx.commit().await.unwrap();

        let (db, seal) = (there.store.db(), there.store.seal().unwrap());
        let mut first = super::messages(db, seal, 0, 2).await.unwrap();
        let second = super::messages(db, seal, first[1].position, 2).await.unwrap();
        assert_eq!((first.len(), second.len()), (2, 1));
        assert!(super::messages(db, seal, second[0].position, 2).await.unwrap().is_empty());
        first.extend(second);
        let states: Vec<_> = first.iter().map(|one| (one.was_sent(), one.message.encrypted)).collect();
        assert_eq!(states, [(false, true), (true, true), (false, false)]);

        let mut tx = here.store.begin().await.unwrap();
        let main = webhooks::ensure(&mut tx, "main", START).await.unwrap();
        let known = [("main".to_owned(), (main, Flow::default()))].into();
        number(&mut tx, &mut first, START).await.unwrap();
        put_messages(&mut tx, here.store.seal().unwrap(), &first, &known, START).await.unwrap();
        tx.commit().await.unwrap();
        let over = super::messages(here.store.db(), here.store.seal().unwrap(), 0, 9).await.unwrap();
        assert_eq!(over.len(), 3);
        for (before, after) in first.iter().zip(&over) {
            assert_eq!(before.message.payload, after.message.payload);
            assert_eq!((before.purged_at, before.redacted_at), (after.purged_at, after.redacted_at));
            assert_eq!(before.deliveries, after.deliveries);
        }
        assert!(over[2].message.payload.is_empty() && over[2].purged_at == Some(Timestamp(3)));
        let mut tx = here.store.begin().await.unwrap();
        let mut more = vec![first[0].clone()];
        number(&mut tx, &mut more, START).await.unwrap();
        assert_eq!(more[0].message.sequence, 3, "after the last of its room");
    }
}
