use std::time::Duration;

use ruma::{device_id, room_id, user_id};

use super::*;
use crate::{
    model::Role,
    store::{Store, accounts},
    testing::{self, START},
};

const LATER: Timestamp = Timestamp(START.0 + 3_600_000);

fn row(relay: Relay, since: Option<Timestamp>, managed_by: Option<&str>) -> RoomRow {
    let managed_by = managed_by.map(|bot| bot.try_into().unwrap());
    RoomRow { unrelayed_since: since, managed_by, ..RoomRow::bare(relay) }
}

async fn put(store: &Store, rooms: &[(&str, RoomRow)]) {
    let rooms: Vec<_> = rooms.iter().map(|(id, row)| ((*id).try_into().unwrap(), row.clone())).collect();
    let mut tx = store.begin().await.unwrap();
    put_many(&mut tx, store.seal().unwrap(), &rooms, START).await.unwrap();
    tx.commit().await.unwrap();
}

async fn due_rooms(store: &Store, now: Timestamp) -> Vec<(String, Timestamp)> {
    let rooms = due(store.db(), now, 10).await.unwrap();
    rooms.into_iter().map(|room| (room.room_id.to_string(), room.due_at)).collect()
}

#[tokio::test]
async fn what_came_of_rooms_stays_until_it_is_settled_that_they_are_not_relayed() {
    for test in testing::both().await {
        let store = &test.store;
        let bot = "@bot:a.b";
        let rooms = [
            ("!yes", row(Relay::Yes, None, None)),
            ("!unknown", row(Relay::Unknown, None, None)),
            ("!held", row(Relay::No, Some(START), None)),
            ("!settled", row(Relay::No, None, None)),
            ("!managed", row(Relay::No, None, Some(bot))),
        ];
        put(store, &rooms).await;
        let ids: Vec<&RoomId> = rooms.iter().map(|(id, _)| <&RoomId>::try_from(*id).unwrap()).collect();
        let found = find_many(store.db(), store.seal().unwrap(), &ids).await.unwrap();
        for (id, row) in &rooms {
            assert_eq!(found[<&RoomId>::try_from(*id).unwrap()], *row);
        }
        let names: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
        assert_eq!(not_relayed(store.db(), &names).await.unwrap(), ["!settled".to_owned()].into());
        let unread = unrelayed(store.db(), &ids).await.unwrap();
        assert_eq!(unread, ["!settled", "!managed"].map(str::to_owned).into());
        let mut tx = store.begin().await.unwrap();
        let account =
            accounts::insert(&mut tx, user_id!("@o:a.b"), &device_id!("D").to_owned(), Role::Owner, START)
                .await
                .unwrap();
        let sql = "INSERT INTO megolm_inbound_sessions (account_id, room_id, session_id, sender_key, \
                   sender_data_type, backed_up, pickle, created_at) VALUES ($1, $2, 's', 'k', 1, 0, $3, 0)";
        for name in names {
            tx.execute(sql, values![account.0, name, b"sealed".to_vec()]).await.unwrap();
        }
        assert_eq!(delete_unwanted_keys(&mut tx).await.unwrap(), 1);
        let left = "SELECT CAST(1 AS BIGINT) FROM megolm_inbound_sessions WHERE room_id = '!settled'";
        assert!(tx.fetch_optional::<(i64,)>(left, vec![]).await.unwrap().is_none());
        tx.commit().await.unwrap();
        // Relayed in the end.
        put(store, &[("!held", row(Relay::Yes, None, None))]).await;
        let found = find_many(store.db(), store.seal().unwrap(), &[room_id!("!held")]).await.unwrap();
        assert_eq!(found[room_id!("!held")], row(Relay::Yes, None, None));
    }
}

#[tokio::test]
async fn a_room_that_is_asked_for_while_it_is_read_is_read_again() {
    for test in testing::both().await {
        let store = &test.store;
        let room = room_id!("!room");
        let mut tx = store.begin().await.unwrap();
        ensure(&mut tx, &[room], START).await.unwrap();
        tx.commit().await.unwrap();
        let first = due(store.db(), START, 10).await.unwrap().remove(0);
        // In the same millisecond, too.
        let mut tx = store.begin().await.unwrap();
        set_due(&mut tx, &[room], START).await.unwrap();
        reschedule(&mut tx, &first, None).await.unwrap();
        tx.commit().await.unwrap();
        let second = due(store.db(), START, 10).await.unwrap();
        assert_eq!(second.len(), 1);
        let mut tx = store.begin().await.unwrap();
        reschedule(&mut tx, &second[0], None).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(due_rooms(store, LATER).await, []);
        let mut tx = store.begin().await.unwrap();
        set_due(&mut tx, &[room], START).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(due_rooms(store, START).await, [("!room".to_owned(), START)]);
    }
}

#[tokio::test]
async fn a_second_reading_is_no_later_than_what_is_due_already() {
    for test in testing::both().await {
        let store = &test.store;
        let room = room_id!("!room").to_owned();
        put(store, &[("!room", row(Relay::No, Some(START), None))]).await;
        for (at, expected) in
            [(LATER, LATER), (LATER.plus(Duration::from_secs(1)), LATER), (START, START), (LATER, START)]
        {
            let mut tx = store.begin().await.unwrap();
            set_second_reading(&mut tx, &[(room.clone(), at)]).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(
                due_rooms(store, LATER.plus(Duration::from_mins(1))).await,
                [("!room".to_owned(), expected)]
            );
        }
    }
}
