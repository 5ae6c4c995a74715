//! Bridges that are disconnected, and a homeserver that no longer reaches coucou, on a real Synapse.

use std::{iter, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    coucou::Coucou,
    forwarder::{Fault, Forwarder},
    postgres::Database,
    receiver::{Attempt, Receiver},
    synapse::{Bridge, Options, Synapse, as_service},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);

struct Scene {
    coucou: Coucou,
    synapse: Synapse,
    bridge: Bridge,
    receiver: Receiver,
    forwarder: Forwarder,
    portal: String,
    _database: Database,
}

impl Scene {
    async fn set() -> Self {
        let (database, forwarder, receiver) =
            tokio::join!(Database::create(), Forwarder::start(), Receiver::start());
        let coucou = Coucou::behind(&forwarder.url()).await;
        forwarder.add(&coucou.url());
        let bridge = Bridge::new("instagram", &[]).await;
        let registrations = vec![coucou.registration(), bridge.registration()];
        let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
        let coucou = coucou.store(&database.url()).homeserver(&synapse.url()).webhook(&receiver);
        let mut coucou =
            coucou.set("COUCOU_ROOMS_RELAY", "bridged").set("COUCOU_SILENCE_TRANSACTIONS_AFTER", "2s");
        coucou.start().await;
        let sent = bridge.send(&synapse.url()).invite(BOT).messages("text").run().await;
        receiver.wait_until("a message", SOON, |attempts| attempts.iter().any(Attempt::is_message)).await;
        let portal = sent.portal().to_owned();
        Self { coucou, synapse, bridge, receiver, forwarder, portal, _database: database }
    }

    async fn as_bridge(&self, method: &str, path: &str, body: &Value) -> Value {
        let bot = self.bridge.bot();
        self.bridge.request_as(&self.synapse.url(), &bot, (method, path), body).await
    }

    fn told(&self) -> Vec<Attempt> {
        let mut taken = self.receiver.taken();
        taken.retain(|attempt| attempt.event().starts_with("bridge."));
        taken
    }

    /// Waits for so much to be told, and answers the last of it: its type, and its data.
    async fn tells(&self, count: usize) -> (String, Value) {
        let last = until("news of a bridge", SOON, async || self.told().into_iter().nth(count - 1)).await;
        (last.event().to_owned(), last.data().clone())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_is_disconnected_is_told_and_so_is_its_end() {
    let mut scene = Scene::set().await;

    // The bridge tells its user, here the bot, that it is logged out, in a room that is no portal.
    let options = json!({"preset": "private_chat", "is_direct": true, "invite": [BOT]});
    let management = scene.as_bridge("POST", "createRoom", &options).await["room_id"].take();
    let management = management.as_str().unwrap().to_owned();
    until("the room to be read", SOON, async || {
        let (_, rooms) = scene.coucou.api("rooms?relayed=no").await;
        rooms["rooms"].as_array()?.iter().any(|room| room["id"] == *management).then_some(())
    })
    .await;
    let notice = |state: &str| {
        let msgtype = if state == "CONNECTED" { "m.notice" } else { "m.text" };
        json!({"msgtype": msgtype, "body": format!("State update for alice: `{state}`"), "fi.mau.bridge_state": {
            "state_event": state, "source": "bridge", "remote_id": "1784", "remote_name": "alice"}})
    };
    let path = format!("rooms/{management}/send/m.room.message");
    scene.as_bridge("PUT", &format!("{path}/1"), &notice("BAD_CREDENTIALS")).await;
    let (event, lost) = scene.tells(1).await;
    assert_eq!((&*event, &lost["reason"]), ("bridge.disconnected", &json!("login_lost")));
    assert_eq!(
        (&lost["login"]["status"], &lost["network"]),
        (&json!("BAD_CREDENTIALS"), &json!("instagram"))
    );
    let output = scene.coucou.run(&["check", "--json"]).await;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["checks"].as_array().unwrap().iter();
    let findings: Vec<&Value> = findings.filter(|finding| finding["check"] == "bridges").collect();
    assert_eq!((findings.len(), &findings[0]["status"]), (1, &json!("fail")), "{findings:?}");
    assert!(findings[0]["says"].as_str().unwrap().contains("1784 to instagram"), "{findings:?}");

    // The bot leaves the portal.
    scene.as_bridge("POST", &format!("rooms/{}/leave", scene.portal), &json!({})).await;
    let (event, left) = scene.tells(2).await;
    assert_eq!((&*event, &left["reason"]), ("bridge.disconnected", &json!("bot_left")));
    assert_eq!((&left["room_id"], &left["bot"]), (&json!(scene.portal), &json!(scene.bridge.bot())));

    // After a restart nothing is told again; then both are over.
    scene.coucou.restart().await;
    scene.as_bridge("PUT", &format!("{path}/2"), &notice("CONNECTED")).await;
    let (event, resumed) = scene.tells(3).await;
    assert_eq!((&*event, &resumed["resumes"]), ("bridge.resumed", &lost["id"]));
    let us = as_service(&scene.synapse.url(), &scene.coucou.registered("as_token"), BOT);
    let invite = format!("v3/rooms/{}/invite?user_id={BOT}", scene.portal);
    us.request("POST", &invite, Some(&json!({"user_id": scene.bridge.bot()}))).await;
    scene.as_bridge("POST", &format!("rooms/{}/join", scene.portal), &json!({})).await;
    let (event, resumed) = scene.tells(4).await;
    assert_eq!((&*event, &resumed["resumes"]), ("bridge.resumed", &left["id"]));
    assert_eq!(resumed["sequence"].as_u64(), left["sequence"].as_u64().map(|number| number + 1));

    // The homeserver reaches coucou no more, and keys go on coming.
    scene.forwarder.fail_next(iter::repeat_n(Fault::Refuse, 3));
    let send = scene.bridge.send(&scene.synapse.url()).room(&scene.portal).rotate_every(1).no_wait();
    let sending = send.messages("text").count(6).interval(Duration::from_secs(1));
    let (_, (event, silent)) = tokio::join!(sending.run(), scene.tells(5));
    assert_eq!((&*event, &silent["reason"]), ("bridge.silent", &json!("no_transactions")));
    let (event, resumed) = scene.tells(6).await;
    assert_eq!((&*event, &resumed["resumes"]), ("bridge.resumed", &silent["id"]));
    assert_eq!(resumed["sequence"].as_u64(), silent["sequence"].as_u64().map(|number| number + 1));
    let said = |attempts: &[Attempt]| attempts.iter().filter(|attempt| attempt.is_message()).count() == 7;
    scene.receiver.wait_until("all messages", SOON, said).await;
    assert_eq!(scene.told().len(), 6, "each once");
    let (_, stats) = scene.coucou.api("stats").await;
    assert_eq!(stats["stored"]["bridges"]["alarms"], json!([]));
}
