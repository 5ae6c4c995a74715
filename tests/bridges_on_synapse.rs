//! Bridges as they are installed, on a real Synapse: their names, who makes their rooms, two of them in one room, and
//! what the owner writes in the network's own app.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    coucou::{API_TOKEN, Coucou},
    http,
    postgres::Database,
    receiver::{Attempt, Receiver},
    synapse::{Bridge, Client, Line, Options, Sent, Synapse},
    until,
};

const OWNER: &str = "@owner:localhost";
const BOT: &str = "@coucou:localhost";
const PASSWORD: &str = "the password of a scenario";
const ARRIVAL: Duration = Duration::from_mins(1);
const LOGIN: &str = "17841400000000000";
const SECOND_LOGIN: &str = "17841400000000002";

/// coucou with an owner whose phone has joined nothing yet, and some bridges.
struct Scene {
    coucou: Coucou,
    synapse: Synapse,
    receiver: Receiver,
    phone: Client,
    database: Option<Database>,
}

impl Scene {
    async fn set(bridges: &[&Bridge], settings: &str) -> Self {
        Self::with(Some(Database::create().await), bridges, settings).await
    }

    async fn with(database: Option<Database>, bridges: &[&Bridge], settings: &str) -> Self {
        let coucou = Coucou::of_owner(OWNER).await;
        let registrations =
            [coucou.registration()].into_iter().chain(bridges.iter().map(|bridge| bridge.registration()));
        let synapse =
            Synapse::start(Options { registrations: registrations.collect(), encrypted: true }).await;
        synapse.user("owner", PASSWORD).await;
        let phone = Client::log_in(&synapse, "owner", PASSWORD).await;
        let receiver = Receiver::start().await;
        let mut coucou = coucou.homeserver(&synapse.url()).webhook(&receiver);
        if let Some(database) = &database {
            coucou = coucou.store(&database.url());
        }
        fs::write(coucou.path("coucou.yaml"), settings).unwrap();
        coucou.start().await;
        Self { coucou, synapse, receiver, phone, database }
    }

    /// Makes a portal into which the owner lets himself, and answers what was said in it.
    async fn portal(&self, send: crate::support::synapse::Send<'_>) -> Sent {
        let mut sending = send.invite(OWNER).start();
        let portal = sending.portal().await;
        self.phone.join(&portal).await;
        sending.finish().await
    }

    /// Waits until an event was told, and answers what was told of it.
    async fn told(&self, event_id: &str) -> Attempt {
        let of = |taken: &[Attempt]| taken.iter().find(|attempt| attempt.event_id() == event_id).cloned();
        let what = format!("{event_id} to be told");
        let taken = self.receiver.wait_until(&what, ARRIVAL, |taken| of(taken).is_some()).await;
        of(&taken).unwrap()
    }

    /// Waits until all that was sent was told, and compares who said it, for whom, and how far it is trusted.
    async fn assert_told(&self, sent: &Sent, expected: &Expected<'_>) {
        for line in sent.messages() {
            let told = self.told(&line.event_id).await;
            let data = told.data();
            let is_clear = line.wire_type != "m.room.encrypted";
            let trust = if is_clear { Value::Null } else { json!("bridge") };
            let bridged_by = if is_clear { Value::Null } else { json!(expected.bot) };
            let found = json!([
                data["direction"],
                data["network"],
                data["room"]["login"],
                data["encryption"]["trust"],
                data["encryption"]["bridged_by"],
            ]);
            let wanted = json!([expected.direction, expected.network, expected.login, trust, bridged_by]);
            assert_eq!(found, wanted, "{line:?}\n{told:?}");
            assert_eq!(data["sender"]["network_id"], json!(network_id(line)), "{told:?}");
        }
    }

    async fn restart(&mut self, settings: &str) {
        self.coucou.kill9();
        fs::write(self.coucou.path("coucou.yaml"), settings).unwrap();
        self.coucou.start().await;
    }

    /// What `coucou check` finds about bridges.
    async fn check(&self) -> Vec<Value> {
        let output = self.coucou.run(&["check", "--json"]).await;
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = report["checks"].as_array().unwrap().iter();
        findings.filter(|finding| finding["check"] == "bridges").cloned().collect()
    }
}

struct Expected<'a> {
    direction: &'a str,
    network: &'a str,
    login: Value,
    bot: &'a str,
}

/// The id on the network of the ghost that sent something.
fn network_id(line: &Line) -> Option<&str> {
    let localpart = line.sender.strip_prefix('@')?.split(':').next()?;
    let (_, id) = localpart.rsplit_once('_')?;
    Some(id)
}

/// Another member of groups.
fn somebody(send: crate::support::synapse::Send<'_>) -> crate::support::synapse::Send<'_> {
    send.arg("--ghost", "17840000000000007").name("Carol")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_owner_writes_in_the_networks_app_is_out_in_encrypted_rooms() {
    own_messages_are_out(Some(Database::create().await), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_owner_writes_in_the_networks_app_is_out_in_plain_rooms() {
    own_messages_are_out(None, true).await;
}

async fn own_messages_are_out(database: Option<Database>, plain: bool) {
    const ALL: &str = "text,reply,edit,reaction,redaction,image,sticker";
    let bridge = Bridge::new("instagram", &["^@owner:localhost$"]).await;
    let mut scene = Scene::with(database, &[&bridge], "").await;
    let url = scene.synapse.url();
    let send = || if plain { bridge.send(&url).plain() } else { bridge.send(&url) };
    let bot = bridge.bot();
    let expected = |direction, login: Value| Expected { direction, network: "instagram", login, bot: &bot };

    // A group, before anything tells which login is the owner's: nobody can know.
    let sent = scene.portal(somebody(send()).group().messages("text")).await;
    let group = sent.portal().to_owned();
    scene.assert_told(&sent, &expected("in", Value::Null)).await;

    // A conversation of two names the login: what its ghost says there is the owner's, and in the group from now on.
    let sent = scene.portal(send().receiver(LOGIN).by_login(LOGIN).messages(ALL)).await;
    let dm = sent.portal().to_owned();
    scene.assert_told(&sent, &expected("out", json!(LOGIN))).await;
    scene.assert_told(&send().room(&dm).messages(ALL).run().await, &expected("in", json!(LOGIN))).await;
    let own = somebody(send()).room(&group).by_login(LOGIN).messages(ALL);
    scene.assert_told(&own.run().await, &expected("out", json!(LOGIN))).await;
    let others = somebody(send()).room(&group).messages("text");
    scene.assert_told(&others.run().await, &expected("in", json!(LOGIN))).await;
    // History as well, from before there was a room.
    let history = send().room(&dm).by_login(LOGIN).arg("--timestamp", "1600000000000").messages("text");
    let history = history.run().await;
    scene.assert_told(&history, &expected("out", json!(LOGIN))).await;
    let told = scene.told(history.messages().next().unwrap().event_id.as_str()).await;
    assert_eq!(
        (&told.data()["backfill"], &told.payload["timestamp"]),
        (&json!(true), &json!("2020-09-13T12:26:40.000Z"))
    );
    // With a double puppet it is the owner's own account.
    let puppet = send().room(&dm).puppet(OWNER).messages("text").run().await;
    let told = scene.told(&puppet.messages().next().unwrap().event_id).await;
    assert_eq!((&told.data()["direction"], &told.data()["room"]["login"]), (&json!("out"), &json!(LOGIN)));
    // A chat with oneself has nobody else in it.
    let note = scene.portal(send().receiver(LOGIN).arg("--ghost", LOGIN).name("Me").messages("text")).await;
    scene.assert_told(&note, &expected("out", json!(LOGIN))).await;
    let told = scene.told(&note.messages().next().unwrap().event_id).await;
    assert_eq!((&told.data()["room"]["type"], &told.data()["room"]["name"]), (&json!("dm"), &json!("Me")));

    // A second login of the same owner: in the group both ghosts are the owner's, and which one it is nobody says.
    let second = scene.portal(send().receiver(SECOND_LOGIN).by_login(SECOND_LOGIN).messages("text")).await;
    scene.assert_told(&second, &expected("out", json!(SECOND_LOGIN))).await;
    for login in [LOGIN, SECOND_LOGIN] {
        let own = somebody(send()).room(&group).by_login(login).messages("text,reaction");
        scene.assert_told(&own.run().await, &expected("out", Value::Null)).await;
    }
    // In a conversation of one login the other one is the other person.
    let other = send().room(&dm).by_login(SECOND_LOGIN).messages("text").run().await;
    scene.assert_told(&other, &expected("in", json!(LOGIN))).await;

    // What was learned outlives the process, and holds in rooms that are new.
    scene.restart("").await;
    let own = somebody(send()).room(&group).by_login(SECOND_LOGIN).messages("text");
    scene.assert_told(&own.run().await, &expected("out", Value::Null)).await;
    let fresh = scene.portal(somebody(send()).group().by_login(LOGIN).messages("text")).await;
    scene.assert_told(&fresh, &expected("out", Value::Null)).await;
    // A customer's words are never taken for the owner's, whatever a member claims.
    let claim = json!({"bridgebot": bot, "protocol": {"id": "instagramgo"},
        "channel": {"id": "1", "fi.mau.receiver": "17840000000000007"}});
    let room = scene.phone.private_room(BOT).await;
    let owner = scene.synapse.log_in("owner", PASSWORD).await;
    let key = format!("v3/rooms/{room}/state/m.bridge/localhost%2Finstagram");
    owner.request("PUT", &key, Some(&claim)).await;
    let others = somebody(send()).room(&group).messages("text");
    scene.assert_told(&others.run().await, &expected("in", Value::Null)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messenger_in_facebook_mode_arrives_as_its_playbook_installs_it() {
    let messenger = Bridge::named("facebook", "messengerbot", "facebook_", &[]).await;
    let scene = Scene::set(&[&messenger], "").await;
    let url = scene.synapse.url();
    let sent = scene.portal(messenger.send(&url).receiver("100").messages("text,image,reaction")).await;
    let bot = messenger.bot();
    let expected = Expected { direction: "in", network: "messenger", login: json!("100"), bot: &bot };
    scene.assert_told(&sent, &expected).await;
    let own = messenger.send(&url).room(sent.portal()).by_login("100").messages("text").run().await;
    scene.assert_told(&own, &Expected { direction: "out", ..expected }).await;
    assert_eq!(scene.check().await[0]["status"], "ok");
    let number = async |statement| scene.database.as_ref().unwrap().number(statement).await;
    assert_eq!(number("SELECT COUNT(*) FROM bridges WHERE ghosts = '@facebook_*:localhost'").await, 1);
    assert_eq!(number("SELECT COUNT(*) FROM pending_events").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_whose_ghosts_nobody_can_tell_is_an_alarm_with_its_remedy() {
    let bridge = Bridge::named("facebook", "metabot", "facebook_", &[]).await;
    let mut scene = Scene::set(&[&bridge], "").await;
    let url = scene.synapse.url();
    let sent = scene.portal(bridge.send(&url).messages("text")).await;
    let line = r#"bridges: [{bot: "@metabot:localhost", ghosts: "@facebook_*:localhost"}]"#;

    let alarm = until("the alarm", ARRIVAL, async || {
        let (_, stats) = scene.coucou.api("stats").await;
        Some(stats["stored"]["bridges"]["alarms"][0].clone()).filter(Value::is_object)
    })
    .await;
    assert_eq!(
        (&alarm["reason"], &alarm["bot"], &alarm["network"]),
        (&json!("messages_held"), &json!(bridge.bot()), &json!("messenger"))
    );
    assert_eq!(alarm["settings"], line);
    let findings = scene.check().await;
    assert_eq!((findings.len(), &findings[0]["status"]), (1, &json!("fail")), "{findings:?}");
    assert!(findings[0]["remedy"].as_str().unwrap().contains(line), "{findings:?}");
    let metrics = http().get(format!("{}/metrics", scene.coucou.url())).bearer_auth(API_TOKEN);
    let metrics = metrics.send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains(r#"coucou_bridge_alarms{reason="messages_held"} 1"#), "{metrics}");
    assert!(scene.coucou.log().contains("@facebook_*:localhost"), "{}", scene.coucou.log());
    let told = |taken: &[Attempt], event: &str| {
        taken.iter().any(|attempt| attempt.event() == event && attempt.data()["reason"] == "messages_held")
    };
    let is_told = |taken: &[Attempt]| told(taken, "bridge.disconnected");
    scene.receiver.wait_until("the webhook to be told", ARRIVAL, is_told).await;
    assert!(!scene.receiver.messages().iter().any(Attempt::is_message));
    let (_, held) = scene.coucou.api("undecryptable").await;
    assert_eq!(held["events"][0]["reason"], "untrusted_sender");
    assert!(held["events"][0]["next_step"].as_str().unwrap().contains("bridges:"), "{held}");

    scene.restart(&format!("{line}\n")).await;
    let bot = bridge.bot();
    let expected = Expected { direction: "in", network: "messenger", login: json!(LOGIN), bot: &bot };
    scene.assert_told(&sent, &expected).await;
    let is_over = |taken: &[Attempt]| told(taken, "bridge.resumed");
    scene.receiver.wait_until("the end to be told", ARRIVAL, is_over).await;
    assert_eq!(scene.check().await[0]["status"], "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_portal_that_a_ghost_has_made_is_a_bridges() {
    let bridge = Bridge::new("googlechat", &[]).await;
    let scene = Scene::set(&[&bridge], "").await;
    let url = scene.synapse.url();
    let bot = bridge.bot();
    let expected = |direction| Expected { direction, network: "googlechat", login: Value::Null, bot: &bot };

    // Without encryption the bot stays out, and nobody has heard of it: a warning tells what would help.
    let alone = bridge.send(&url).made_by_ghost().receiver("none").plain().flag("--bot-stays-out");
    let sent = scene.portal(alone.messages("text")).await;
    let lonely = sent.portal().to_owned();
    until("the room to be read", ARRIVAL, async || {
        let (_, rooms) = scene.coucou.api("rooms?relayed=no").await;
        rooms["rooms"].as_array()?.iter().any(|room| room["id"] == *lonely).then_some(())
    })
    .await;
    let findings = scene.check().await;
    let line = r#"bridges: [{bot: "@googlechatbot:localhost"}]"#;
    assert!(findings[0]["remedy"].as_str().unwrap().contains(line), "{findings:?}");
    assert!(scene.coucou.log().contains("whose ghost it may be"), "{}", scene.coucou.log());

    // In an encrypted one it is there. By then the bridge is known, and so is the first room.
    let sent = scene.portal(bridge.send(&url).made_by_ghost().receiver("none").messages("text,image")).await;
    scene.assert_told(&sent, &expected("in")).await;
    until("the first room to be relayed", ARRIVAL, async || {
        let (_, rooms) = scene.coucou.api("rooms?relayed=yes").await;
        rooms["rooms"].as_array()?.iter().any(|room| room["id"] == *lonely).then_some(())
    })
    .await;
    let more = bridge.send(&url).room(&lonely).made_by_ghost().plain().flag("--bot-stays-out");
    scene.assert_told(&more.messages("text").run().await, &expected("in")).await;
    // The bridge's ghosts invite the owner, who need do nothing.
    let bob = bridge.send(&url).made_by_ghost().receiver("none").arg("--ghost", "2").invite(OWNER);
    scene.assert_told(&bob.messages("text").run().await, &expected("in")).await;
    // What the other ghost of such a conversation says is the owner's; where the room names the login, it is that one's.
    let own = bridge.send(&url).room(sent.portal()).made_by_ghost().by_login("8").messages("text,reaction");
    scene.assert_told(&own.run().await, &expected("out")).await;
    let own = bridge.send(&url).made_by_ghost().receiver("9").by_login("9").invite(OWNER).messages("text");
    let named = Expected { login: json!("9"), ..expected("out") };
    scene.assert_told(&own.run().await, &named).await;
    assert_eq!(scene.check().await[0]["status"], "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ghosts_portal_is_believed_of_a_bridge_of_the_settings() {
    let bridge = Bridge::named("googlechat", "gcbot", "gchat_", &[]).await;
    let settings =
        "bridges: [{bot: '@gcbot:localhost', ghosts: '@gchat_*:localhost'}]\ntrust: {new_bridges: refuse}\n";
    let scene = Scene::with(None, &[&bridge], settings).await;
    let url = scene.synapse.url();
    let bot = bridge.bot();
    let expected = Expected { direction: "in", network: "googlechat", login: Value::Null, bot: &bot };
    let portal = || bridge.send(&url).made_by_ghost().receiver("none").invite(OWNER);
    scene.assert_told(&portal().messages("text,reaction").run().await, &expected).await;
    let plain = portal().arg("--ghost", "2").plain().flag("--bot-stays-out");
    scene.assert_told(&plain.messages("text").run().await, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_bridges_share_a_room_and_each_speaks_for_its_own() {
    for settings in ["", "bridges: [{bot: '@instagrambot:localhost'}, {bot: '@facebookbot:localhost'}]\n"] {
        let (instagram, facebook) = (Bridge::new("instagram", &[]).await, Bridge::new("facebook", &[]).await);
        let scene = Scene::set(&[&instagram, &facebook], settings).await;
        let url = scene.synapse.url();
        let (first, second) = (instagram.bot(), facebook.bot());
        let in_instagram =
            |direction| Expected { direction, network: "instagram", login: json!(LOGIN), bot: &first };
        let in_messenger =
            |direction| Expected { direction, network: "messenger", login: json!("100"), bot: &second };

        // Both are known, each from a room of its own.
        let theirs = scene.portal(facebook.send(&url).receiver("100").messages("text")).await;
        scene.assert_told(&theirs, &in_messenger("in")).await;
        let shared = scene.portal(instagram.send(&url).receiver(LOGIN).messages("text")).await;
        let room = shared.portal().to_owned();
        scene.assert_told(&shared, &in_instagram("in")).await;
        let levels = format!("rooms/{room}/state/m.room.power_levels");
        let mut content = instagram.request_as(&url, &first, ("GET", &levels), &Value::Null).await;
        content["users"][&second] = json!(100);
        instagram.request_as(&url, &first, ("PUT", &levels), &content).await;
        let invite = format!("rooms/{room}/invite");
        instagram.request_as(&url, &first, ("POST", &invite), &json!({"user_id": second})).await;

        let sent = facebook
            .send(&url)
            .claim(&room)
            .receiver("100")
            .messages("text,image,reaction,redaction")
            .run()
            .await;
        scene.assert_told(&sent, &in_messenger("in")).await;
        let channel = |told: &Attempt| told.data()["room"]["channel_id"].as_str().unwrap().to_owned();
        let of_second = channel(&scene.told(&sent.messages().next().unwrap().event_id).await);
        let sent = instagram.send(&url).room(&room).messages("text,reaction").run().await;
        scene.assert_told(&sent, &in_instagram("in")).await;
        assert_ne!(channel(&scene.told(&sent.messages().next().unwrap().event_id).await), of_second);
        let own = facebook.send(&url).room(&room).by_login("100").messages("text").run().await;
        scene.assert_told(&own, &in_messenger("out")).await;
        let own = instagram.send(&url).room(&room).by_login(LOGIN).messages("text,reaction").run().await;
        scene.assert_told(&own, &in_instagram("out")).await;
        assert_eq!(scene.check().await[0]["status"], "ok", "{}", scene.coucou.log());
    }
}
