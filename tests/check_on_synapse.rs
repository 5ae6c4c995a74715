//! `coucou init` and `coucou check` as an operator meets them: each of the usual breakages is named, with its remedy.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    coucou::{API_TOKEN, Coucou},
    fake_homeserver::FakeHomeserver,
    free_port, http,
    postgres::Database,
    receiver::{Answer, Receiver},
    synapse::{Bridge, Options, Synapse, as_service},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);

/// Runs `coucou check --json`; answers its report, whose status must fit its exit code.
async fn check(coucou: &Coucou) -> Value {
    let began = Instant::now();
    let output = coucou.run(&["check", "--json"]).await;
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.success(), report["status"] != "fail", "{report:#}");
    println!("check took {:?}", began.elapsed());
    report
}

/// The findings of one check with one status.
fn findings<'a>(report: &'a Value, check: &str, status: &str) -> Vec<&'a Value> {
    let all = report["checks"].as_array().unwrap().iter();
    all.filter(|finding| finding["check"] == check && finding["status"] == status).collect()
}

/// Asserts that a check has this status, says this, and names this remedy.
#[track_caller]
fn assert_finds(report: &Value, check: &str, status: &str, says: &str, remedy: &str) {
    let found = findings(report, check, status);
    let has =
        |finding: &Value, key: &str, part: &str| finding[key].as_str().unwrap_or_default().contains(part);
    let fits = found.iter().any(|finding| has(finding, "says", says) && has(finding, "remedy", remedy));
    assert!(fits, "no {status} of {check} that says {says:?} and {remedy:?} in {report:#}");
}

/// Asserts that all is well but what is named.
#[track_caller]
fn assert_only(report: &Value, wrong: &[&str]) {
    let all = report["checks"].as_array().unwrap().iter();
    let bad: Vec<_> = all.filter(|finding| finding["status"] != "ok").collect();
    let unexpected = bad.iter().any(|finding| !wrong.contains(&finding["check"].as_str().unwrap()));
    assert!(!unexpected, "{bad:#?}");
}

struct Scene {
    coucou: Coucou,
    bridge: Bridge,
    receiver: Receiver,
    synapse: Synapse,
    database: Database,
}

impl Scene {
    async fn set() -> Self {
        let (database, receiver) = (Database::create().await, Receiver::start().await);
        let coucou = Coucou::new().await.store(&database.url());
        let bridge = Bridge::new("instagram", &[]).await;
        let registrations = vec![coucou.registration(), bridge.registration()];
        let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
        let coucou = coucou.homeserver(&synapse.url()).webhook(&receiver);
        Self { coucou, bridge, receiver, synapse, database }
    }

    /// Runs a check with one environment variable changed.
    async fn check_with(&mut self, name: &str, value: &str) -> Value {
        let output = self.coucou.run_with(&["check", "--json"], name, value).await;
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named_with_its_remedy() {
    let mut scene = Scene::set().await;
    before_the_first_start(&scene).await;
    while_it_does_not_run(&mut scene).await;
    scene.coucou.start().await;
    while_it_runs(&mut scene).await;
    devices(&mut scene).await;
    without_features(&mut scene).await;
}

/// Nothing is there yet, and looking makes nothing.
async fn before_the_first_start(scene: &Scene) {
    let report = check(&scene.coucou).await;
    assert_finds(&report, "store", "warn", "empty", "coucou init");
    assert_finds(&report, "bot", "warn", "not registered", "coucou init");
    assert_finds(&report, "http", "warn", "does not run", "coucou serve");
    assert_eq!(scene.database.number("SELECT COUNT(*) FROM pg_tables WHERE schemaname = 'public'").await, 0);

    let output = scene.coucou.run(&["init"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for part in
        ["migrations were applied", "device COUCOU_", " made", "are on the homeserver", "is signed by"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.contains("coucou recovery-key") && text.contains("next: `coucou serve`"), "{text}");
    let again = String::from_utf8(scene.coucou.run(&["init"]).await.stdout).unwrap();
    assert!(again.contains("up to date") && again.contains(" was there"), "{again}");
    let device = |text: &str| text.lines().find(|line| line.contains("fingerprint")).unwrap().to_owned();
    assert_eq!(device(&again), device(&text), "the device is the same");
}

/// The check answers the homeserver itself.
async fn while_it_does_not_run(scene: &mut Scene) {
    let report = check(&scene.coucou).await;
    assert_only(&report, &["http", "lease", "recovery_key", "rooms"]);
    assert_finds(&report, "recovery_key", "warn", "never printed", "coucou recovery-key");
    let printed = scene.coucou.run(&["recovery-key"]).await;
    assert!(printed.status.success() && printed.stderr.is_empty(), "{printed:?}");
    let report = check(&scene.coucou).await;
    assert_only(&report, &["http", "lease", "rooms"]);
    assert_finds(&report, "recovery_key", "ok", "printed it at 20", "");
    assert_finds(&report, "ping", "ok", "reaches coucou", "");
    assert_finds(&report, "to_device", "ok", "by push and by the key lane", "");
    assert_finds(&report, "rooms", "warn", "not invited to any room", &format!("invite {BOT}"));
    assert_finds(&report, "webhooks", "ok", "took a signed webhook.test", "");
    assert_eq!(
        report["webhooks"],
        json!([{"name": "default", "receives": "everything; with what was said"}])
    );
    let trial = scene.receiver.attempts().pop().unwrap();
    assert_eq!((trial.event(), trial.status), ("webhook.test", Some(200)));

    let other = "0123456789abcdef0123456789abcdef0123456789abcdef";
    let report = scene.check_with("COUCOU_APPSERVICE_HS_TOKEN", other).await;
    assert_finds(&report, "ping", "fail", "another hs_token", "hs_token must be the same");
    assert_finds(&report, "to_device", "warn", "cannot push", "ping");
    let report = scene.check_with("COUCOU_APPSERVICE_AS_TOKEN", other).await;
    assert_finds(&report, "as_token", "fail", "M_UNKNOWN_TOKEN", "app_service_config_files");
    let report =
        scene.check_with("COUCOU_HOMESERVER_URL", &format!("http://127.0.0.1:{}", free_port())).await;
    assert_finds(&report, "homeserver", "fail", "cannot be reached", "start the homeserver");
    let report = scene.check_with("COUCOU_HOMESERVER_URL", &scene.receiver.url()).await;
    assert_finds(&report, "homeserver", "fail", "no Matrix homeserver", "COUCOU_HOMESERVER_URL");
    let report = scene.check_with("COUCOU_HTTP_PORT", &free_port().to_string()).await;
    assert_finds(&report, "ping", "fail", "does not reach coucou", "url in the registration");
    let report = scene.check_with("COUCOU_STORE_PICKLE_KEY", "another key that is long enough").await;
    assert_finds(&report, "store", "fail", "does not open this store", "COUCOU_STORE_PICKLE_KEY");
    assert!(!report.to_string().contains("another key that"), "no secret is shown");
    let report = scene.check_with("COUCOU_OWNER_MODE", "watch").await;
    assert_finds(&report, "settings", "fail", "owner_mode", "correct the setting");
}

async fn while_it_runs(scene: &mut Scene) {
    scene.bridge.send(&scene.synapse.url()).invite(BOT).messages("text").name("Alice").run().await;
    let before = scene.receiver.wait_for(1, SOON).await.len();
    let fence = scene.database.number("SELECT fence FROM leases WHERE name = 'crypto'").await;
    let report = check(&scene.coucou).await;
    assert_only(&report, &[]);
    assert_eq!(report["status"], "ok");
    assert_finds(&report, "http", "ok", "runs on", "");
    assert_finds(&report, "lease", "ok", "works the crypto", "");
    assert_finds(&report, "to_device", "ok", "by push and by the key lane", "");
    assert_finds(&report, "rooms", "ok", "1 of instagram", "");
    assert_eq!(scene.database.number("SELECT fence FROM leases WHERE name = 'crypto'").await, fence);
    assert_eq!(scene.receiver.messages().len(), before, "nothing was relayed but the trial");
    let init = String::from_utf8(scene.coucou.run(&["init"]).await.stdout).unwrap();
    assert!(init.contains("coucou runs already"), "{init}");

    metrics(scene).await;

    scene.receiver.answer_next([Answer::Status(500)]);
    let other = "0123456789abcdef0123456789abcdef0123456789abcdef";
    let report = scene.check_with("COUCOU_APPSERVICE_HS_TOKEN", other).await;
    assert_finds(&report, "webhooks", "fail", "the receiver answered 500", "receiver's log");
    assert_finds(&report, "http", "fail", "another hs_token", "restart");
    let text = String::from_utf8(scene.coucou.run(&["check"]).await.stdout).unwrap();
    assert!(text.contains("webhook default receives: everything") && text.contains(" 0 failures"), "{text}");
    assert!(!text.contains("docs/runbook.md"), "nothing is wrong: {text}");
    a_webhook_that_fails_shows_in_the_stats(scene).await;
}

/// What is sent is refused with 500: the statistics show what waits, and the API why.
async fn a_webhook_that_fails_shows_in_the_stats(scene: &Scene) {
    scene.receiver.answer_always(Some(Answer::Status(500)));
    let sent = scene.bridge.send(&scene.synapse.url()).invite(BOT).messages("text").name("Eve").run().await;
    let waiting = until("what waits for the webhook", SOON, async || {
        let (_, stats) = scene.coucou.api("stats").await;
        let webhook = stats["stored"]["deliveries"][0].clone();
        (webhook["pending"].as_u64()? > 0).then_some(webhook)
    })
    .await;
    assert!(waiting["oldest_pending_at"].is_string() && waiting["enabled"] == true, "{waiting}");
    until("the reason", SOON, async || {
        let (_, list) = scene.coucou.api("deliveries?status=pending").await;
        let tried = |one: &Value| one["last_status"] == 500 && one["last_error"] == "status";
        list["deliveries"].as_array()?.iter().any(tried).then_some(())
    })
    .await;
    let text = String::from_utf8(scene.coucou.run(&["check"]).await.stdout).unwrap();
    assert!(
        text.contains("the receiver answered 500") && text.contains("docs/runbook.md#webhooks"),
        "{text}"
    );
    scene.receiver.answer_always(None);
    let last = sent.messages().last().unwrap().event_id.clone();
    let taken =
        async || scene.receiver.taken().iter().any(|attempt| attempt.event_id() == last).then_some(());
    until("it to go on", SOON, taken).await;
}

/// Prometheus is told what happened, when it shows a token.
async fn metrics(scene: &Scene) {
    let url = format!("{}/metrics", scene.coucou.url());
    assert_eq!(http().get(&url).send().await.unwrap().status().as_u16(), 401);
    let answer = http().get(&url).basic_auth("anybody", Some(API_TOKEN)).send().await.unwrap();
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let text = answer.text().await.unwrap();
    let value = |series: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("{series} ")));
        let line = line.unwrap_or_else(|| panic!("no {series} in {text}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(value("coucou_inbox_transactions_total{outcome=\"new\"}") >= 2.0);
    assert!(value("coucou_inbox_transaction_seconds_count") >= 2.0);
    let created = "coucou_messages_stored_total{type=\"message.created\",direction=\"in\",encrypted=\"yes\"}";
    assert!(value(created) >= 1.0);
    assert!(value("coucou_crypto_key_wait_seconds_count") >= 1.0);
    assert!(value("coucou_crypto_room_keys_total") >= 1.0 && value("coucou_crypto_room_keys_stored") >= 1.0);
    let delivered = "coucou_outbox_attempts_total{webhook=\"default\",outcome=\"delivered\"}";
    assert!(value(delivered) >= 1.0);
    assert!(value("coucou_outbox_attempt_seconds_count{webhook=\"default\"}") >= 1.0);
    assert!(value("coucou_keylane_messages_total") >= 1.0);
    assert!(value("coucou_crypto_one_time_keys{account=\"bot\"}") > 0.0);
    for series in ["coucou_crypto_leader", "coucou_crypto_lease_held", "coucou_rooms{relay=\"yes\"}"] {
        assert!((value(series) - 1.0).abs() < 0.1, "{series}");
    }
    assert!((value("coucou_store_up{backend=\"postgres\"}") - 1.0).abs() < 0.1);
    assert!(value("coucou_store_connections_max") >= 10.0);
    assert!(value("coucou_outbox_pending{webhook=\"default\"}") < 1.0);
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("coucou_inbox_last_transaction_timestamp_seconds") > 1.7e9);
    for secret in ["!", "@", "localhost", "whsec_", API_TOKEN] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

/// A second device of the bot, and a first one that somebody has deleted.
async fn devices(scene: &mut Scene) {
    let bot = as_service(&scene.synapse.url(), &scene.coucou.registered("as_token"), BOT);
    let for_bot = |path: &str| format!("{path}?user_id={BOT}");
    let of_device = |path: &str, device: &str| format!("{path}?user_id={BOT}&device_id={device}");
    bot.request_any("PUT", &for_bot("v3/devices/OTHER"), &json!({"display_name": "coucou"})).await;
    let keys = json!({"device_keys": {
        "user_id": BOT, "device_id": "OTHER", "algorithms": ["m.megolm.v1.aes-sha2"],
        "keys": {"curve25519:OTHER": "a", "ed25519:OTHER": "b"}, "signatures": {},
    }});
    bot.request_any("POST", &of_device("v3/keys/upload", "OTHER"), &keys).await;
    let report = check(&scene.coucou).await;
    assert_finds(&report, "second_device", "warn", "OTHER", "delete the device");

    assert!(scene.coucou.terminate().await.success());
    let output = String::from_utf8(scene.coucou.run(&["init"]).await.stdout).unwrap();
    let device = output.split("device COUCOU_").nth(1).unwrap().split(' ').next().unwrap();
    let device = format!("COUCOU_{device}");
    for device in ["OTHER", &device] {
        bot.request_any("DELETE", &for_bot(&format!("v3/devices/{device}")), &json!({})).await;
    }
    let report = check(&scene.coucou).await;
    assert_finds(&report, "device", "fail", "no keys of COUCOU_", "coucou init");
    let output = scene.coucou.run(&["init"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = check(&scene.coucou).await;
    assert_only(&report, &["http", "lease", "one_time_keys"]);
    scene.coucou.start().await;
    let before = scene.receiver.messages().len();
    // One that is encrypted for the device again, and one whose key is lost on the way.
    let send = || scene.bridge.send(&scene.synapse.url()).invite(BOT).messages("text");
    tokio::join!(send().name("Bob").run(), send().name("Carol").lose_keys().run());
    scene.receiver.wait_for(before + 1, SOON).await;
    until("one-time keys again", SOON, async || {
        let report = check(&scene.coucou).await;
        findings(&report, "one_time_keys", "warn").is_empty().then_some(())
    })
    .await;
}

/// The homeserver does not push to-device messages.
async fn without_features(scene: &mut Scene) {
    scene.synapse.stop().await;
    scene.synapse.encrypt(false);
    let report = check(&scene.coucou).await;
    assert_finds(&report, "homeserver", "fail", "cannot be reached", "start the homeserver");
    scene.synapse.resume().await;
    let (_, stats) = scene.coucou.api("stats").await;
    assert_eq!(stats["stored"]["crypto"]["is_held"], true);
    // It holds up its room for a while before it is given up.
    until("the message whose key was lost on the ledger", SOON, async || {
        let report = check(&scene.coucou).await;
        (!findings(&report, "messages", "warn").is_empty()).then_some(())
    })
    .await;
    let report = check(&scene.coucou).await;
    assert_finds(&report, "to_device", "warn", "by the key lane alone", "msc2409_to_device_messages_enabled");
    assert_finds(&report, "messages", "warn", "no_key", "coucou keys status");
    let (_, stats) = scene.coucou.api("stats").await;
    assert_eq!(stats["stored"]["undecryptable"]["no_key"]["hour"], 1, "{stats}");
    let (_, ledger) = scene.coucou.api("undecryptable?reason=no_key").await;
    assert!(ledger["events"][0]["next_step"].as_str().is_some_and(|step| step.len() > 20), "{ledger}");
}

/// Metrics on a port of their own need no token, and go on while the store is away.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_a_port_of_their_own() {
    let coucou = Coucou::new().await;
    let homeserver = FakeHomeserver::start(&coucou).await;
    let port = free_port().to_string();
    let nowhere = format!("postgres://postgres@127.0.0.1:{}/nothing", free_port());
    let coucou = coucou.homeserver(&homeserver.url()).store(&nowhere);
    let mut coucou = coucou.set("COUCOU_METRICS_PORT", &port).set("COUCOU_METRICS_PATH", "/own/metrics");
    coucou.spawn();
    coucou.healthy().await;
    let url = format!("http://127.0.0.1:{port}/own/metrics");
    let text = http().get(&url).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("coucou_store_up{backend=\"postgres\"} 0"), "{text}");
    assert!(!text.contains("coucou_inbox_rows "), "{text}");
    assert_eq!(coucou.api("../../own/metrics").await.0, 404, "and not on the main one");
    let report = check(&coucou).await;
    assert_finds(&report, "http", "fail", "degraded: its store is unavailable", "the store");
    assert_finds(&report, "store", "fail", "the database is unavailable", "start the database");
    let (_, stats) = coucou.api("stats").await;
    let state = stats["store"]["state"].as_str().unwrap();
    assert!(state.starts_with("unavailable: ") && stats["stored"].is_null(), "{stats}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off_by_an_hour_is_told_of() {
    let coucou = Coucou::new().await;
    let homeserver = FakeHomeserver::start(&coucou).await;
    let coucou = coucou.homeserver(&homeserver.url());
    for (hours, word) in [(-1, "ahead of"), (1, "behind")] {
        let date = time::OffsetDateTime::now_utc() + time::Duration::hours(hours);
        let date = date.format(&time::format_description::well_known::Rfc2822).unwrap();
        homeserver.set_date(Some(date.replace("+0000", "GMT")));
        let report = check(&coucou).await;
        assert_finds(&report, "clock", "fail", &format!("s {word} the homeserver's"), "NTP");
    }
    let report = check(&coucou).await;
    assert_finds(&report, "webhooks", "warn", "no webhook is set", "COUCOU_WEBHOOK_URL");
    assert!(!coucou.path("coucou.db").exists(), "looking makes no store");
    homeserver.set_date(None);
    let report = check(&coucou).await;
    assert_finds(&report, "clock", "ok", "agree", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_is_told_whose_invites_to_accept() {
    let owner = "@owner:localhost";
    let (coucou, bridge) = tokio::join!(Coucou::of_owner(owner), Bridge::new("instagram", &[]));
    let registrations = vec![coucou.registration(), bridge.registration()];
    let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
    synapse.user("owner", "the password of a scenario").await;
    let coucou = coucou.homeserver(&synapse.url());
    assert!(coucou.run(&["init"]).await.status.success());
    let report = check(&coucou).await;
    assert_only(&report, &["http", "lease", "recovery_key", "rooms", "webhooks"]);
    assert_finds(
        &report,
        "rooms",
        "warn",
        "in any room: there is nothing to relay",
        "accept its first invite",
    );
    bridge.send(&synapse.url()).invite(owner).no_wait().messages("text").count(1).run().await;
    let report = check(&coucou).await;
    assert_finds(&report, "rooms", "warn", &format!("1 invites of {owner} wait"), "accept its first invite");
}
