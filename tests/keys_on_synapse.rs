//! Room keys that did not come by themselves, on a real Synapse and PostgreSQL: asked of the bridge, or
//! brought in a file.

use std::{fs, process::Output, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    coucou::Coucou,
    postgres::Database,
    receiver::{Attempt, Receiver},
    synapse::{Bridge, Options, Synapse},
    until,
};

const BOT: &str = "@coucou:localhost";
const ARRIVAL: Duration = Duration::from_mins(1);
const PASSPHRASE: &str = "a passphrase that is long enough";

async fn synapse(coucou: &Coucou, bridges: &[&Bridge]) -> Synapse {
    let mut registrations = vec![coucou.registration()];
    registrations.extend(bridges.iter().map(|bridge| bridge.registration()));
    Synapse::start(Options { registrations, encrypted: true }).await
}

/// What a command printed; panics unless it succeeded.
fn printed(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {out}{err}", output.status);
    out.into_owned()
}

/// The one line that a command failed with.
fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<_> = err.lines().collect();
    assert_eq!(lines.len(), 1, "{err}");
    assert!(lines[0].starts_with("coucou: "), "{err}");
    err
}

async fn status(coucou: &Coucou) -> Value {
    let output = coucou.run(&["keys", "status", "--all", "--json"]).await;
    serde_json::from_str(&printed(&output)).unwrap()
}

/// What is stuck in a room, as soon as it is stuck for that reason.
async fn stuck(coucou: &Coucou, room_id: &str, reason: &str) -> Value {
    until(&format!("{reason} in {room_id}"), ARRIVAL, async || {
        // The first start takes a moment to make the device, without which there is nothing to tell.
        let output = coucou.run(&["keys", "status", "--all", "--json"]).await;
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        let stuck = status["stuck"].as_array().unwrap().iter();
        stuck.filter(|entry| entry["room_id"] == room_id).find(|entry| entry["reason"] == reason).cloned()
    })
    .await
}

fn assert_late(message: &Attempt, event_id: &str, trust: &str) {
    let data = message.data();
    assert_eq!(message.event_id(), event_id);
    assert_eq!(data["late"], json!(true));
    assert_eq!(data["encryption"]["trust"], json!(trust), "{data}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_key_is_asked_of_the_bridge_and_a_withheld_one_named() {
    let coucou = Coucou::new().await;
    let (losing, withholding) = (Bridge::new("instagram", &[]).await, Bridge::new("facebook", &[]).await);
    let synapse = synapse(&coucou, &[&losing, &withholding]).await;
    let (receiver, database) = (Receiver::start().await, Database::create().await);
    let mut coucou = coucou.homeserver(&synapse.url()).store(&database.url()).webhook(&receiver);
    coucou.start().await;

    let url = synapse.url();
    let send = losing.send(&url).invite(BOT).messages("text").name("Alice").lose_keys();
    let mut sending = send.arg("--admin", BOT).arg("--watch", "90").start();
    let portal = sending.portal().await;
    let said = sending.next().await.expect("the sender says something");
    let send = withholding.send(&url).invite(BOT).messages("text").name("Bob").flag("--withhold");
    let withheld = send.run().await;

    let entry = stuck(&coucou, &portal, "no_key").await;
    assert_eq!(entry["event_id"], json!(said.event_id));
    assert_eq!(entry["session_id"].as_str(), said.session_id.as_deref());
    assert!(entry["fix"].as_str().unwrap().contains("coucou keys import"), "{entry}");
    let entry = stuck(&coucou, withheld.portal(), "withheld:m.unverified").await;
    assert!(entry["fix"].as_str().unwrap().contains("verified"), "{entry}");

    let message = receiver.wait_for(1, ARRIVAL).await.remove(0);
    assert_late(&message, &said.event_id, "bridge");
    assert_eq!(message.data()["encryption"]["bridged_by"], json!(losing.bot()));
    let told = until("the request to be taken back", ARRIVAL, async || {
        let open = "SELECT COUNT(*) FROM key_requests q JOIN rooms r ON r.room_id = q.room_id \
                    WHERE r.network = 'instagram'";
        (database.number(open).await == 0).then_some(())
    });
    told.await;
    let status = status(&coucou).await;
    assert_eq!(status["accounts"][0]["forwards"], json!({"accepted": 1}), "{status}");
    assert_eq!(status["accounts"][0]["session_count"], json!(1));
    // The bridge that withholds was asked, too, and says no to who is no admin of it, which changes nothing.
    let entry = stuck(&coucou, withheld.portal(), "withheld:m.unverified").await;
    assert!(entry["tries"].as_i64().unwrap() > 0, "{entry}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_file_release_what_waits_for_them() {
    let coucou = Coucou::new().await;
    let bridge = Bridge::new("instagram", &[]).await;
    let synapse = synapse(&coucou, &[&bridge]).await;
    let (receiver, lost, found) =
        (Receiver::start().await, Database::create().await, Database::create().await);
    let mut coucou = coucou.homeserver(&synapse.url()).store(&lost.url()).webhook(&receiver);
    coucou.start().await;
    let url = synapse.url();
    let mut portals = Vec::new();
    for name in ["Alice", "Bob"] {
        let sent = bridge.send(&url).invite(BOT).messages("text").name(name).run().await;
        portals.push(sent.portal().to_owned());
    }
    receiver.wait_for(2, ARRIVAL).await;

    let (one, all) = (coucou.path("one.txt"), coucou.path("all.txt"));
    let (one, all) = (one.to_str().unwrap(), all.to_str().unwrap());
    let mut coucou = coucou.set("COUCOU_KEYS_PASSPHRASE", PASSPHRASE);
    let export = coucou.run(&["keys", "export", "--out", one, "--room", &portals[0]]).await;
    assert!(printed(&export).starts_with("exported 1 room keys"), "{export:?}");
    let export = coucou.run(&["keys", "export", "--out", all]).await;
    assert!(printed(&export).starts_with("exported 2 room keys"), "{export:?}");
    assert!(complaint(&coucou.run(&["keys", "export", "--out", all]).await).contains("--force"));
    printed(&coucou.run(&["keys", "export", "--out", all, "--force"]).await);

    // The store is lost, and what is said meanwhile is in sessions of which the new device has no keys.
    coucou.terminate().await;
    let mut said = Vec::new();
    for portal in &portals {
        let sent = bridge.send(&url).invite(BOT).no_wait().room(portal).messages("text").run().await;
        said.push(sent.messages().next().unwrap().event_id.clone());
    }
    let mut coucou = coucou.store(&found.url());
    assert!(complaint(&coucou.run(&["keys", "import", all]).await).contains("coucou serve"));
    coucou.start().await;
    for portal in &portals {
        let entry = stuck(&coucou, portal, "no_key").await;
        assert!(entry["fix"].as_str().unwrap().contains("coucou keys import"), "{entry}");
    }

    let text = fs::read_to_string(one).unwrap();
    let bad = coucou.path("bad.txt");
    let wrong = coucou.path("passphrase");
    fs::write(&wrong, "another passphrase\n").unwrap();
    let import = async |file: &str| complaint(&coucou.run(&["keys", "import", file]).await);
    for (content, why) in [
        (text.replacen("BEGIN", "BEGINN", 1), "no key export"),
        (text[..text.len() / 2].to_owned(), "cut off"),
        (text.replacen(&text[200..240], &"A".repeat(40), 1), "was changed"),
        ("\u{0}".to_owned(), "no key export"),
    ] {
        fs::write(&bad, content).unwrap();
        let complaint = import(bad.to_str().unwrap()).await;
        assert!(complaint.contains(why), "{complaint}");
    }
    assert!(import(coucou.path("missing").to_str().unwrap()).await.contains("cannot be read"));
    let args = ["keys", "import", one, "--passphrase-file", wrong.to_str().unwrap()];
    assert!(complaint(&coucou.run(&args).await).contains("passphrase does not open the file"));
    assert_eq!(found.number("SELECT COUNT(*) FROM megolm_inbound_sessions").await, 0, "nothing changed");

    // While it runs.
    let import = printed(&coucou.run(&["keys", "import", one]).await);
    assert!(import.contains(" 1 new") && import.contains(" 0 known"), "{import}");
    let messages = receiver.wait_for(3, ARRIVAL).await;
    assert_late(&messages[2], &said[0], "imported");

    // While it does not.
    coucou.terminate().await;
    let import = printed(&coucou.run(&["keys", "import", all]).await);
    assert!(import.contains(" 1 new") && import.contains(" 1 known"), "{import}");
    coucou.start().await;
    let messages = receiver.wait_for(4, ARRIVAL).await;
    assert_late(&messages[3], &said[1], "imported");

    let again = printed(&coucou.run(&["keys", "import", all]).await);
    assert!(again.contains(" 0 new") && again.contains(" 2 known"), "{again}");
    assert_eq!(found.number("SELECT COUNT(*) FROM key_imports").await, 0, "nothing is left of it");
    let status = printed(&coucou.run(&["keys", "status"]).await);
    assert!(status.contains("2 room keys for 2 rooms") && status.contains("nothing is stuck"), "{status}");
}
