//! From a SQLite store into both databases: once, twice, and half of it before.

use matrix_sdk_crypto::{
    Account as OlmAccount,
    olm::InboundGroupSession,
    store::{CryptoStore as _, types::Changes},
};
use ruma::{OwnedUserId, device_id, room_id, user_id};
use serde_json::{Value, json};

use super::*;
use crate::{
    clock::ManualClock,
    config::{Config, Sources},
    homeserver::Homeserver,
    model::{AccountId, Message, MessageType, WebhookId},
    store::{
        db::{Values, values},
        inbox,
        outbox::{self, Queued, tests::counts},
        pending::{self, NewPending, Waits},
        retention,
    },
    testing::{self, START, TestStore},
};

const ROOM: &str = "!a:example.org";

/// A store with the bot's account, and its lease.
async fn account(store: &Store, device: &str) -> (Account, Lease) {
    let mut tx = store.begin().await.unwrap();
    let user_id: OwnedUserId = user_id!("@coucou:example.org").to_owned();
    accounts::insert(&mut tx, &user_id, &device.into(), Role::Bot, START).await.unwrap();
    let lease = leases::claim(&mut tx, CRYPTO, "test", START, LASTS).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    (accounts::find(store.db(), &user_id).await.unwrap().unwrap(), lease)
}

fn shared(here: &TestStore) -> Shared {
    let pairs = [
        ("COUCOU_HOMESERVER_URL", "http://127.0.0.1:9"),
        ("COUCOU_APPSERVICE_AS_TOKEN", "as-secret"),
        ("COUCOU_APPSERVICE_HS_TOKEN", "hs-secret"),
        ("COUCOU_WEBHOOK_URL", "http://127.0.0.1:9"),
    ];
    let environment = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
    let folder = tempfile::tempdir().unwrap();
    let sources = Sources { file: None, folder: folder.path().to_owned(), environment };
    let config = Config::load(&sources).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let homeserver = Homeserver::new(&config.homeserver.url, config.appservice.as_token.clone()).unwrap();
    Shared {
        config: Arc::new(config),
        store: here.store.clone(),
        homeserver,
        clock: ManualClock::at(START),
        wakes: Wakes::default(),
        bot: Arc::default(),
        signers: Arc::default(),
        stand_in: None,
    }
}

/// The `n`th event of the room as the message with that number.
fn message(n: u64, sequence: u64) -> Message {
    let mut message = testing::message(ROOM, n);
    message.payload = messages::renumbered(&message.payload, sequence).unwrap();
    Message { sequence, ..message }
}

/// A message that takes back the `n`th event.
fn taking_back(n: u64, sequence: u64) -> Message {
    let mut taking = message(90 + n, sequence);
    let mut payload: Value = serde_json::from_slice(&taking.payload).unwrap();
    payload["data"]["redacts"] = json!(message(n, 1).event_id);
    taking.payload = payload.to_string().into_bytes();
    Message { message_type: MessageType::MessageRedacted, ..taking }
}

/// Stores messages with deliveries for a webhook, and answers the webhook's number.
async fn queue(store: &Store, stored: &[Message]) -> WebhookId {
    let mut tx = store.begin().await.unwrap();
    let id = webhooks::ensure(&mut tx, "default", START).await.unwrap();
    crate::store::messages::insert(&mut tx, store.seal().unwrap(), stored, START).await.unwrap();
    let queued = |message: &Message| i64::try_from(message.sequence).unwrap();
    let queued: Vec<_> = stored
        .iter()
        .map(|message| Queued {
            webhooks: vec![(id, Flow::default())],
            message_id: message.message_id.as_str(),
            room_id: &message.room_id,
            sequence: queued(message),
        })
        .collect();
    outbox::enqueue(&mut tx, &queued, START).await.unwrap();
    tx.commit().await.unwrap();
    id
}

async fn execute(store: &Store, sql: &'static str, values: Values) {
    let mut tx = store.begin().await.unwrap();
    tx.execute(sql, values).await.unwrap();
    tx.commit().await.unwrap();
}

fn waiting(event_id: &str) -> NewPending {
    NewPending {
        event_id: event_id.to_owned(),
        room_id: ROOM.to_owned(),
        session_id: Some("session".to_owned()),
        sender: "@instagram_1:example.org".to_owned(),
        waits: Waits::Ledger,
        reason: crate::model::ledger::Reason::NoKey,
        event: b"{\"secret\":1}".to_vec(),
        origin_server_ts: START,
        received_at: START,
    }
}

async fn keys(store: &Store, account: AccountId, sessions: &[&InboundGroupSession]) {
    let crypto = AccountStore::new(store.clone(), account, None, ManualClock::at(START));
    let inbound_group_sessions = sessions.iter().map(|session| (*session).clone()).collect();
    crypto.save_changes(Changes { inbound_group_sessions, ..Changes::default() }).await.unwrap();
}

/// The same session, from a later message on.
async fn later(session: &InboundGroupSession) -> InboundGroupSession {
    InboundGroupSession::from_export(&session.export_at_index(3).await).unwrap()
}

/// What the fallback took: events 2 to 5 of the room under its own numbers, where 2 is known here too; 3 delivered, 4
/// tried, 5 not; one more that takes back event 1 of here.
async fn fill(there: &Store, account: AccountId, sessions: [&InboundGroupSession; 3]) {
    let stored = [message(2, 1), message(3, 2), message(4, 3), message(5, 4), taking_back(1, 5)];
    queue(there, &stored).await;
    let [_, three, four, ..] = &stored;
    let delivered = "UPDATE deliveries SET state = 'delivered', attempts = 2, last_status = 204, finished_at = 7 \
         WHERE message_id = $1";
    execute(there, delivered, values![three.message_id.as_str()]).await;
    execute(there, "UPDATE room_queues SET pending_count = pending_count - 1", vec![]).await;
    let tried = "UPDATE deliveries SET attempts = 1, last_status = 503 WHERE message_id = $1";
    execute(there, tried, values![four.message_id.as_str()]).await;
    let mut tx = there.begin().await.unwrap();
    let seal = there.seal().unwrap();
    let events = [waiting("$waits"), waiting(message(2, 1).event_id.as_str())];
    pending::insert(&mut tx, seal, &events, START).await.unwrap();
    let used = [((ROOM.to_owned(), "session".to_owned(), 4), "$used".to_owned())];
    stored_indexes(&mut tx, &used).await;
    redacted::put(&mut tx, &[(ROOM.to_owned(), "$gone".to_owned())], START).await.unwrap();
    let body = inbox::seal_body(seal, b"{\"events\":[]}").unwrap();
    inbox::accept(&mut tx, "txn".into(), body, START).await.unwrap();
    tx.commit().await.unwrap();
    keys(there, account, &sessions).await;
}

async fn stored_indexes(tx: &mut Tx, used: &[(stored::MegolmIndex, String)]) {
    stored::use_indexes(tx, used, START).await.unwrap();
}

/// Number, state, attempts, when it was taken back; id and payload.
type RoomRow = (i64, String, i64, Option<i64>, String, Vec<u8>);

/// Number, state of the delivery, attempts, whether it was taken back, and the number that the payload tells.
async fn room(store: &Store) -> Vec<(i64, String, i64, bool, u64)> {
    let rows: Vec<RoomRow> = store
        .db()
        .fetch_all(
            "SELECT m.sequence, d.state, d.attempts, m.redacted_at, m.message_id, m.payload FROM messages AS m \
             JOIN deliveries AS d ON d.message_id = m.message_id ORDER BY m.sequence",
            vec![],
        )
        .await
        .unwrap();
    let told = |id: &str, payload: &[u8]| {
        let payload = store.seal().unwrap().open("messages", id, payload).unwrap();
        serde_json::from_slice::<Value>(&payload).unwrap()["data"]["sequence"].as_u64().unwrap()
    };
    let shown = |row: RoomRow| {
        let told = told(&row.4, &row.5);
        (row.0, row.1, row.2, row.3.is_some(), told)
    };
    rows.into_iter().map(shown).collect()
}

#[tokio::test]
async fn what_is_undelivered_is_merged_beside_messages_whose_content_was_deleted() {
    for here in testing::both().await {
        let there = testing::sqlite().await;
        let (account, lease) = account(&here.store, "POSTGRES").await;
        self::account(&there.store, "FALLBACK").await;
        let stored = [message(2, 1), message(3, 2)];
        queue(&there.store, &stored).await;
        let delivered =
            "UPDATE deliveries SET state = 'delivered', attempts = 1, finished_at = 7 WHERE message_id = $1";
        execute(&there.store, delivered, values![stored[0].message_id.as_str()]).await;
        execute(&there.store, "UPDATE room_queues SET pending_count = pending_count - 1", vec![]).await;
        let mut tx = there.store.begin().await.unwrap();
        let (before, from) = (START.plus(LASTS), retention::Place::default());
        assert_eq!(retention::purge_content(&mut tx, before, &from, START).await.unwrap().count, 1);
        tx.commit().await.unwrap();
        let id = queue(&here.store, &[message(1, 1)]).await;
        let shared = shared(&here);
        let routes =
            [Route { webhook_id: id, filter: crate::model::Filter::default(), flow: Flow::default() }];
        let (there, accounts) = (there.store.clone(), [account]);
        let merging = Merging { shared: &shared, lease: &lease, routes: &routes, accounts: &accounts, there };
        assert_eq!(merging.carry_messages().await.unwrap(), (2, 1));
        let rows: Vec<(i64, String, Option<i64>, String)> = here
            .store
            .db()
            .fetch_all(
                "SELECT m.sequence, m.sender, m.purged_at, d.state FROM messages AS m \
                 JOIN deliveries AS d ON d.message_id = m.message_id ORDER BY m.sequence",
                vec![],
            )
            .await
            .unwrap();
        let shown: Vec<_> =
            rows.iter().map(|row| (row.0, row.1.is_empty(), row.2.is_some(), row.3.as_str())).collect();
        let expected =
            [(1, false, false, "pending"), (2, true, true, "delivered"), (3, false, false, "pending")];
        assert_eq!(shown, expected);
    }
}

#[tokio::test]
async fn a_merge_that_is_begun_anew_doubles_nothing() {
    for here in testing::both().await {
        let there = testing::sqlite().await;
        let (account, lease) = account(&here.store, "POSTGRES").await;
        let (other, _) = self::account(&there.store, "FALLBACK").await;
        let bridge = OlmAccount::with_device_id(user_id!("@instagrambot:example.org"), device_id!("BRIDGE"));
        let session =
            async || bridge.create_group_session_pair_with_defaults(room_id!("!a:example.org")).await.1;
        let (new, better, worse) = (session().await, session().await, session().await);
        let (better_here, worse_there) = (later(&better).await, later(&worse).await);
        keys(&here.store, account.id, &[&better_here, &worse]).await;
        fill(&there.store, other.id, [&new, &better, &worse_there]).await;
        let id = queue(&here.store, &[message(1, 1), message(2, 2)]).await;
        let shared = shared(&here);
        let route = Route { webhook_id: id, filter: crate::model::Filter::default(), flow: Flow::default() };
        let (routes, accounts) = ([route], [account.clone()]);
        let merging = Merging {
            shared: &shared,
            lease: &lease,
            routes: &routes,
            accounts: &accounts,
            there: there.store.clone(),
        };
        // The first process dies before it is done.
        assert_eq!(merging.carry_keys().await.unwrap(), Merged { new: 1, better: 1, known: 1, bad: 0 });
        assert_eq!(merging.carry_messages().await.unwrap(), (4, 3));
        let again = merging.carry().await.unwrap();
        let known = Merged { known: 3, ..Merged::default() };
        let rest = Counts { keys: known, messages: 0, to_deliver: 0, waiting: 1, transactions: 1 };
        assert_eq!(again, rest);
        let row = |sequence, state: &str, attempts, redacted, told| {
            (sequence, state.to_owned(), attempts, redacted, told)
        };
        let expected = [
            row(1, "pending", 0, true, 1),
            row(2, "pending", 0, false, 2),
            row(3, "delivered", 2, false, 2),
            row(4, "pending", 0, false, 3),
            row(5, "pending", 0, false, 5),
            row(6, "pending", 0, false, 6),
        ];
        for _ in 0..2 {
            assert_eq!(room(&here.store).await, expected, "numbered on; what was sent keeps its body");
            assert_eq!(counts(&here.store).await, [(ROOM.to_owned(), 5, 5)]);
            merging.carry().await.unwrap();
        }
        check_rest(&here.store).await;
        let crypto = AccountStore::new(here.store.clone(), account.id, None, ManualClock::at(START));
        for session in [&new, &better, &worse] {
            let found = crypto.get_inbound_group_session(session.room_id(), session.session_id()).await;
            assert_eq!(found.unwrap().unwrap().first_known_index(), 0);
        }
    }
}

async fn check_rest(store: &Store) {
    let (db, seal) = (store.db(), store.seal().unwrap());
    let waiting = pending::ledger(db, seal, &[(ROOM.to_owned(), "session".to_owned())]).await.unwrap();
    let waiting: Vec<_> = waiting.iter().map(|event| (&*event.event_id, &*event.event)).collect();
    assert_eq!(waiting, [("$waits", b"{\"secret\":1}".as_slice())]);
    let index = (ROOM.to_owned(), "session".to_owned(), 4);
    assert_eq!(stored::used_indexes(db, std::slice::from_ref(&index)).await.unwrap()[&index], "$used");
    assert_eq!(redacted::find(db, &[(ROOM, "$gone")]).await.unwrap().len(), 1);
    let rows = inbox::waiting(db, seal, 9, 1000).await.unwrap();
    assert_eq!(
        rows.iter().map(|row| row.body.as_deref()).collect::<Vec<_>>(),
        [Some(&b"{\"events\":[]}"[..])]
    );
    let last: Vec<(i64,)> = db.fetch_all("SELECT last_sequence FROM rooms", vec![]).await.unwrap();
    assert_eq!(last, [(6,)]);
}

#[tokio::test]
async fn a_merge_ends_with_the_lease() {
    let (here, there) = (testing::postgres().await, testing::sqlite().await);
    let (account, lease) = account(&here.store, "POSTGRES").await;
    self::account(&there.store, "FALLBACK").await;
    queue(&there.store, &[message(1, 1)]).await;
    let mut tx = here.store.begin().await.unwrap();
    let later = START.plus(LASTS * 2);
    leases::claim(&mut tx, CRYPTO, "other", later, LASTS).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    let (shared, accounts) = (shared(&here), [account]);
    let there = there.store.clone();
    let merging = Merging { shared: &shared, lease: &lease, routes: &[], accounts: &accounts, there };
    let ended = merging.carry().await;
    assert!(
        matches!(ended, Err(MergeError::Into(CryptoError::Database(StoreError::LeaseLost)))),
        "{ended:?}"
    );
    assert!(room(&here.store).await.is_empty());
}
