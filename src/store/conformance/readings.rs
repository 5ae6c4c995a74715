use std::time::Duration;

use ruma::{UserId, device_id, room_id};

use super::*;
use crate::{
    model::{Membership, Role},
    store::{
        accounts,
        db::values,
        memberships::{self, MembershipChange},
        pending::{self, NewPending, Waits},
        rooms as rooms_table,
    },
    testing::{self, START},
};

fn gap(room_id: &RoomId) -> Reading {
    Reading::new(room_id, AccountId(1), Cause::Gap, Some("t1".to_owned()))
}

#[tokio::test]
async fn a_reading_is_due_until_it_has_ended_and_suspends_until_it_is_deleted() {
    for test in testing::both().await {
        let (store, db, room) = (&test.store, test.store.db(), room_id!("!r:a.b"));
        let mut reading = Reading { join_id: Some("$join".to_owned()), ..gap(room) };
        let mut tx = store.begin().await.unwrap();
        put(&mut tx, &reading, START).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(due(db, START.minus(Duration::from_secs(1)), 10).await.unwrap(), []);
        assert_eq!(due(db, START, 10).await.unwrap(), [reading.clone()]);

        let mut tx = store.begin().await.unwrap();
        set_until(&mut tx, room, "$last").await.unwrap();
        (reading.from_token, reading.join_id) = (Some("t2".to_owned()), None);
        (reading.read_count, reading.missing_count) = (100, 7);
        advance(&mut tx, &reading, START).await.unwrap();
        let later = START.plus(Duration::from_secs(2));
        postpone(&mut tx, room, later, 1).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(due(db, START, 10).await.unwrap(), []);
        let expected = Reading { until_id: Some("$last".to_owned()), tries: 1, ..reading.clone() };
        assert_eq!(due(db, later, 10).await.unwrap(), [expected]);

        let mut tx = store.begin().await.unwrap();
        assert!(!finish(&mut tx, room, None).await.unwrap(), "it ends with another event");
        assert!(finish(&mut tx, room, Some("$last")).await.unwrap());
        assert!(!finish(&mut tx, room, Some("$last")).await.unwrap(), "it has ended");
        postpone(&mut tx, room, later, 1).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(due(db, later, 10).await.unwrap(), []);
        assert_eq!(rooms(db).await.unwrap(), [room.to_owned()].into());
        let mut tx = store.begin().await.unwrap();
        let other = room_id!("!other:a.b");
        put(&mut tx, &gap(other), START).await.unwrap();
        assert_eq!(delete_ended(&mut tx, &[room, other]).await.unwrap(), [room.to_string()].into());
        tx.commit().await.unwrap();
        assert_eq!(rooms(db).await.unwrap(), [other.to_owned()].into(), "it is still to be read");
        let mut tx = store.begin().await.unwrap();
        delete(&mut tx, &[other]).await.unwrap();
        tx.commit().await.unwrap();
        assert!(rooms(db).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_room_that_is_being_read_is_read_on_and_not_from_elsewhere() {
    for test in testing::both().await {
        let (store, db) = (&test.store, test.store.db());
        let (read, ended, other) = (room_id!("!read:a.b"), room_id!("!ended:a.b"), room_id!("!other:a.b"));
        let mut tx = store.begin().await.unwrap();
        for room in [read, ended] {
            put(&mut tx, &gap(room), START).await.unwrap();
            set_until(&mut tx, room, "$last").await.unwrap();
        }
        assert!(finish(&mut tx, ended, Some("$last")).await.unwrap());
        assert_eq!(extend(&mut tx, &[read, ended, other]).await.unwrap(), [read.to_string()].into());
        assert!(!finish(&mut tx, read, Some("$last")).await.unwrap(), "there is more to read by now");
        assert!(finish(&mut tx, read, None).await.unwrap());
        let again = Reading { from_token: Some("t9".to_owned()), ..gap(read) };
        put(&mut tx, &again, START).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(due(db, START, 10).await.unwrap(), [gap(read)], "from where it was");
    }
}

#[tokio::test]
async fn an_event_is_unknown_unless_it_is_a_message_or_waits_or_was_taken_back_or_passed_over() {
    for test in testing::both().await {
        let (store, room) = (&test.store, room_id!("!r:a.b"));
        let waiting = NewPending {
            event_id: "$waits".to_owned(),
            room_id: room.to_string(),
            session_id: None,
            sender: "@a:example.org".to_owned(),
            waits: Waits::Queued,
            reason: crate::model::ledger::Reason::Order,
            event: b"{}".to_vec(),
            origin_server_ts: START,
            received_at: START,
        };
        let mut tx = store.begin().await.unwrap();
        pending::insert(&mut tx, store.seal().unwrap(), &[waiting], START).await.unwrap();
        dismissed::put(&mut tx, &[("$passed".to_owned(), room.to_string())], START).await.unwrap();
        redacted::put(&mut tx, &[(room.to_string(), "$taken".to_owned())], START).await.unwrap();
        let sql = "INSERT INTO messages (message_id, event_id, room_id, sequence, type, direction, sender, \
                   origin_server_ts, created_at, payload) \
                   VALUES ('m', '$told', '!r:a.b', 1, 'message.created', 'in', '', 0, 0, $1)";
        tx.execute(sql, values![b"{}".to_vec()]).await.unwrap();
        tx.commit().await.unwrap();
        let ids = ["$waits", "$passed", "$taken", "$told", "$never"];
        assert_eq!(unknown(store.db(), room, &ids).await.unwrap(), ["$never".to_owned()].into());
        assert!(unknown(store.db(), room, &[]).await.unwrap().is_empty());
        let mut tx = store.begin().await.unwrap();
        assert_eq!(dismissed::prune(&mut tx, START).await.unwrap(), 0);
        assert_eq!(dismissed::prune(&mut tx, START.plus(Duration::from_millis(1))).await.unwrap(), 1);
        tx.commit().await.unwrap();
        assert!(dismissed::find(store.db(), &ids).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn what_is_read_goes_before_what_was_pushed_in_the_order_of_reading() {
    for test in testing::both().await {
        let (store, room) = (&test.store, room_id!("!r:a.b"));
        let seal = store.seal().unwrap();
        let event = |id: &str| NewPending {
            event_id: id.to_owned(),
            room_id: room.to_string(),
            session_id: None,
            sender: "@a:example.org".to_owned(),
            waits: Waits::Queued,
            reason: crate::model::ledger::Reason::Order,
            event: id.as_bytes().to_vec(),
            origin_server_ts: START,
            received_at: START,
        };
        let mut tx = store.begin().await.unwrap();
        // What an earlier reading left is read again.
        pending::insert_read(&mut tx, seal, &[(event("$3"), false), (event("$1"), false)]).await.unwrap();
        pending::demote(&mut tx, &[room]).await.unwrap();
        pending::insert(&mut tx, seal, &[event("$before"), event("$3")], START).await.unwrap();
        pending::promote(&mut tx, &[room]).await.unwrap();
        pending::insert(&mut tx, seal, &[event("$4"), event("$5")], START).await.unwrap();
        pending::insert_read(&mut tx, seal, &[(event("$1"), false)]).await.unwrap();
        pending::mark_overtaken(&mut tx, &[room]).await.unwrap();
        let page = [(event("$2"), true), (event("$3"), false), (event("$4"), false)];
        pending::insert_read(&mut tx, seal, &page).await.unwrap();
        // A page that is stored again changes nothing.
        pending::insert_read(&mut tx, seal, &page[1..]).await.unwrap();
        tx.commit().await.unwrap();
        let queue = pending::queue(store.db(), seal, room, 10).await.unwrap();
        let queue: Vec<_> = queue.iter().map(|row| (row.event_id.as_str(), row.late)).collect();
        let expected =
            [("$before", false), ("$1", true), ("$2", true), ("$3", false), ("$4", false), ("$5", false)];
        assert_eq!(queue, expected);
    }
}

#[tokio::test]
async fn relayed_rooms_are_compared_by_an_account_that_is_in_them_since_their_first_message() {
    for test in testing::both().await {
        let (store, db) = (&test.store, test.store.db());
        let (one, left, no) = (room_id!("!one:a.b"), room_id!("!left:a.b"), room_id!("!no:a.b"));
        let mut tx = store.begin().await.unwrap();
        rooms_table::ensure(&mut tx, &[one, left, no], START).await.unwrap();
        let sql = "UPDATE rooms SET relay = 'yes' WHERE room_id <> $1";
        tx.execute(sql, values![no.as_str()]).await.unwrap();
        let mut ids = Vec::new();
        for name in ["@a:a.b", "@b:a.b", "@c:a.b"] {
            let (user, device) = (<&UserId>::try_from(name).unwrap(), device_id!("D").to_owned());
            ids.push(accounts::insert(&mut tx, user, &device, Role::Owner, START).await.unwrap());
        }
        let change = |room: &RoomId, account: usize, membership| MembershipChange {
            room_id: room.to_owned(),
            account_id: ids[account - 1],
            membership,
            inviter: None,
        };
        let changes = [
            change(one, 3, Membership::Join),
            change(one, 2, Membership::Join),
            change(one, 1, Membership::Invite),
            change(left, 1, Membership::Leave),
            change(no, 1, Membership::Join),
        ];
        memberships::put(&mut tx, &changes, START).await.unwrap();
        for (sequence, at) in [(1_i64, 500_i64), (2, 400)] {
            let sql = "INSERT INTO messages (message_id, event_id, room_id, sequence, type, direction, sender, \
                       origin_server_ts, created_at, payload) \
                       VALUES ($1, $1, '!one:a.b', $2, 'message.created', 'in', '', 0, $3, $4)";
            tx.execute(sql, values![sequence.to_string(), sequence, at, b"{}".to_vec()]).await.unwrap();
        }
        tx.commit().await.unwrap();
        assert_eq!(rooms_table::relayed(db).await.unwrap(), [(one.to_owned(), ids[1])]);
        assert_eq!(messages::first_at(db, one).await.unwrap(), Some(Timestamp(500)));
        assert_eq!(messages::first_at(db, no).await.unwrap(), None);
        let due: Vec<_> = rooms_table::due(db, START, 9).await.unwrap();
        let mut due: Vec<_> = due.iter().map(|room| (room.room_id.as_str(), room.is_relayed)).collect();
        due.sort_unstable();
        assert_eq!(due, [("!left:a.b", true), ("!no:a.b", false), ("!one:a.b", true)]);
    }
}
