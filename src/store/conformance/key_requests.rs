use std::slice::from_ref;

use ruma::{room_id, user_id};

use super::*;
use crate::{
    model::{Relay, Role, ledger::Reason},
    store::{
        Store, accounts,
        pending::{self, NewPending, Waits},
        rooms::{self, RoomRow},
    },
    testing::{self, START},
};

const ROOM: &str = "!room:example.org";

fn event(event_id: &str, session: &str, waits: Waits, reason: &str) -> NewPending {
    NewPending {
        event_id: event_id.to_owned(),
        room_id: ROOM.to_owned(),
        session_id: Some(session.to_owned()),
        sender: "@a:example.org".to_owned(),
        waits,
        reason: Reason::parse(reason),
        event: event_id.as_bytes().to_vec(),
        origin_server_ts: START,
        received_at: START,
    }
}

/// A relayed room with a ledger, and an account.
async fn stuck(store: &Store, events: &[NewPending]) -> AccountId {
    let mut tx = store.begin().await.unwrap();
    let bot = user_id!("@coucou:example.org");
    let account = accounts::insert(&mut tx, bot, &"D".into(), Role::Bot, START).await.unwrap();
    let room =
        RoomRow { bridge_bot: Some(user_id!("@bridge:example.org").to_owned()), ..RoomRow::bare(Relay::Yes) };
    let seal = store.seal().unwrap();
    let rooms = [(room_id!("!room:example.org").to_owned(), room)];
    rooms::put_many(&mut tx, seal, &rooms, START).await.unwrap();
    pending::insert(&mut tx, seal, events, START).await.unwrap();
    tx.commit().await.unwrap();
    account
}

fn request_for(account_id: AccountId, session_id: &str) -> KeyRequest {
    KeyRequest {
        account_id,
        room_id: ROOM.to_owned(),
        session_id: session_id.to_owned(),
        user_id: "@bridge:example.org".to_owned(),
        device_id: "BRIDGE".to_owned(),
        sender_key: "curve".to_owned(),
        request_id: "r1".to_owned(),
        tries: 0,
    }
}

#[tokio::test]
async fn what_a_key_can_mend_is_asked_for_once() {
    for test in testing::both().await {
        let (store, seal) = (&test.store, test.store.seal().unwrap());
        let events = [
            event("$1", "missing", Waits::Ledger, "no_key"),
            event("$2", "missing", Waits::Ledger, "no_key"),
            event("$3", "late", Waits::Ledger, "unknown_index"),
            event("$4", "refused", Waits::Ledger, "withheld:m.unverified"),
            event("$5", "early", Waits::Ledger, "before_join"),
            event("$6", "replayed", Waits::Ledger, "replay"),
            event("$7", "queued", Waits::Queued, "no_key"),
        ];
        let account = stuck(store, &events).await;
        let db = store.db();
        let wanted = |found: Vec<Wanted>| -> Vec<(String, Vec<u8>)> {
            found.into_iter().map(|wanted| (wanted.session_id, wanted.event)).collect()
        };
        let found = super::wanted(db, seal, 10).await.unwrap();
        assert_eq!(found[0].bridge_bot.as_deref(), Some("@bridge:example.org"));
        let expected = [("early", "$5"), ("refused", "$4"), ("late", "$3"), ("missing", "$2")];
        let expected = expected.map(|(session, event)| (session.to_owned(), event.as_bytes().to_vec()));
        assert_eq!(wanted(found), expected);

        let mut tx = store.begin().await.unwrap();
        let request = request_for(account, "missing");
        plan(&mut tx, from_ref(&request), START, START).await.unwrap();
        plan(&mut tx, from_ref(&request), START, Timestamp(0)).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(wanted(super::wanted(db, seal, 10).await.unwrap()), expected[..3]);
        assert_eq!(due(db, Timestamp(START.0 - 1), 10).await.unwrap(), [], "it keeps its turn");
        assert_eq!(due(db, START, 10).await.unwrap(), from_ref(&request));
        assert_eq!(
            asked(db, account, &[("@bridge:example.org", "curve")].into()).await.unwrap(),
            [],
            "not sent yet"
        );

        let later = Timestamp(START.0 + 60_000);
        let mut tx = store.begin().await.unwrap();
        reschedule(&mut tx, &request, later).await.unwrap();
        set_request_id(&mut tx, &request, "r2").await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(due(db, START, 10).await.unwrap(), []);
        let sent = KeyRequest { tries: 1, request_id: "r2".to_owned(), ..request.clone() };
        assert_eq!(
            asked(db, account, &[("@bridge:example.org", "curve")].into()).await.unwrap(),
            from_ref(&sent)
        );
        for (user, key) in [("@bridge:example.org", "other"), ("@mallory:example.org", "curve")] {
            assert_eq!(asked(db, account, &[(user, key)].into()).await.unwrap(), []);
        }
        let device = ("@bridge:example.org".to_owned(), "BRIDGE".to_owned());
        assert_eq!(outstanding(db).await.unwrap(), [(account, device.0, device.1, 1)]);
        let told = progress(db, &[(ROOM, "missing"), (ROOM, "late")]).await.unwrap();
        assert_eq!(told, [(ROOM.to_owned(), "missing".to_owned(), 1, later)]);

        let stuck = pending::stuck(db, 2).await.unwrap();
        let told: Vec<_> = stuck.iter().map(|stuck| (&*stuck.event_id, &*stuck.reason)).collect();
        assert_eq!(told, [("$6", "replay"), ("$5", "before_join")], "the newest first");
        let stuck = pending::stuck(db, 9).await.unwrap();
        assert_eq!((stuck.len(), stuck[4].event_count), (5, 2), "by session");

        assert_eq!(settled(db, 10).await.unwrap(), []);
        let mut tx = store.begin().await.unwrap();
        pending::delete(&mut tx, &["$1", "$2"]).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(settled(db, 10).await.unwrap(), from_ref(&sent));
        let mut tx = store.begin().await.unwrap();
        delete(&mut tx, &sent).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(settled(db, 10).await.unwrap(), []);
    }
}

#[tokio::test]
async fn forwards_are_counted_by_what_became_of_them() {
    for test in testing::both().await {
        let store = &test.store;
        let account = stuck(store, &[]).await;
        let mut tx = store.begin().await.unwrap();
        for outcome in ["accepted", "not_asked", "accepted"] {
            count_forward(&mut tx, account, outcome, START).await.unwrap();
        }
        tx.commit().await.unwrap();
        let counts = forwards(store.db(), account).await.unwrap();
        assert_eq!(counts, [("accepted".to_owned(), 2), ("not_asked".to_owned(), 1)]);
    }
}
