//! Forgeries, told from outside: none is delivered as genuine, each is on the ledger, and what is genuine goes
//! on arriving.

use std::{collections::BTreeMap, fs, time::Duration};

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::support::{
    coucou::Coucou,
    fake_homeserver::{FakeBridge, FakeHomeserver},
    postgres::Database,
    receiver::{Attempt, Receiver},
    synapse::{Bridge, Client, Options, Sent, Synapse},
    until,
};

const BOT: &str = "@coucou:localhost";
const OWNER: &str = "@owner:localhost";
const MALLORY: &str = "@mallory:localhost";
const GHOST: &str = "@instagram_17840000000000001:localhost";
const OTHER_GHOST: &str = "@facebook_17840000000000001:localhost";
const OTHER_BOT: &str = "@facebookbot:localhost";
const PASSWORD: &str = "the password of a scenario";
const ARRIVAL: Duration = Duration::from_mins(3);

/// Two bridges, coucou for an owner, and Mallory, who is in the portal and has a device.
struct Scene {
    coucou: Coucou,
    synapse: Synapse,
    instagram: Bridge,
    facebook: Bridge,
    mallory: Client,
    receiver: Receiver,
    database: Database,
}

impl Scene {
    async fn set() -> Self {
        let coucou = Coucou::of_owner(OWNER).await.set("COUCOU_ROOMS_RELAY", "all");
        // A bridge may send as all of these, as far as the homeserver is concerned.
        let puppets = ["^@owner:localhost$", "^@mallory:localhost$", "^@facebook_.*:localhost$"];
        let (instagram, facebook) =
            tokio::join!(Bridge::new("instagram", &puppets), Bridge::new("facebook", &[]));
        let registrations = vec![coucou.registration(), instagram.registration(), facebook.registration()];
        let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
        synapse.user("owner", PASSWORD).await;
        synapse.user("mallory", PASSWORD).await;
        let mallory = Client::log_in(&synapse, "mallory", PASSWORD).await;
        let (receiver, database) = (Receiver::start().await, Database::create().await);
        let mut coucou = coucou.homeserver(&synapse.url()).store(&database.url()).webhook(&receiver);
        coucou.start().await;
        Self { coucou, synapse, instagram, facebook, mallory, receiver, database }
    }

    /// Sends a content of Mallory's, in her own Megolm session, as a ghost: the bridge's token lets one.
    async fn send_as_ghost(&self, room_id: &str, wire: &Value) -> String {
        let request = ("PUT", &*format!("rooms/{room_id}/send/m.room.encrypted/forged"));
        let sent = self.instagram.request_as(&self.synapse.url(), GHOST, request, wire).await;
        sent["event_id"].as_str().unwrap().to_owned()
    }

    /// Gives a bot the power to change the portal's state, and lets it in.
    async fn let_in(&self, portal: &str, bot: &str) {
        let (url, owner) = (self.synapse.url(), self.instagram.bot());
        let levels = format!("rooms/{portal}/state/m.room.power_levels");
        let mut content = self.instagram.request_as(&url, &owner, ("GET", &levels), &Value::Null).await;
        content["users"][bot] = json!(100);
        self.instagram.request_as(&url, &owner, ("PUT", &levels), &content).await;
        let invite = format!("rooms/{portal}/invite");
        self.instagram.request_as(&url, &owner, ("POST", &invite), &json!({"user_id": bot})).await;
        self.facebook.request_as(&url, bot, ("POST", &format!("join/{portal}")), &json!({})).await;
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

    async fn restart(mut self, change: impl FnOnce(Coucou) -> Coucou) -> Self {
        self.coucou.kill9();
        self.coucou = change(self.coucou);
        self.coucou.start().await;
        self
    }
}

fn only(sent: &Sent) -> String {
    let ids: Vec<_> = sent.messages().map(|line| line.event_id.clone()).collect();
    assert_eq!(ids.len(), 1, "{sent:?}");
    ids[0].clone()
}

fn trust(message: &Attempt) -> (&str, &str, bool) {
    let encryption = &message.data()["encryption"];
    let text = |name: &str| encryption[name].as_str().unwrap_or_default();
    (text("trust"), text("bridged_by"), encryption["flagged"] == json!(true))
}

#[tokio::test(flavor = "multi_thread")]
async fn forgeries_are_held_and_what_is_genuine_arrives() {
    let scene = Scene::set().await;
    let url = scene.synapse.url();
    let instagram = || scene.instagram.send(&url).messages("text");
    let facebook = || scene.facebook.send(&url).messages("text");

    // Genuine: a ghost of each bridge, and the owner by way of the bridge.
    let first = instagram().invite(BOT).run().await;
    let portal = first.portal().to_owned();
    let mut genuine = vec![only(&first), only(&facebook().invite(BOT).run().await)];
    genuine.push(only(&instagram().room(&portal).puppet(OWNER).run().await));
    let mut joining = instagram().room(&portal).invite(MALLORY).start();
    joining.portal().await;
    scene.mallory.join(&portal).await;
    genuine.push(only(&joining.finish().await));
    let messages = scene.receiver.wait_for(genuine.len(), ARRIVAL).await;
    for message in &messages {
        let bot =
            if message.data()["network"] == "messenger" { OTHER_BOT } else { "@instagrambot:localhost" };
        assert_eq!(trust(message), ("bridge", bot, false), "{message:?}");
    }

    // A member's session under a ghost's name.
    let wire = scene.mallory.encrypt(&portal, "I owe Mallory a fortune").await;
    let member = scene.send_as_ghost(&portal, &wire).await;
    // The bridge's session under the names of somebody who is no puppet, and of another bridge's ghost.
    let stranger = only(&instagram().room(&portal).puppet(MALLORY).run().await);
    let foreign = only(&instagram().room(&portal).puppet(OTHER_GHOST).run().await);
    // Another bridge that claims the room, in the first one's place.
    scene.let_in(&portal, OTHER_BOT).await;
    let claim = json!({"bridgebot": OTHER_BOT, "protocol": {"id": "facebookgo"}, "channel": {"id": "1"}});
    let key = format!("rooms/{portal}/state/m.bridge/localhost%2Finstagram");
    scene.facebook.request_as(&url, OTHER_BOT, ("PUT", &key), &claim).await;
    let second = only(&facebook().room(&portal).run().await);
    // A room whose bridge somebody else has set: Mallory, for herself to speak as its ghost.
    // She names the other person as the login, whose words would be the owner's then.
    let channel = json!({"id": "1", "fi.mau.receiver": "17840000000000001"});
    let claim =
        json!({"bridgebot": scene.instagram.bot(), "protocol": {"id": "instagramgo"}, "channel": channel});
    let room = scene.mallory.private_room(BOT).await;
    let mallory = scene.synapse.log_in("mallory", PASSWORD).await;
    let key = format!("v3/rooms/{room}/state/m.bridge/localhost%2Finstagram");
    mallory.request("PUT", &key, Some(&claim)).await;
    mallory.request("POST", &format!("v3/rooms/{room}/invite"), Some(&json!({"user_id": GHOST}))).await;
    scene.instagram.request_as(&url, GHOST, ("POST", &format!("join/{room}")), &json!({})).await;
    until("coucou to join", ARRIVAL, async || {
        let members = mallory.request("GET", &format!("v3/rooms/{room}/joined_members"), None).await;
        members["joined"].get(BOT).map(|_| ())
    })
    .await;
    let wire = scene.mallory.encrypt(&room, "I owe Mallory another one").await;
    let unbridged = scene.send_as_ghost(&room, &wire).await;

    // What is genuine goes on arriving: what Mallory says herself, and the bridge, with a device that is new.
    let own = scene.mallory.say(&room, "as myself").await.event_id;
    let device = scene.instagram.registration().with_file_name("another.db");
    let reset = instagram().arg("--state", &device.to_string_lossy()).room(&portal).run().await;
    genuine.extend([own.clone(), only(&reset)]);
    // In a portal without encryption she writes the mark of a puppet's.
    let plain = instagram().plain().invite(BOT).invite(MALLORY).no_wait().run().await;
    scene.mallory.join(plain.portal()).await;
    let marked =
        json!({"msgtype": "m.text", "body": "me", "fi.mau.double_puppet_source": "mautrix-instagram"});
    let path = format!("v3/rooms/{}/send/m.room.message/marked", plain.portal());
    let marked = mallory.request("PUT", &path, Some(&marked)).await["event_id"].as_str().unwrap().to_owned();
    genuine.extend([only(&plain), marked.clone()]);
    let messages = scene.receiver.wait_for(genuine.len(), ARRIVAL).await;
    for message in messages.iter().filter(|message| message.data()["sender"]["mxid"] != OWNER) {
        assert_eq!(message.data()["direction"], "in", "only the owner's words are the owner's: {message:?}");
    }
    assert!(messages.iter().any(|message| message.event_id() == marked));
    let mut told: Vec<_> = messages.iter().map(|message| message.event_id().to_owned()).collect();
    told.sort();
    genuine.sort();
    assert_eq!(told, genuine, "{}", scene.coucou.log());
    let own = messages.iter().find(|message| message.event_id() == own).unwrap();
    assert_eq!(own.data()["network"], Value::Null, "not a bridge's room");
    let mut forged = [member, stranger, foreign, second.clone(), unbridged];
    let ledger = scene.ledger(forged.len()).await;
    forged.sort();
    assert_eq!(ledger.keys().collect::<Vec<_>>(), forged.iter().collect::<Vec<_>>());
    assert!(ledger.values().all(|reason| reason == "untrusted_sender"), "{ledger:?}");
    let number = async |statement| scene.database.number(statement).await;
    let conflicts = "SELECT COUNT(*) FROM bridge_conflicts WHERE bot = '@facebookbot:localhost'";
    assert_eq!(number(conflicts).await, 1);
    assert_eq!(number("SELECT COUNT(*) FROM bridge_conflicts").await, 1);
    let changes =
        "SELECT COUNT(*) FROM bridge_devices WHERE bot = '@instagrambot:localhost' AND change <> 'first'";
    assert_eq!(number(changes).await, 1, "the new device is reported");
    assert!(scene.coucou.log().contains("a bridge encrypts with a new device"));

    // The operator says that the second bridge is right after all.
    fs::write(scene.coucou.path("coucou.yaml"), format!("bridges: [{{bot: '{OTHER_BOT}'}}]\n")).unwrap();
    let scene = scene.restart(|coucou| coucou).await;
    let messages = scene.receiver.wait_for(genuine.len() + 1, ARRIVAL).await;
    let accepted = messages.last().unwrap();
    assert_eq!((accepted.event_id(), &accepted.data()["late"]), (&*second, &json!(true)));
    assert_eq!(trust(accepted), ("bridge", OTHER_BOT, false));
    scene.ledger(forged.len() - 1).await;

    // And that forgeries are to be seen, for what they are.
    let scene = scene.restart(|coucou| coucou.set("COUCOU_TRUST_MISMATCHED_SENDER", "flag")).await;
    let messages = scene.receiver.wait_for(genuine.len() + forged.len(), ARRIVAL).await;
    for message in &messages[genuine.len() + 1..] {
        assert!(forged.iter().any(|id| id == message.event_id()), "{message:?}");
        assert_eq!(trust(message), ("mismatched_sender", "", true));
    }
    scene.ledger(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ghost_is_believed_once_its_bridges_device_is_known() {
    let coucou = Coucou::new().await;
    let homeserver = FakeHomeserver::start(&coucou).await;
    let receiver = Receiver::start().await;
    let mut coucou = coucou.homeserver(&homeserver.url()).webhook(&receiver);
    coucou.start().await;
    let device_id = homeserver.wait_for_device(BOT, ARRIVAL).await;
    let mut bridge = FakeBridge::new(&homeserver, "instagram");
    bridge.hide_device(&homeserver);
    let portal = bridge.create_portal(&homeserver, "1", "Alice");
    homeserver.invite(&portal, &bridge.bot(), BOT).await;
    homeserver.wait_for_join(&portal, BOT, ARRIVAL).await;
    let key = bridge.share_key(&homeserver, &portal, BOT, &device_id);
    let said = bridge.say(&portal, "1", "who am I?");
    // Nobody's device: somebody else's words, in the clear, show that it was looked at.
    let plain = json!({"msgtype": "m.text", "body": "in the clear"});
    let plain = crate::support::fake_homeserver::event(&portal, &bridge.ghost("2"), "m.room.message", &plain);
    assert_eq!(homeserver.push(&[said, plain], &key).await, 200);
    let messages = receiver.wait_for(1, ARRIVAL).await;
    assert_eq!(messages[0].data()["content"]["text"], "in the clear");

    bridge.show_device(&homeserver);
    assert_eq!(homeserver.push(&[], &[]).await, 200);
    let messages = receiver.wait_for(2, ARRIVAL).await;
    assert_eq!(messages[1].data()["content"]["text"], "who am I?");
    assert_eq!(messages[1].data()["late"], json!(true));
    assert_eq!(trust(&messages[1]), ("bridge", &*bridge.bot(), false));
}
