//! Webhooks and deliveries.

use super::*;

fn numbered(answer: &Value) -> Vec<String> {
    let deliveries = answer["deliveries"].as_array().unwrap_or_else(|| panic!("no deliveries in {answer}"));
    assert_eq!(answer["count"], json!(deliveries.len()));
    deliveries
        .iter()
        .map(|one| format!("{} {}", &one["room_id"].as_str().unwrap()[1..4], one["sequence"]))
        .collect()
}

#[tokio::test]
async fn deliveries_are_listed_and_sent_again() {
    for test in testing::both().await {
        let rig = Rig::new(&test.store).await;
        queue(&test.store).await;
        deliver(&test.store).await;
        let (_, page) = rig.get("deliveries?limit=4&webhook=default").await;
        assert_eq!(numbered(&page), ["two 2", "two 1", "one 5", "one 4"]);
        let next = page["next"].as_str().unwrap();
        let (_, page) = rig.get(&format!("deliveries?limit=4&cursor={next}")).await;
        assert_eq!(
            (numbered(&page), &page["next"]),
            (vec!["one 3".into(), "one 2".into(), "one 1".into()], &Value::Null)
        );
        let (status, answer) = rig.get(&format!("deliveries?status=dead&cursor={next}")).await;
        assert_eq!((status, &answer["code"]), (400, &json!("bad_cursor")));
        for (path, expected) in [
            ("deliveries?status=dead", &["one 1"][..]),
            ("deliveries?status=pending", &[]),
            ("deliveries?status=delivered&room=!one:example.org", &["one 5", "one 4", "one 3", "one 2"]),
            ("deliveries?since=2025-10-09T09:00:00Z", &["two 2", "two 1"]),
        ] {
            assert_eq!(numbered(&rig.get(path).await.1), expected, "{path}");
        }
        let dead = &rig.get("deliveries?status=dead").await.1["deliveries"][0];
        assert_eq!(dead["webhook"], "default");
        assert_eq!(
            (&dead["attempts"], &dead["last_status"], &dead["last_error"]),
            (&json!(10), &json!(500), &json!("status"))
        );
        let path = format!("deliveries/{}", dead["id"]);
        assert_eq!(rig.get(&path).await, (200, dead.clone()));
        for _ in 0..2 {
            let (status, answer) = rig.post(&format!("{path}/resend"), "").await;
            assert_eq!((status, &answer["status"], &answer["attempts"]), (200, &json!("pending"), &json!(0)));
        }
        assert_eq!(numbered(&rig.get("deliveries?status=pending").await.1), ["one 1"]);
        let backlog = outbox::backlogs(test.store.db()).await.unwrap();
        assert_eq!((backlog[0].pending_count, backlog[0].room_count), (1, 1), "counted once");
        for (path, status, code) in [
            ("deliveries/999/resend", 404, "not_found"),
            ("deliveries/x/resend", 400, "bad_parameter"),
            ("deliveries/1/resend?x=y", 400, "unknown_parameter"),
        ] {
            let (got, answer) = rig.post(path, "").await;
            assert_eq!((got, &answer["code"]), (status, &json!(code)), "{path}");
        }
        let (status, answer) = rig.get("deliveries?webhook=nobody").await;
        assert_eq!((status, &answer["code"]), (400, &json!("bad_parameter")));
    }
}

#[tokio::test]
async fn a_webhook_is_paused_resumed_tried_and_sent_a_range_again() {
    for test in testing::both().await {
        let rig = Rig::new(&test.store).await;
        queue(&test.store).await;
        let (_, answer) = rig.get("webhooks").await;
        let expected = json!({
            "name": "default", "url": "https://hooks.example.org/", "enabled": true, "disabled_reason": null,
            "disabled_at": null, "pending": 7, "pending_rooms": 2, "oldest_pending_at": START.rfc3339(), "dead": 0,
            "oldest_dead_at": null,
        });
        assert_eq!(answer, json!({"count": 1, "webhooks": [expected]}));
        for _ in 0..2 {
            let (status, paused) = rig.post("webhooks/default/pause", "").await;
            assert_eq!(
                (status, &paused["enabled"], &paused["disabled_reason"]),
                (200, &json!(false), &json!("paused"))
            );
        }
        let (status, resumed) = rig.post("webhooks/default/resume", "").await;
        assert_eq!((status, resumed), (200, expected));

        deliver(&test.store).await;
        let range =
            r#"{"since": "2025-10-09T00:00:00Z", "until": "2025-10-09T09:00:00Z", "status": "delivered"}"#;
        assert_eq!(
            rig.post("webhooks/default/resend", range).await,
            (200, json!({"resent": 4, "next": null}))
        );
        assert_eq!(rig.post("webhooks/default/resend", range).await.1["resent"], 0);
        let ids = json!({"ids": [message("!one:example.org", 1).message_id, message("!two:example.org", 2).message_id]});
        assert_eq!(rig.post("webhooks/default/resend", &ids.to_string()).await.1["resent"], 2);
        assert_eq!(rig.get("webhooks").await.1["webhooks"][0]["pending"], 6);

        let (status, rotated) =
            rig.post("webhooks/default/rotate-secret", r#"{"overlap_seconds": 60}"#).await;
        assert_eq!((status, &rotated["name"]), (200, &json!("default")));
        assert_eq!(rotated["previous_until"], START.plus(std::time::Duration::from_mins(1)).rfc3339());
        let (_, again) = rig.post("webhooks/default/rotate-secret", "").await;
        assert!(again["secret"].as_str().is_some_and(|secret| secret.starts_with("whsec_")));
        assert_ne!(again["secret"], rotated["secret"]);

        let (status, trial) = rig.post("webhooks/default/test", "").await;
        assert_eq!(status, 202);
        let (_, page) = rig.get("deliveries?status=pending&limit=1").await;
        let newest = &page["deliveries"][0];
        assert_eq!((&newest["message_id"], &newest["type"]), (&trial["message_id"], &json!("webhook.test")));
        rig.post("webhooks/default/test", "").await;
        assert!(
            texts(&rig.get("messages").await.1).iter().all(|text| !text.starts_with("web")),
            "no message"
        );
        assert_eq!(rig.get("events").await.1["count"], 7, "no event");
        assert_eq!(rig.get("webhooks").await.1["webhooks"][0]["pending"], 8);
        bad_requests(&rig).await;
    }
}

async fn bad_requests(rig: &Rig) {
    for (path, body, status, code) in [
        ("webhooks/nobody/test", "", 404, "not_found"),
        ("webhooks/nobody/pause", "", 404, "not_found"),
        ("webhooks/nobody/rotate-secret", "", 404, "not_found"),
        ("webhooks/default/rotate-secret", r#"{"overlap_seconds": 2592001}"#, 400, "bad_body"),
        ("webhooks/default/rotate-secret", r#"{"overlap_seconds": -1}"#, 400, "bad_body"),
        ("webhooks/default/rotate-secret", r#"{"secret": "whsec_mine"}"#, 400, "bad_body"),
        ("webhooks/nobody/resend", r#"{"since": "2025-10-09T00:00:00Z"}"#, 404, "not_found"),
        ("webhooks/default/resend", "", 400, "bad_body"),
        ("webhooks/default/resend", "[", 400, "bad_body"),
        ("webhooks/default/resend", r#"{"sinse": "x"}"#, 400, "bad_body"),
        ("webhooks/default/resend", r#"{"since": "yesterday"}"#, 400, "bad_body"),
        ("webhooks/default/resend", r#"{"ids": []}"#, 400, "bad_body"),
        ("webhooks/default/resend", r#"{"ids": ["x"]}"#, 400, "bad_body"),
        ("webhooks/default/resend", r#"{"ids": ["x"], "since": "2025-10-09T00:00:00Z"}"#, 400, "bad_body"),
        (
            "webhooks/default/resend",
            r#"{"since": "2025-10-09T00:00:00Z", "status": "pending"}"#,
            400,
            "bad_body",
        ),
        ("webhooks/default/resend", r#"{"since": "2025-10-09T00:00:00Z", "cursor": "x"}"#, 400, "bad_cursor"),
        ("webhooks/default/resend", &" ".repeat(70_000), 413, "body_too_large"),
    ] {
        let (got, answer) = rig.post(path, body).await;
        assert_eq!((got, &answer["code"]), (status, &json!(code)), "{path} {body:.80}: {answer}");
    }
    let (status, answer) = rig.get("webhooks/default/test").await;
    assert_eq!((status, &answer["code"]), (405, &json!("method_not_allowed")));
}
