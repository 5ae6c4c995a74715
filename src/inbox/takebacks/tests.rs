//! Bans that take back all that a member has said, and redactions of what was never told.

use serde_json::{Value, json};

use crate::{
    clock::ManualClock,
    inbox::tests::{count, payloads, push, settle, text, work, worker},
    model::RelayPolicy,
    store::Store,
    testing::{self, START},
};

const ROOM: &str = "!room";
const MODERATOR: &str = "@mod:example.org";
const SPAMMER: &str = "@a:example.org";
const MARK: &str = "org.matrix.msc4293.redact_events";

fn state() -> Value {
    json!([
        {"type": "m.room.member", "state_key": SPAMMER, "sender": SPAMMER, "content": {"membership": "join"}},
        {"type": "m.room.create", "state_key": "", "sender": "@maker:example.org", "content": {"room_version": "11"}},
        {"type": "m.room.power_levels", "state_key": "", "sender": "@maker:example.org",
            "content": {"users": {MODERATOR: 50, "@weak:example.org": 40}, "ban": 10, "kick": 10}},
    ])
}

fn membership(id: &str, sender: &str, content: &Value) -> Value {
    json!({"event_id": id, "room_id": ROOM, "sender": sender, "type": "m.room.member", "state_key": SPAMMER,
        "origin_server_ts": START.0, "content": content})
}

fn ban(id: &str, sender: &str, mark: &str) -> Value {
    membership(id, sender, &json!({"membership": "ban", "reason": "spam", mark: true}))
}

fn reaction(id: &str, to: &str) -> Value {
    let mut event = text(id, ROOM, "");
    event["type"] = json!("m.reaction");
    event["content"] = json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": to, "key": "x"}});
    event
}

fn edit(id: &str, of: &str) -> Value {
    let mut event = text(id, ROOM, "* spam");
    event["content"]["m.new_content"] = json!({"msgtype": "m.text", "body": "more spam"});
    event["content"]["m.relates_to"] = json!({"rel_type": "m.replace", "event_id": of});
    event
}

/// What was told: type, what it takes back, and what is left of its content.
async fn told(store: &Store) -> Vec<Value> {
    let told = payloads(store).await.into_iter().map(|payload| {
        let data = &payload["data"];
        json!([payload["type"], data["event_id"], data["redacts"], data["content"]["kind"]])
    });
    told.collect()
}

#[tokio::test]
async fn a_ban_that_redacts_takes_back_all_that_the_member_has_said() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::All, &clock).await;
        settle(store, ROOM, state()).await;
        let mut other = text("$other", ROOM, "innocent");
        other["sender"] = json!("@b:example.org");
        let said = [
            text("$1", ROOM, "spam"),
            other,
            edit("$2", "$1"),
            reaction("$3", "$other"),
            edit("$4", "$unknown"),
        ];
        push(store, "1", &said).await;
        work(&mut worker).await;
        push(store, "2", &[ban("$ban", MODERATOR, MARK), text("$5", ROOM, "said before, and late")]).await;
        work(&mut worker).await;
        push(store, "3", &[text("$6", ROOM, "later still")]).await;
        work(&mut worker).await;
        let expected = [
            json!(["message.created", "$1", null, "redacted"]),
            json!(["message.created", "$other", null, "text"]),
            json!(["message.edited", "$2", null, "redacted"]),
            json!(["reaction.created", "$3", null, "redacted"]),
            json!(["message.edited", "$4", null, "redacted"]),
            json!(["message.redacted", "$ban", "$1", "redaction"]),
            json!(["reaction.redacted", "$ban", "$3", "redaction"]),
            json!(["message.redacted", "$ban", "$4", "redaction"]),
        ];
        assert_eq!(told(store).await, expected);
        let last = &payloads(store).await[5]["data"];
        assert_eq!(
            (&last["content"]["reason"], &last["sender"]["mxid"]),
            (&json!("spam"), &json!(MODERATOR))
        );
        assert_eq!(count(store, "SELECT COUNT(*) FROM member_redactions").await, 0);
        // Once more, and by a reading of the state: nothing more is told.
        push(store, "4", &[ban("$again", MODERATOR, MARK)]).await;
        let mut banned = state();
        banned[0] = ban("$ban", MODERATOR, MARK);
        settle(store, ROOM, banned).await;
        work(&mut worker).await;
        assert_eq!(told(store).await.len(), expected.len());
        // Pardoned, what the member says is told.
        let unban = membership("$unban", MODERATOR, &json!({"membership": "leave"}));
        let join = membership("$join", SPAMMER, &json!({"membership": "join"}));
        push(store, "5", &[unban, join, text("$7", ROOM, "sorry")]).await;
        work(&mut worker).await;
        assert_eq!(told(store).await.last().unwrap(), &json!(["message.created", "$7", null, "text"]));
    }
}

#[tokio::test]
async fn a_ban_without_the_power_to_redact_takes_back_nothing() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::All, &clock).await;
        settle(store, ROOM, state()).await;
        let leave =
            |sender: &str, id: &str| membership(id, sender, &json!({"membership": "leave", MARK: true}));
        let events = [
            text("$1", ROOM, "1"),
            ban("$weak", "@weak:example.org", MARK),
            membership("$unmarked", MODERATOR, &json!({"membership": "ban"})),
            ban("$text", MODERATOR, "org.example.redact_events"),
            leave(SPAMMER, "$self"),
            leave("@weak:example.org", "$kick"),
            membership("$join", SPAMMER, &json!({"membership": "join", MARK: true})),
            text("$2", ROOM, "2"),
        ];
        push(store, "1", &events).await;
        work(&mut worker).await;
        let untouched =
            [json!(["message.created", "$1", null, "text"]), json!(["message.created", "$2", null, "text"])];
        assert_eq!(told(store).await, untouched);
        // A removal by somebody who has it does, and so does the stable name.
        push(
            store,
            "2",
            &[membership("$removed", MODERATOR, &json!({"membership": "leave", "redact_events": true}))],
        )
        .await;
        work(&mut worker).await;
        let types: Vec<_> = told(store).await.into_iter().map(|told| told[0].clone()).collect();
        assert_eq!(types, ["message.created", "message.created", "message.redacted", "message.redacted"]);
    }
}

#[tokio::test]
async fn a_ban_that_redacts_more_than_fits_a_step_is_gone_through_to_the_end_by_whoever_takes_over() {
    const MESSAGES: usize = 450;
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut first = worker(store, RelayPolicy::All, &clock).await;
        settle(store, ROOM, state()).await;
        let said: Vec<_> = (0..MESSAGES).map(|n| text(&format!("${n}"), ROOM, "spam")).collect();
        push(store, "1", &said).await;
        work(&mut first).await;
        push(store, "2", &[ban("$ban", MODERATOR, MARK)]).await;
        first.step().await.unwrap();
        first.step().await.unwrap();
        assert_eq!(count(store, "SELECT COUNT(*) FROM member_redactions").await, 1, "under way");
        let mut tx = store.begin().await.unwrap();
        tx.execute("DELETE FROM leases", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        let mut second = worker(store, RelayPolicy::All, &clock).await;
        work(&mut second).await;
        let redacted = "SELECT COUNT(*) FROM messages WHERE type = 'message.redacted'";
        assert_eq!(count(store, redacted).await, i64::try_from(MESSAGES).unwrap());
        let left = "SELECT COUNT(*) FROM messages WHERE type = 'message.created' AND redacted_at IS NULL";
        assert_eq!(count(store, left).await, 0);
        assert_eq!(count(store, "SELECT COUNT(*) FROM member_redactions").await, 0);
    }
}

#[tokio::test]
async fn the_redaction_of_a_bridges_notice_of_an_error_is_not_told_as_the_notice_was_not() {
    const BOT: &str = "@instagrambot:example.org";
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::All, &clock).await;
        let claim = json!([{"type": "m.bridge", "state_key": "x", "sender": BOT,
            "content": {"bridgebot": BOT, "protocol": {"id": "instagramgo"}}}]);
        settle(store, ROOM, claim).await;
        let notice = |id: &str| {
            let mut notice = text(id, ROOM, "\u{26a0}\u{fe0f} Your message was not bridged: failed");
            notice["sender"] = json!(BOT);
            notice["content"]["msgtype"] = json!("m.notice");
            notice["content"]["m.relates_to"] = json!({"m.in_reply_to": {"event_id": "$1"}});
            notice
        };
        let redaction = |id: &str, of: &str| {
            json!({"event_id": id, "room_id": ROOM, "sender": BOT, "type": "m.room.redaction", "redacts": of,
                "origin_server_ts": START.0, "content": {"redacts": of}})
        };
        let events = [text("$1", ROOM, "hello"), notice("$one"), redaction("$r1", "$one"), notice("$two")];
        push(store, "1", &events).await;
        work(&mut worker).await;
        // In another step, and of what was told.
        push(store, "2", &[redaction("$r2", "$two"), redaction("$r3", "$1"), redaction("$r4", "$unknown")])
            .await;
        work(&mut worker).await;
        let expected = [
            json!(["message.created", "$1", null, "redacted"]),
            json!(["message.redacted", "$r3", "$1", "redaction"]),
            json!(["message.redacted", "$r4", "$unknown", "redaction"]),
        ];
        assert_eq!(told(store).await, expected);
    }
}
