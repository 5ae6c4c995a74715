use ruma::{event_id, room_id, user_id};

use super::*;
use crate::{
    model::{Direction, Message, MessageId, MessageType, ledger::Reason},
    store::{
        Store,
        crypto::plans::assert_indexed,
        messages,
        pending::{self, NewPending, Waits},
    },
    testing::{self, START},
};

fn of(room: &str, user: &str, position: i64) -> MemberRedaction {
    MemberRedaction {
        room_id: room.try_into().unwrap(),
        user_id: user.try_into().unwrap(),
        event: b"{}".to_vec(),
        received_at: START,
        position,
    }
}

fn message(number: u64, sender: &str, message_type: MessageType) -> Message {
    Message {
        message_id: MessageId(format!("msg_{number}")),
        event_id: format!("${number}").try_into().unwrap(),
        room_id: room_id!("!a").to_owned(),
        sequence: number,
        message_type,
        network: None,
        direction: Direction::In,
        sender: sender.try_into().unwrap(),
        origin_server_ts: START,
        kind: None,
        encrypted: false,
        trust: None,
        replaces: (message_type == MessageType::MessageEdited).then(|| event_id!("$1").to_owned()),
        payload: b"said".to_vec(),
    }
}

fn waits(id: &str, room: &str, sender: &str) -> NewPending {
    NewPending {
        event_id: id.to_owned(),
        room_id: room.to_owned(),
        session_id: None,
        sender: sender.to_owned(),
        waits: Waits::Queued,
        reason: Reason::RoomState,
        event: b"{}".to_vec(),
        origin_server_ts: START,
        received_at: START,
    }
}

async fn put_in(store: &Store, members: &[MemberRedaction]) {
    let mut tx = store.begin().await.unwrap();
    put(&mut tx, store.seal().unwrap(), members).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn what_a_member_has_said_is_gone_through_in_parts() {
    for test in testing::both().await {
        let (store, seal) = (&test.store, test.store.seal().unwrap());
        let spammer = user_id!("@spam:example.org").as_str();
        let mut tx = store.begin().await.unwrap();
        let all = [
            message(1, spammer, MessageType::MessageCreated),
            message(2, "@other:example.org", MessageType::MessageCreated),
            message(3, spammer, MessageType::MessageEdited),
            message(4, spammer, MessageType::MessageRedacted),
            message(5, spammer, MessageType::ReactionCreated),
        ];
        messages::insert(&mut tx, seal, &all, START).await.unwrap();
        let waiting = [
            waits("$w1", "!a", spammer),
            waits("$w2", "!a", "@other:example.org"),
            waits("$w3", "!b", spammer),
        ];
        pending::insert(&mut tx, seal, &waiting, START).await.unwrap();
        tx.commit().await.unwrap();
        put_in(store, &[of("!a", spammer, 0)]).await;
        assert_eq!(all_of(store).await, [of("!a", spammer, 0)]);
        let left = pending::queued(store.db(), &["$w1", "$w2", "$w3"]).await.unwrap();
        assert_eq!(left, ["$w2".to_owned(), "$w3".to_owned()].into());
        let first = said(store.db(), &of("!a", spammer, 0), 2).await.unwrap();
        let ids: Vec<_> = first.iter().map(|of| (&*of.event_id, of.replaces.as_deref())).collect();
        assert_eq!(ids, [("$1", None), ("$3", Some("$1"))]);
        let mut tx = store.begin().await.unwrap();
        advance(&mut tx, "!a", spammer, Some(first[1].position)).await.unwrap();
        tx.commit().await.unwrap();
        let next = all_of(store).await.remove(0);
        assert_eq!(next.position, first[1].position);
        let ids: Vec<_> =
            said(store.db(), &next, 2).await.unwrap().into_iter().map(|of| of.event_id).collect();
        assert_eq!(ids, ["$5"]);
        // Asked for again, it begins again.
        put_in(store, &[of("!a", spammer, 0)]).await;
        assert_eq!(all_of(store).await[0].position, 0);
        let mut tx = store.begin().await.unwrap();
        advance(&mut tx, "!a", spammer, None).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(all_of(store).await, []);
    }
}

async fn all_of(store: &Store) -> Vec<MemberRedaction> {
    all(store.db(), store.seal().unwrap()).await.unwrap()
}

#[tokio::test]
async fn what_a_member_has_said_is_found_by_index() {
    for test in testing::both().await {
        let store = &test.store;
        let values = values!["!a", 0_i64, "@spam:example.org", 10_i64];
        assert_indexed(store, "messages", &["room_id"], SAID, values).await;
        let values = values!["!a", "@spam:example.org"];
        assert_indexed(store, "pending_events", &["room_id"], DELETE_WAITING, values).await;
    }
}
