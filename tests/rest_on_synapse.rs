//! The REST API, told from outside: what was relayed can be read back, followed and sent again, whatever happens to
//! the process.

use std::{process::Command, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    coucou::{API_TOKEN, Coucou},
    http,
    postgres::Database,
    receiver::{Answer, Receiver},
    run,
    synapse::{Bridge, Options, Sent, Synapse},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);
const KINDS: &str = "text,image,edit,text";

/// A homeserver, two bridges, a webhook, and coucou between them.
struct Scene {
    coucou: Coucou,
    bridges: [Bridge; 2],
    receiver: Receiver,
    synapse: Synapse,
    _database: Database,
}

impl Scene {
    async fn set() -> Self {
        let database = Database::create().await;
        let coucou = Coucou::new().await.store(&database.url());
        let bridges = [Bridge::new("instagram", &[]).await, Bridge::new("facebook", &[]).await];
        let mut registrations = vec![coucou.registration()];
        registrations.extend(bridges.iter().map(Bridge::registration));
        let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
        let receiver = Receiver::start().await;
        let mut coucou = coucou.homeserver(&synapse.url()).webhook(&receiver);
        coucou.start().await;
        Self { coucou, bridges, receiver, synapse, _database: database }
    }

    async fn say(&self, bridge: usize, kinds: &str) -> Sent {
        self.bridges[bridge].send(&self.synapse.url()).invite(BOT).messages(kinds).name("Alice").run().await
    }

    /// A GET that must succeed.
    async fn get(&self, path: &str) -> Value {
        let (status, answer) = self.coucou.api(path).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let url = format!("{}/api/v1/{path}", self.coucou.url());
        let answer = http().post(url).bearer_auth(API_TOKEN).body(body.to_string()).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default())
    }
}

/// How often something was told under a `webhook-id`.
fn attempts_under(scene: &Scene, id: &str) -> usize {
    scene.receiver.attempts().iter().filter(|attempt| attempt.id == id).count()
}

fn ids(list: &Value, entries: &str, id: &str) -> Vec<String> {
    let entries = list[entries].as_array().unwrap_or_else(|| panic!("no {entries} in {list}"));
    entries.iter().map(|entry| entry[id].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_relayed_is_read_back_followed_and_sent_again() {
    let mut scene = Scene::set().await;
    let instagram = scene.say(0, KINDS).await;
    let messenger = scene.say(1, "text").await;
    scene.receiver.wait_for(5, SOON).await;
    messages_read_as_they_were_sent(&scene, &instagram, &messenger).await;
    stats_and_rooms_tell_of_them(&scene, &instagram).await;
    the_documented_reader_reads_all(&scene).await;
    deliveries_go_out_again(&scene).await;
    bad_input_is_refused(&scene).await;
    a_reader_misses_nothing_over_a_power_cut(&mut scene, instagram.portal()).await;
}

/// Takes out what tells that coucou came into a room.
fn without_joins(list: &mut Value) {
    list["messages"].as_array_mut().unwrap().retain(|message| message["type"] != "room.joined");
}

async fn messages_read_as_they_were_sent(scene: &Scene, instagram: &Sent, messenger: &Sent) {
    let mut list = scene.get("messages/instagram").await;
    assert_eq!(list["platform"], "instagram");
    without_joins(&mut list);
    let mut sent: Vec<_> = instagram.messages().map(|line| line.event_id.clone()).collect();
    sent.reverse();
    assert_eq!(ids(&list, "messages", "event_id"), sent, "newest first");
    for message in list["messages"].as_array().unwrap() {
        assert_eq!((&message["decrypted"], &message["encrypted"]), (&json!(true), &json!(true)), "{message}");
        assert_eq!((&message["platform"], &message["sender_name"]), (&json!("instagram"), &json!("Alice")));
        assert_eq!((&message["trust"], &message["direction"]), (&json!("bridge"), &json!("in")));
        assert_eq!(message["room_id"], instagram.portal());
    }
    let texts: Vec<_> = instagram.messages().filter(|line| line.kind == "text").collect();
    assert_eq!(list["messages"][0]["content"], texts[1].content["body"]);
    assert_eq!(list["messages"][1]["type"], "message.edited");
    assert_eq!(list["messages"][2]["kind"], "image");
    assert_eq!(list["messages"][3]["content"], texts[0].content["body"]);

    let mut other = scene.get("messages/facebook").await;
    without_joins(&mut other);
    assert_eq!(ids(&other, "messages", "room_id"), [messenger.portal()]);
    let (portal, edited) = (instagram.portal().replace('!', "%21"), "message.edited");
    let edits =
        scene.get(&format!("messages?room={portal}&type={edited}&direction=in&network=instagram")).await;
    assert_eq!(edits["count"], 1);
    let (mut all, mut path) = (Vec::new(), "messages?limit=3".to_owned());
    loop {
        let page = scene.get(&path).await;
        all.extend(ids(&page, "messages", "id"));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("messages?limit=3&cursor={next}");
    }
    assert_eq!(all, ids(&scene.get("messages?limit=500").await, "messages", "id"));

    // One by its id is what the webhook was told.
    let told = scene.receiver.messages();
    let one = scene.get(&format!("messages/{}", told[0].id)).await;
    assert_eq!(one["payload"], told[0].payload);
}

async fn stats_and_rooms_tell_of_them(scene: &Scene, instagram: &Sent) {
    let stats = scene.get("stats").await;
    let store =
        json!({"backend": "postgres", "state": "connected", "fallback": false, "fallback_reason": null});
    assert_eq!(stats["store"], store);
    let stored = &stats["stored"];
    assert_eq!(stored["keys"]["rooms"], 2, "{stored}");
    assert_eq!(stored["rooms"]["by_network"], json!({"instagram": 1, "messenger": 1}));
    assert_eq!(stored["messages"]["total"], scene.get("messages?limit=500").await["count"]);
    assert_eq!(stored["messages"]["decrypted"]["hour"], 5);
    assert_eq!(stored["messages"]["decryptable_rate"]["hour"], 1.0);
    assert_eq!(stored["crypto"]["is_held"], true);
    assert_eq!(stored["crypto"]["accounts"][0]["user_id"], BOT);
    assert!(stored["inbox"]["last_transaction_at"].is_string());
    let room = scene.get(&format!("rooms/{}", instagram.portal().replace('!', "%21"))).await;
    assert_eq!(
        (&room["name"], &room["type"], &room["encrypted"]),
        (&json!("Alice"), &json!("dm"), &json!(true))
    );
    assert_eq!(room["network"], "instagram");
    assert!(room["message_count"].as_u64().unwrap() >= 4, "{room}");
    assert_eq!(room["accounts"], json!([{"user_id": BOT, "membership": "join"}]));
    assert_eq!(scene.get("rooms?relayed=yes").await["count"], 2);
    // What was asked of whom must not show up anywhere.
    let text = format!("{stats}{}{}", scene.get("webhooks").await, scene.get("deliveries").await);
    assert!(!text.contains(API_TOKEN) && !text.contains("whsec_") && !text.contains("text number"), "{text}");
}

async fn deliveries_go_out_again(scene: &Scene) {
    let total = scene.get("messages?limit=500").await["count"].as_u64().unwrap();
    let delivered = until("all recorded deliveries", SOON, async || {
        let list = scene.get("deliveries?status=delivered&webhook=default").await;
        (list["count"] == total).then_some(list)
    })
    .await;
    let one = &delivered["deliveries"][0];
    let before = attempts_under(scene, one["message_id"].as_str().unwrap());
    let (status, again) = scene.post(&format!("deliveries/{}/resend", one["id"]), &json!({})).await;
    assert_eq!((status, &again["status"]), (200, &json!("pending")));
    let id = one["message_id"].as_str().unwrap();
    until("the same message again", SOON, async || {
        let status = scene.get(&format!("deliveries/{}", one["id"])).await["status"].clone();
        (status == "delivered").then_some(())
    })
    .await;
    assert_eq!(attempts_under(scene, id), before + 1);

    // While it is paused, a webhook gets nothing; then it gets what there is, in order.
    assert_eq!(scene.post("webhooks/default/pause", &json!({})).await.0, 200);
    let (status, trial) = scene.post("webhooks/default/test", &json!({})).await;
    assert_eq!(status, 202);
    let (_, resent) = scene.post("webhooks/default/resend", &json!({"since": "2020-01-01T00:00:00Z"})).await;
    assert_eq!(resent, json!({"resent": total, "next": null}));
    let waiting = scene.get("webhooks").await["webhooks"][0].clone();
    assert_eq!((&waiting["enabled"], &waiting["pending"]), (&json!(false), &json!(total + 1)), "{waiting}");
    assert_eq!(attempts_under(scene, trial["message_id"].as_str().unwrap()), 0);
    assert_eq!(scene.post("webhooks/default/resume", &json!({})).await.0, 200);
    until("the queue to be empty", SOON, async || {
        (scene.get("webhooks").await["webhooks"][0]["pending"] == 0).then_some(())
    })
    .await;
    assert_eq!(attempts_under(scene, trial["message_id"].as_str().unwrap()), 1);
    assert_eq!(attempts_under(scene, id), before + 2);
}

async fn bad_input_is_refused(scene: &Scene) {
    for (path, status, code) in [
        ("messages?limit=0", 400, "bad_parameter"),
        ("messages?network=instagram&foo=1", 400, "unknown_parameter"),
        ("messages?cursor=AAAA", 400, "bad_cursor"),
        ("messages?room=%00", 400, "bad_parameter"),
        ("messages/%ff", 400, "bad_parameter"),
        ("events?after=x", 400, "bad_cursor"),
        ("rooms/%21nowhere", 404, "not_found"),
        ("deliveries/9223372036854775807", 404, "not_found"),
        ("deliveries/9223372036854775808", 400, "bad_parameter"),
        ("nothing", 404, "not_found"),
    ] {
        let (got, answer) = scene.coucou.api(path).await;
        assert_eq!((got, &answer["code"]), (status, &json!(code)), "{path}: {answer}");
        assert!(answer["request_id"].is_string(), "{answer}");
    }
    let url = format!("{}/api/v1/messages", scene.coucou.url());
    for (token, status) in [("", 401), ("wrong", 401)] {
        let answer = http().get(&url).bearer_auth(token).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status);
    }
}

/// The function that docs/rest.md gives to consumers reads everything.
async fn the_documented_reader_reads_all(scene: &Scene) {
    let page = include_str!("../docs/rest.md");
    let code = page.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let mut command = Command::new("python3");
    let (url, call) =
        (scene.coucou.url(), "for cursor, id, payload in events(sys.argv[1], sys.argv[2], None): print(id)");
    command.args(["-c", &format!("import sys\n{code}\n{call}"), &url, API_TOKEN]);
    let printed = run(command).await;
    let mut told: Vec<_> = scene.receiver.taken().into_iter().map(|message| message.id).collect();
    let mut read: Vec<_> = printed.lines().map(str::to_owned).collect();
    told.sort();
    told.dedup();
    read.sort();
    assert_eq!(read, told);
}

/// Somebody follows the events while messages come, and the process is killed twice in between.
async fn a_reader_misses_nothing_over_a_power_cut(scene: &mut Scene, portal: &str) {
    const COUNT: usize = 40;
    let start = scene.get("events?after=latest").await["next"].as_str().unwrap().to_owned();
    // Whether the webhook takes anything makes no difference.
    scene.receiver.answer_always(Some(Answer::Status(500)));
    let sending = scene.bridges[0]
        .send(&scene.synapse.url())
        .invite(BOT)
        .room(portal)
        .messages("text")
        .count(COUNT)
        .interval(Duration::from_millis(100))
        .start()
        .timed();
    let (mut seen, mut after, mut kills) = (Vec::new(), start, 0);
    while seen.len() < COUNT {
        let page = until("more events", SOON, async || {
            let page = scene.get(&format!("events?limit=7&after={after}")).await;
            (page["count"] != 0).then_some(page)
        })
        .await;
        let events = page["events"].as_array().unwrap();
        seen.extend(
            events.iter().map(|event| event["payload"]["data"]["event_id"].as_str().unwrap().to_owned()),
        );
        after = page["next"].as_str().unwrap().to_owned();
        if seen.len() > kills * 15 + 5 && kills < 2 {
            kills += 1;
            scene.coucou.restart().await;
        }
    }
    let sent = sending.finish().await;
    assert_eq!(seen, sent.messages().map(|line| line.event_id.clone()).collect::<Vec<_>>());
    assert_eq!(kills, 2);
    let rest = scene.get(&format!("events?after={after}")).await;
    assert_eq!((&rest["count"], &rest["has_more"], &rest["next"]), (&json!(0), &json!(false), &json!(after)));
    scene.receiver.answer_always(None);
}
