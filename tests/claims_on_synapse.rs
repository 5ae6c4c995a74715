//! A member who takes the bridge's sessions for her own, and copies what is said in them: all that the bridge says
//! arrives as the bridge's, whoever was first.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use vodozemac::megolm::{GroupSession, SessionConfig};

use crate::support::{
    coucou::Coucou,
    device::{Device, Peer, send_encrypted},
    postgres::Database,
    receiver::Receiver,
    synapse::{Options, Synapse, User},
    until,
};

const BOT: &str = "@coucou:localhost";
const BRIDGE: &str = "@instagrambot:localhost";
const GHOST: &str = "@instagram_1:localhost";
const MALLORY: &str = "@mallory:localhost";
const PASSWORD: &str = "the password of a scenario";
const ARRIVAL: Duration = Duration::from_mins(2);

/// A portal with a ghost, with Mallory, and with coucou.
struct Scene {
    coucou: Coucou,
    _synapse: Synapse,
    database: Database,
    receiver: Receiver,
    bot: Peer,
    bridge: Device,
    ghost: User,
    mallory: Device,
    portal: String,
}

impl Scene {
    async fn set() -> Self {
        let (coucou, receiver, database) = tokio::join!(Coucou::new(), Receiver::start(), Database::create());
        let options = Options { registrations: vec![coucou.registration()], encrypted: true };
        let synapse = Synapse::start(options).await;
        let bridge = synapse.user("instagrambot", PASSWORD).await;
        let ghost = synapse.user("instagram_1", PASSWORD).await;
        let mallory = synapse.user("mallory", PASSWORD).await;
        let mut coucou = coucou.homeserver(&synapse.url()).store(&database.url()).webhook(&receiver);
        coucou.start().await;
        let bot = Peer::of(BOT, &bridge).await;
        let info = json!({"bridgebot": BRIDGE, "protocol": {"id": "instagramgo"}, "channel": {"id": "1"}});
        let encryption = json!({"algorithm": "m.megolm.v1.aes-sha2"});
        let options = json!({
            "invite": [BOT, GHOST, MALLORY],
            "initial_state": [
                {"type": "m.bridge", "state_key": "localhost/instagram", "content": info},
                {"type": "m.room.encryption", "state_key": "", "content": encryption},
            ],
        });
        let portal = bridge.create_room(&options).await;
        for user in [&ghost, &mallory] {
            user.request("POST", &format!("v3/join/{portal}"), Some(&json!({}))).await;
        }
        until("coucou to join", ARRIVAL, async || {
            let members = ghost.request("GET", &format!("v3/rooms/{portal}/joined_members"), None).await;
            members["joined"].get(BOT).map(drop)
        })
        .await;
        let (bridge, mallory) = (Device::new(bridge), Device::new(mallory));
        mallory.publish().await;
        Self { coucou, _synapse: synapse, database, receiver, bot, bridge, ghost, mallory, portal }
    }

    /// What the bridge says in a session: the ciphertext, for whoever sends it.
    fn words(&self, session: &mut GroupSession) -> Value {
        self.bridge.encrypt(&self.portal, session, "from the bridge")
    }

    async fn say(&self, user: &User, content: &Value) -> String {
        send_encrypted(user, &self.portal, content).await
    }

    async fn by_bridge(&mut self, session: &GroupSession) {
        self.bridge.share(&self.bot, &self.portal, session).await;
    }

    async fn by_mallory(&mut self, session: &GroupSession) {
        self.mallory.share(&self.bot, &self.portal, session).await;
    }

    /// Waits until so many room keys are stored.
    async fn keys(&self, count: i64) {
        let statement = "SELECT COUNT(*) FROM megolm_inbound_sessions";
        until("the room keys", ARRIVAL, async || {
            (self.database.number(statement).await == count).then_some(())
        })
        .await;
    }

    /// Waits until the ledger holds so many events, and answers their reasons.
    async fn ledger(&self, count: usize) -> BTreeMap<String, String> {
        until(&format!("{count} events on the ledger"), ARRIVAL, async || {
            let mut connection = PgConnection::connect(&self.database.url()).await.ok()?;
            let statement = "SELECT event_id, reason FROM pending_events";
            let rows: Vec<(String, String)> =
                sqlx::query_as(statement).fetch_all(&mut connection).await.ok()?;
            (rows.len() == count).then(|| rows.into_iter().collect())
        })
        .await
    }

    /// Waits for all that should be delivered, and compares the trust.
    async fn delivered(&self, expected: &BTreeMap<String, &str>) {
        let messages = self.receiver.wait_for(expected.len(), ARRIVAL).await;
        let trust = |message: &crate::support::receiver::Attempt| {
            message.data()["encryption"]["trust"].as_str().unwrap_or_default().to_owned()
        };
        let found: BTreeMap<_, _> =
            messages.iter().map(|message| (message.event_id().to_owned(), trust(message))).collect();
        let expected: BTreeMap<_, _> =
            expected.iter().map(|(event_id, trust)| (event_id.clone(), (*trust).to_owned())).collect();
        assert_eq!(found, expected, "{}", self.coucou.log());
    }
}

fn session() -> GroupSession {
    GroupSession::new(SessionConfig::version_1())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_cannot_take_a_session_from_its_bridge() {
    let mut scene = Scene::set().await;
    let mut expected = BTreeMap::new();
    let (ghost, mallory) = (scene.ghost.clone(), scene.mallory.user.clone());

    // Copies while nobody knows the bridge's device: one before its original, one after it.
    let mut unknown = session();
    scene.by_bridge(&unknown).await;
    scene.keys(1).await;
    let (first, second) = (scene.words(&mut unknown), scene.words(&mut unknown));
    let mut copies = vec![scene.say(&mallory, &first).await];
    for words in [&first, &second] {
        expected.insert(scene.say(&ghost, words).await, "bridge");
    }
    copies.push(scene.say(&mallory, &second).await);
    scene.ledger(4).await;
    scene.bridge.publish().await;
    scene.delivered(&expected).await;
    let ledger = scene.ledger(2).await;
    assert!(copies.iter().all(|copy| ledger[copy] == "untrusted_sender"), "{ledger:?}");

    // Her key before the bridge's. What she copies then is hers, but for what the bridge has said already.
    let mut before = session();
    scene.by_mallory(&before).await;
    scene.keys(2).await;
    scene.by_bridge(&before).await;
    let said = scene.words(&mut before);
    expected.insert(scene.say(&ghost, &said).await, "bridge");
    scene.delivered(&expected).await;
    let replay = scene.say(&mallory, &said).await;
    let said = scene.words(&mut before);
    expected.insert(scene.say(&mallory, &said).await, "unverified");
    expected.insert(scene.say(&ghost, &said).await, "bridge");
    scene.delivered(&expected).await;
    assert_eq!(scene.ledger(3).await[&replay], "replay");

    // Her key with the bridge's, in both orders, in one answer of the key lane.
    scene.coucou.kill9();
    for bridge_first in [true, false] {
        let mut with = session();
        if bridge_first {
            scene.by_bridge(&with).await;
        }
        scene.by_mallory(&with).await;
        if !bridge_first {
            scene.by_bridge(&with).await;
        }
        let said = scene.words(&mut with);
        expected.insert(scene.say(&ghost, &said).await, "bridge");
    }
    scene.coucou.start().await;
    scene.delivered(&expected).await;

    // Her key after the bridge's.
    let mut after = session();
    scene.by_bridge(&after).await;
    let said = scene.words(&mut after);
    expected.insert(scene.say(&ghost, &said).await, "bridge");
    scene.delivered(&expected).await;
    scene.by_mallory(&after).await;
    let said = scene.words(&mut after);
    expected.insert(scene.say(&ghost, &said).await, "bridge");
    scene.delivered(&expected).await;
    scene.ledger(3).await;
}
