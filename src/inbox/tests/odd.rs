//! Plain events that no strict reader takes.

use super::*;

fn event(id: &str, ts: &str, content: &str) -> String {
    format!(
        "{{\"event_id\":\"{id}\",\"room_id\":\"{ROOM}\",\"sender\":\"@a:example.org\",\"type\":\"m.room.message\",\
         \"origin_server_ts\":{ts},\"content\":{{\"msgtype\":\"m.text\",\"body\":\"{id}\",{content}}},\
         \"unsigned\":{{\"n\":1e400}}}}"
    )
}

#[tokio::test]
async fn what_no_strict_reader_takes_is_relayed_nonetheless() {
    let deep = format!("{}1{}", "[".repeat(300), "]".repeat(300));
    let events = [
        event("$1", "18446744073709551615", "\"n\":1e400"),
        event("$2", "-5", "\"x\":\"\\ud83d\""),
        event("$3", "1.5", &format!("\"deep\":{deep}")),
        event("$4", "null", "\"n\":123456789012345678901234567890"),
        event("$5", "253402300800000", "\"\\udc00\":1.50"),
    ];
    let now = START.rfc3339();
    let expected = [
        ("9999-12-31T23:59:59.999Z", "\"n\":1e400", "\"/origin_server_ts\",\"reason\":\"out_of_range\""),
        ("1970-01-01T00:00:00.000Z", "\"x\":\"\u{fffd}\"", "\"/content/x\",\"reason\":\"lone_surrogate\""),
        ("1970-01-01T00:00:00.001Z", "[[null]]", "\"reason\":\"too_deep\""),
        (&now, "\"n\":123456789012345678901234567890", "\"reason\":\"missing\""),
        ("9999-12-31T23:59:59.999Z", "\"\u{fffd}\":1.50", "\"reason\":\"lone_surrogate\""),
    ];
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::All, &clock).await;
        settle(store, ROOM, json!([])).await;
        let body = format!("{{\"events\":[{}]}}", events.join(","));
        let body = inbox::seal_body(store.seal().unwrap(), body.as_bytes()).unwrap();
        let mut tx = store.begin().await.unwrap();
        inbox::accept(&mut tx, "odd".into(), body, START).await.unwrap();
        tx.commit().await.unwrap();
        work(&mut worker).await;
        let payloads = messages::newest(store.db(), store.seal().unwrap(), 10).await.unwrap();
        let texts: Vec<_> = payloads.into_iter().map(|text| String::from_utf8(text).unwrap()).collect();
        assert_eq!(texts.len(), events.len());
        for (at, (timestamp, written, repair)) in expected.into_iter().enumerate() {
            let number = format!("\"sequence\":{},", at + 1);
            let text = texts.iter().find(|text| text.contains(&number)).unwrap();
            for part in [timestamp, written, repair, &format!("\"text\":\"${}\"", at + 1)] {
                assert!(text.contains(part), "{part} in {text}");
            }
        }
    }
}
