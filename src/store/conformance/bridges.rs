//! Bridges: what is pinned stays.

use ruma::{owned_user_id, user_id};

use crate::{
    model::{Membership, Pattern, Relay, Role, ledger::Reason},
    store::{
        accounts,
        bridges::{
            self, BridgeChanges, BridgeConflict, BridgeDevice, BridgeKey, BridgeLogin, DeviceChange,
            PinnedBridge,
        },
        memberships::{self, MembershipChange},
        pending::{self, NewPending, Waits},
        rooms::{self, RoomRow},
    },
    testing::{self, START},
};

#[tokio::test]
async fn a_bridge_that_is_pinned_stays_as_it_is() {
    for test in testing::both().await {
        let store = &test.store;
        let bot = owned_user_id!("@instagrambot:a.org");
        let pinned = |ghosts: Option<&str>, room: &str| PinnedBridge {
            bot: bot.clone(),
            ghosts: ghosts.map(Pattern::new),
            protocol: Some("instagramgo".to_owned()),
            room_id: room.to_owned(),
            creator: Some("@owner:a.org".to_owned()),
            pinned_at: START,
        };
        let key = |bot: &str| BridgeKey {
            state_key: "a.org/instagram".to_owned(),
            bot: bot.try_into().unwrap(),
            room_id: "!1".to_owned(),
        };
        let device = |key: &str, master: Option<&str>, change| BridgeDevice {
            bot: bot.clone(),
            device_id: "DEVICE".to_owned(),
            identity_key: key.to_owned(),
            master_key: master.map(str::to_owned),
            change,
        };
        let login = |login: &str, room: &str| BridgeLogin {
            bot: bot.clone(),
            login: login.to_owned(),
            room_id: room.to_owned(),
        };
        let conflict = BridgeConflict {
            room_id: "!1".to_owned(),
            bot: owned_user_id!("@mallory:a.org"),
            believed: Some(bot.clone()),
            seen_at: START,
        };
        let first = BridgeChanges {
            bridges: vec![pinned(Some("@instagram_*:a.org"), "!1")],
            keys: vec![key("@instagrambot:a.org")],
            logins: vec![login("178", "!1")],
            conflicts: vec![conflict.clone()],
            settled: vec![],
            devices: vec![device("k1", None, DeviceChange::First)],
        };
        let second = BridgeChanges {
            bridges: vec![pinned(None, "!2")],
            keys: vec![key("@mallory:a.org")],
            logins: vec![login("178", "!2"), login("179", "!2")],
            conflicts: vec![conflict.clone()],
            settled: vec![],
            devices: vec![
                device("k1", None, DeviceChange::NewDevice),
                device("k2", Some("m"), DeviceChange::DeviceReplaced),
            ],
        };
        for (changes, at) in [(&first, START), (&second, START.plus(std::time::Duration::from_secs(1)))] {
            let mut tx = store.begin().await.unwrap();
            bridges::put(&mut tx, changes, at).await.unwrap();
            tx.commit().await.unwrap();
        }
        let db = store.db();
        assert_eq!(bridges::pinned(db).await.unwrap(), first.bridges);
        assert_eq!(bridges::keys(db).await.unwrap(), second.keys, "who takes a key over has it");
        let logins = [first.logins[0].clone(), second.logins[1].clone()];
        assert_eq!(bridges::logins(db).await.unwrap(), logins);
        assert_eq!(bridges::conflicts(db, 10).await.unwrap(), first.conflicts);
        let devices = [first.devices[0].clone(), second.devices[1].clone()];
        assert_eq!(bridges::devices(db).await.unwrap(), devices);

        let room: ruma::OwnedRoomId = conflict.room_id.as_str().try_into().unwrap();
        let row = RoomRow::bare(Relay::No);
        for (bots, due) in [(vec![], 0), (vec![bot.clone()], 0), (vec![conflict.bot.clone(), bot.clone()], 1)]
        {
            let mut tx = store.begin().await.unwrap();
            rooms::put_many(&mut tx, store.seal().unwrap(), &[(room.clone(), row.clone())], START)
                .await
                .unwrap();
            rooms::look_again_for(&mut tx, &bots, START).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(rooms::due(db, START, 10).await.unwrap().len(), due, "{bots:?}");
        }

        let settled = vec![(conflict.room_id.clone(), conflict.bot.clone())];
        let mut tx = store.begin().await.unwrap();
        bridges::put(&mut tx, &BridgeChanges { settled, ..BridgeChanges::default() }, START).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(bridges::conflicts(db, 10).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_bridge_is_known_by_the_rooms_that_an_account_has_joined() {
    for test in testing::both().await {
        let store = &test.store;
        let (bot, room) = (user_id!("@instagrambot:a.org"), ruma::owned_room_id!("!room"));
        let row = RoomRow { bridge_bot: Some(bot.to_owned()), ..RoomRow::bare(Relay::Yes) };
        let mut tx = store.begin().await.unwrap();
        let mut account = async |user: &str, role| {
            let user = ruma::UserId::parse(user).unwrap();
            accounts::insert(&mut tx, &user, &"DEVICE".into(), role, START).await.unwrap()
        };
        let ours = account("@coucou:a.org", Role::Bot).await;
        let owner = account("@owner:a.org", Role::Owner).await;
        rooms::put_many(&mut tx, store.seal().unwrap(), &[(room.clone(), row)], START).await.unwrap();
        let change = |account_id, membership| MembershipChange {
            room_id: room.clone(),
            account_id,
            membership,
            inviter: None,
        };
        let changes = [change(ours, Membership::Join), change(owner, Membership::Invite)];
        memberships::put(&mut tx, &changes, START).await.unwrap();
        tx.commit().await.unwrap();
        assert!(rooms::is_bridge_bot(store.db(), bot, ours).await.unwrap());
        assert!(!rooms::is_bridge_bot(store.db(), bot, owner).await.unwrap(), "only invited");
        let mallory = user_id!("@mallory:a.org");
        assert!(!rooms::is_bridge_bot(store.db(), mallory, ours).await.unwrap());
    }
}

#[tokio::test]
async fn held_events_are_found_by_their_sessions() {
    for test in testing::both().await {
        let store = &test.store;
        let pending = |event_id: &str, room: &str, session: Option<&str>, reason: &str| NewPending {
            event_id: event_id.to_owned(),
            room_id: room.to_owned(),
            session_id: session.map(str::to_owned),
            sender: "@a:a.org".to_owned(),
            waits: Waits::Ledger,
            reason: Reason::parse(reason),
            event: b"{}".to_vec(),
            origin_server_ts: START,
            received_at: START,
        };
        let events = [
            pending("$1", "!1", Some("held"), "untrusted_sender"),
            pending("$2", "!1", Some("held"), "untrusted_sender"),
            pending("$3", "!1", Some("other"), "no_key"),
            pending("$4", "!2", Some("held"), "untrusted_sender"),
        ];
        let mut tx = store.begin().await.unwrap();
        pending::insert(&mut tx, store.seal().unwrap(), &events, START).await.unwrap();
        tx.commit().await.unwrap();
        let in_one = ("!1".to_owned(), "held".to_owned());
        let mut all = pending::held(store.db()).await.unwrap();
        all.sort();
        assert_eq!(all, [in_one.clone(), ("!2".to_owned(), "held".to_owned())]);
        let rooms = [ruma::owned_room_id!("!1"), ruma::owned_room_id!("!3")];
        assert_eq!(pending::held_in(store.db(), &rooms).await.unwrap(), [in_one]);
    }
}
