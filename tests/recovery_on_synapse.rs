//! What outlasts the database: the bot's identity and its room keys, and the owner's own backup.

use std::{fs, process::Output, time::Duration};

use matrix_sdk_crypto::{
    olm::{ExportedRoomKey, InboundGroupSession},
    secret_storage::SecretStorageKey,
    store::types::BackupDecryptionKey,
};
use ruma::events::{
    EventContentFromType, secret::request::SecretName, secret_storage::key::SecretStorageKeyEventContent,
};
use serde_json::{Map, Value, json, value::to_raw_value};

use crate::{
    store_on_synapse::{is_signed, public_key},
    support::{
        arrival::assert_arrives,
        coucou::Coucou,
        postgres::Database,
        receiver::{Attempt, Receiver},
        synapse::{Bridge, Client, Options, Sent, Synapse, User, as_service},
        until,
    },
};

const BOT: &str = "@coucou:localhost";
const OWNER: &str = "@owner:localhost";
const PASSWORD: &str = "the password of a scenario";
const ARRIVAL: Duration = Duration::from_mins(1);
/// A key with a good checksum that is nobody's.
const STRANGE: &str = "EsTb ZLfa Puin 6xGD j2oC VWwD Kpb1 fx5E 91Ct Mcb6 UQ8v HPQa";

/// The bot, and what the homeserver shows of it.
struct Bot(User);

impl Bot {
    fn of(coucou: &Coucou, synapse: &Synapse) -> Self {
        Self(as_service(&synapse.url(), &coucou.registered("as_token"), BOT))
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.0.try_request("GET", &format!("{path}?user_id={BOT}"), None).await
    }

    /// The version of the backup and how many keys it holds.
    async fn backup(&self) -> Option<(String, u64)> {
        let (status, answer) = self.get("v3/room_keys/version").await;
        (status == 200)
            .then(|| (answer["version"].as_str().unwrap().to_owned(), answer["count"].as_u64().unwrap()))
    }

    /// Waits until the backup holds so many keys, and answers its version.
    async fn backed_up(&self, count: u64) -> String {
        until(&format!("{count} keys in the backup"), ARRIVAL, async || {
            self.backup().await.filter(|(_, there)| *there == count).map(|(version, _)| version)
        })
        .await
    }

    /// All that must not change by accident: the identity, the devices, the secrets, the backup's version.
    async fn account(&self) -> Value {
        let query = json!({"device_keys": {BOT: []}});
        let keys = self.0.request("POST", &format!("v3/keys/query?user_id={BOT}"), Some(&query)).await;
        let mut account = vec![keys["master_keys"].clone(), keys["device_keys"].clone()];
        let default = self.secret("m.secret_storage.default_key").await;
        for name in ["m.cross_signing.master", "m.cross_signing.self_signing", "m.megolm_backup.v1"] {
            account.push(self.secret(name).await);
        }
        account.extend([default, json!(self.backup().await), self.get("v3/devices").await.1]);
        account.into()
    }

    async fn secret(&self, name: &str) -> Value {
        self.get(&format!("v3/user/{BOT}/account_data/{name}")).await.1
    }

    /// The identity's public keys and the ids of its devices that it has signed.
    async fn identity(&self) -> (String, Vec<String>) {
        let query = json!({"device_keys": {BOT: []}});
        let keys = self.0.request("POST", &format!("v3/keys/query?user_id={BOT}"), Some(&query)).await;
        let (master, signing) = (public_key(&keys, "master_keys"), public_key(&keys, "self_signing_keys"));
        assert!(is_signed(&keys["self_signing_keys"][BOT], BOT, &master), "{keys}");
        let devices = keys["device_keys"][BOT].as_object().unwrap().iter();
        let signed = devices.filter(|(_, device)| is_signed(device, BOT, &signing));
        (format!("{master} {signing}"), signed.map(|(id, _)| id.clone()).collect())
    }
}

/// What a command that must fail says: one line.
fn complaint(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it succeeded: {}", String::from_utf8_lossy(&output.stdout));
    let line = said.lines().find(|line| line.starts_with("coucou: ")).unwrap_or_default().to_owned();
    assert!(!line.is_empty() && line.len() < 600, "{said}");
    line
}

/// Waits until a text was logged so often.
async fn wait_for_lines(coucou: &Coucou, text: &str, count: usize) {
    until(&format!("{count} lines with: {text}"), ARRIVAL, async || {
        (coucou.log().matches(text).count() == count).then_some(())
    })
    .await;
}

fn ids(messages: &[Attempt]) -> Vec<(String, String)> {
    messages.iter().map(|message| (message.id.clone(), message.event_id().to_owned())).collect()
}

async fn rows(database: &Database) -> i64 {
    database.number("SELECT COUNT(*) FROM accounts").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_is_brought_back_with_the_recovery_key() {
    let (first, second) = (Database::create().await, Database::create().await);
    let coucou = Coucou::new().await.store(&first.url());
    let bridge = Bridge::new("instagram", &[]).await;
    let registrations = vec![coucou.registration(), bridge.registration()];
    let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
    let (receiver, url) = (Receiver::start().await, synapse.url());
    let bot = Bot::of(&coucou, &synapse);
    let mut coucou = coucou.homeserver(&url).webhook(&receiver);
    coucou.start().await;
    let send = || bridge.send(&url).invite(BOT).messages("text");
    let before = send().count(3).run().await;
    let portal = before.portal().to_owned();
    assert_arrives(&receiver, &[&before], ARRIVAL).await;
    bot.backed_up(1).await;
    let printed = coucou.run(&["recovery-key"]).await;
    let key = String::from_utf8(printed.stdout).unwrap().trim().to_owned();
    assert!(key.starts_with("Es") && printed.status.success(), "{key}");
    assert!(!coucou.log().contains(&key[..9]));

    // The start before it was printed reminded of it, the next one does not.
    wait_for_lines(&coucou, "the key backup is in use", 1).await;
    assert_eq!(coucou.log().matches("write down the recovery key").count(), 1, "{}", coucou.log());
    coucou.restart().await;
    wait_for_lines(&coucou, "the key backup is in use", 2).await;
    assert_eq!(coucou.log().matches("write down the recovery key").count(), 1, "{}", coucou.log());
    assert_eq!(coucou.api("stats").await.1["stored"]["crypto"]["recovery_key"], "printed");

    // The database is lost, and the bridge goes on in the old session.
    coucou.kill9();
    let (identity, devices) = bot.identity().await;
    assert_eq!(devices.len(), 1);
    drop(first);
    let meanwhile = send().room(&portal).count(1).run().await;
    let session = |sent: &Sent| sent.messages().last().unwrap().session_id.clone();
    assert_eq!(session(&meanwhile), session(&before), "only the lost device was given this key");

    let after = Receiver::start().await;
    let mut coucou = coucou.store(&second.url()).webhook(&after);
    bad_keys_change_nothing(&coucou, &bot, &second).await;

    fs::write(coucou.path("key"), format!("{key}\n")).unwrap();
    let restored = coucou.run(&["restore", "--recovery-key-file", "key", "--history", "all"]).await;
    let said = String::from_utf8_lossy(&restored.stdout).into_owned();
    assert!(restored.status.success(), "{said}{}", String::from_utf8_lossy(&restored.stderr));
    assert!(said.contains("1 of 1 room keys"), "{said}");
    let (same, devices) = bot.identity().await;
    assert_eq!(same, identity, "the identity is the old one");
    assert_eq!(devices.len(), 2, "the lost device, and the new one, which it signed");
    assert!(complaint(&coucou.run(&["restore", "--recovery-key", &key]).await).contains("already"));

    // What was said is read again under the same ids, and what was said meanwhile is decrypted.
    coucou.start().await;
    assert_arrives(&after, &[&before, &meanwhile], ARRIVAL).await;
    assert_eq!(ids(&after.messages())[..3], ids(&receiver.messages())[..]);
    let last = send().room(&portal).count(1).run().await;
    assert_ne!(session(&last), session(&before), "a new device, a new session");
    assert_arrives(&after, &[&before, &meanwhile, &last], ARRIVAL).await;
    bot.backed_up(2).await;
    assert_eq!(bot.identity().await.0, identity);
    assert_eq!(String::from_utf8(coucou.run(&["recovery-key"]).await.stdout).unwrap().trim(), key);
}

/// Every wrong start on the empty store is one line, and leaves everything as it was.
async fn bad_keys_change_nothing(coucou: &Coucou, bot: &Bot, database: &Database) {
    let before = bot.account().await;
    let mistyped = STRANGE.replace("Puin", "Pulm");
    for (args, expected) in [
        (&["serve"][..], "coucou restore"),
        (&["restore"][..], "no recovery key"),
        (&["restore", "--recovery-key", &mistyped][..], "mistyped"),
        (&["restore", "--recovery-key", &STRANGE[..50]][..], "mistyped"),
        (&["restore", "--recovery-key", STRANGE][..], "does not open"),
        (&["restore", "--recovery-key", "some passphrase"][..], "does not open"),
        (&["restore", "--recovery-key-file", "nowhere"][..], "nowhere cannot be read"),
    ] {
        let line = complaint(&coucou.run(args).await);
        assert!(line.contains(expected), "{args:?}: {line}");
        assert!(!line.contains("HPQa"), "{line}");
    }
    assert_eq!(bot.account().await, before);
    assert_eq!(rows(database).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_brings_itself_back_and_fills_a_backup_that_was_deleted() {
    let (first, second) = (Database::create().await, Database::create().await);
    let coucou = Coucou::new().await.store(&first.url());
    let bridge = Bridge::new("instagram", &[]).await;
    let registrations = vec![coucou.registration(), bridge.registration()];
    let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
    let (receiver, url) = (Receiver::start().await, synapse.url());
    let bot = Bot::of(&coucou, &synapse);
    // Nothing to restore from yet: one line, and no bot is made.
    let coucou = coucou.homeserver(&url).webhook(&receiver);
    let nothing = coucou.run(&["restore", "--recovery-key", STRANGE]).await;
    assert!(complaint(&nothing).contains("no secret storage"), "{nothing:?}");
    let mut coucou = coucou.set("COUCOU_RECOVERY_KEY", "a passphrase of the operator's");
    coucou.start().await;
    let send = || bridge.send(&url).invite(BOT).messages("text");
    let one = send().rotate_every(1).count(3).run().await;
    let portal = one.portal().to_owned();
    assert_arrives(&receiver, &[&one], ARRIVAL).await;
    let version = bot.backed_up(3).await;

    // Somebody deletes the backup: the next key finds that out, and all of them are put into a new one.
    let path = format!("v3/room_keys/version/{version}?user_id={BOT}");
    bot.0.request("DELETE", &path, None).await;
    assert_eq!(bot.backup().await, None);
    let two = send().room(&portal).count(1).run().await;
    assert_arrives(&receiver, &[&one, &two], ARRIVAL).await;
    assert_ne!(bot.backed_up(4).await, version);

    let (identity, _) = bot.identity().await;
    coucou.kill9();
    drop(first);
    let three = send().room(&portal).count(1).run().await;
    let after = Receiver::start().await;
    let mut coucou = coucou.store(&second.url()).webhook(&after);
    let wrong = coucou.sibling().set("COUCOU_RECOVERY_KEY", "another passphrase");
    assert!(complaint(&wrong.run(&["serve"]).await).contains("does not open"));
    assert_eq!(rows(&second).await, 0);
    coucou.start().await;
    let restored = async || coucou.log().contains("restored account").then_some(());
    until("the restore", ARRIVAL, restored).await;
    let (same, devices) = bot.identity().await;
    assert_eq!((&same, devices.len()), (&identity, 2));
    assert_eq!(second.number("SELECT COUNT(*) FROM megolm_inbound_sessions WHERE backed_up = 1").await, 4);
    // This session's key was sent to the lost device alone, and never reached the backup.
    let four = send().room(&portal).count(1).run().await;
    after
        .wait_until("what came after", ARRIVAL, |taken| {
            taken.iter().any(|message| message.event_id() == four.messages().next().unwrap().event_id)
        })
        .await;
    drop(three);

    // The way out without a key: another identity, and a backup of its own.
    coucou.kill9();
    let (third, version) = (Database::create().await, bot.backup().await.unwrap().0);
    let mut coucou = coucou.store(&third.url()).unset("COUCOU_RECOVERY_KEY");
    assert!(complaint(&coucou.run(&["serve"]).await).contains("--start-over"));
    let begun = coucou.run(&["restore", "--start-over"]).await;
    assert!(begun.status.success(), "{begun:?}");
    assert_ne!(bot.identity().await.0, same);
    coucou.start().await;
    let renewed = async || bot.backup().await.filter(|(now, _)| *now != version).map(drop);
    until("a backup of the new identity's", ARRIVAL, renewed).await;
}

/// A backup of the owner's, as the owner's own clients would have made it.
struct OwnersBackup {
    key: BackupDecryptionKey,
    version: String,
}

impl OwnersBackup {
    async fn make(owner: &User, recovery_key: &str) -> Self {
        let key = BackupDecryptionKey::new();
        let info = serde_json::to_value(key.to_backup_info()).unwrap();
        let answer = owner.request("POST", "v3/room_keys/version", Some(&info)).await;
        let data = |name: &str| format!("v3/user/{OWNER}/account_data/{name}");
        let default = owner.request("GET", &data("m.secret_storage.default_key"), None).await;
        let kind = format!("m.secret_storage.key.{}", default["key"].as_str().unwrap());
        let description =
            to_raw_value(&owner.request("GET", &data(&kind.replace('/', "%2F")), None).await).unwrap();
        let description = SecretStorageKeyEventContent::from_parts(&kind, &description).unwrap();
        let storage = SecretStorageKey::from_account_data(recovery_key, description).unwrap();
        let secret = storage.encrypt(key.to_base64().into_bytes(), &SecretName::RecoveryKey);
        let secret = json!({"encrypted": {storage.key_id(): secret}});
        owner.request("PUT", &data("m.megolm_backup.v1"), Some(&secret)).await;
        Self { key, version: answer["version"].as_str().unwrap().to_owned() }
    }

    /// Puts the keys that a client exports into it.
    async fn put(&self, owner: &User, room_id: &str, exported: &[Value]) {
        let public = self.key.megolm_v1_public_key();
        public.set_version(self.version.clone());
        let mut sessions = Map::new();
        for key in exported {
            let key: ExportedRoomKey = serde_json::from_value(key.clone()).unwrap();
            let session = InboundGroupSession::try_from(&key).unwrap();
            let id = session.session_id().to_owned();
            sessions.insert(id, serde_json::to_value(public.encrypt(session).await.unwrap()).unwrap());
        }
        let body = json!({"rooms": {room_id: {"sessions": sessions}}});
        owner.request("PUT", &format!("v3/room_keys/keys?version={}", self.version), Some(&body)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owners_recovery_key_signs_the_device_and_opens_the_owners_backup() {
    let bridge = Bridge::new("instagram", &["^@owner:localhost$"]).await;
    let options = Options { registrations: vec![bridge.registration()], encrypted: true };
    let mut synapse = Synapse::start(options).await;
    let owner = synapse.user("owner", PASSWORD).await;
    synapse.user("friend", PASSWORD).await;
    let phone = Client::log_in(&synapse, "owner", PASSWORD).await;
    let backup = OwnersBackup::make(&owner, &phone.recovery_key).await;
    // Before coucou: a portal, whose key the phone has and backs up, and a private room.
    let mut greeting = bridge.send(&synapse.url()).invite(OWNER).name("Alice").messages("text").start();
    let portal = greeting.portal().await;
    phone.join(&portal).await;
    let greeting = greeting.finish().await;
    let private = phone.private_room("@friend:localhost").await;
    phone.say(&private, "a secret").await;
    for room_id in [&portal, &private] {
        backup.put(&owner, room_id, &phone.export(room_id).await).await;
    }

    let database = Database::create().await;
    let coucou = Coucou::of_owner(OWNER).await.homeserver(&synapse.url()).store(&database.url());
    synapse.register(coucou.registration()).await;
    let secrets = secrets_of(&owner).await;
    let receiver = Receiver::start().await;
    let coucou = coucou.webhook(&receiver);
    // A key that does not fit costs nothing but a line.
    let mut coucou = coucou.set("COUCOU_OWNER_RECOVERY_KEY", STRANGE);
    coucou.start().await;
    let complains = async || coucou.log().contains("cannot be used: coucou goes on without").then_some(());
    until("a complaint about the key", ARRIVAL, complains).await;
    assert_eq!(signed_devices(&owner).await, [&*phone.device_id]);
    coucou.kill9();

    let mut coucou = coucou.set("COUCOU_OWNER_RECOVERY_KEY", &phone.recovery_key);
    coucou.start().await;
    until("the signature", ARRIVAL, async || (signed_devices(&owner).await.len() == 2).then_some(())).await;
    let session = greeting.messages().next().unwrap().session_id.clone().unwrap();
    let read = async || (sessions(&database, &portal).await.contains(&session)).then_some(());
    until("the key of before", ARRIVAL, read).await;
    assert_eq!(sessions(&database, &private).await, [""; 0], "nothing of rooms that are not relayed");

    // A key that nobody was given, and that only the owner's backup has.
    phone.prepare(&portal).await;
    let said = phone.say_prepared(&portal, "only for my backup").await;
    assert!(said.shared_with.is_empty());
    backup.put(&owner, &portal, &phone.export(&portal).await).await;
    let told = receiver
        .wait_until("what only the backup can open", ARRIVAL, |taken| {
            taken.iter().any(|message| message.event_id() == said.event_id)
        })
        .await;
    let told = told.iter().find(|message| message.event_id() == said.event_id).unwrap();
    assert_eq!(told.data()["matrix"]["content"], said.content);
    assert_eq!(secrets_of(&owner).await, secrets, "coucou only reads what is the owner's");

    // Neither the start that signed nor one that found the device signed speaks of devices that are not there.
    coucou.restart().await;
    wait_for_lines(&coucou, "the owner's key backup can be read", 2).await;
    for nonsense in ["might have been deleted", "NOBODY"] {
        let said: Vec<_> =
            coucou.log().lines().filter(|line| line.contains(nonsense)).map(str::to_owned).collect();
        assert_eq!(said, [""; 0]);
    }
}

/// The owner's secrets, identity and backup.
async fn secrets_of(owner: &User) -> Vec<Value> {
    let mut secrets = Vec::new();
    let keys = owner.query_keys(OWNER).await;
    secrets.extend(["master_keys", "self_signing_keys", "user_signing_keys"].map(|kind| keys[kind].clone()));
    for name in ["m.secret_storage.default_key", "m.cross_signing.self_signing", "m.megolm_backup.v1"] {
        let path = format!("v3/user/{OWNER}/account_data/{name}");
        secrets.push(owner.request("GET", &path, None).await);
    }
    let version = owner.request("GET", "v3/room_keys/version", None).await;
    secrets.extend([version["version"].clone(), version["auth_data"].clone()]);
    secrets
}

/// The devices that the owner's identity has signed.
async fn signed_devices(owner: &User) -> Vec<String> {
    let keys = owner.query_keys(OWNER).await;
    let signing = keys["self_signing_keys"][OWNER]["keys"].as_object().unwrap();
    let signing = signing.values().next().unwrap().as_str().unwrap();
    let devices = keys["device_keys"][OWNER].as_object().unwrap().iter();
    devices.filter(|(_, device)| is_signed(device, OWNER, signing)).map(|(id, _)| id.clone()).collect()
}

async fn sessions(database: &Database, room_id: &str) -> Vec<String> {
    use sqlx::Connection;
    let mut connection = sqlx::PgConnection::connect(&database.url()).await.unwrap();
    sqlx::query_scalar("SELECT session_id FROM megolm_inbound_sessions WHERE room_id = $1")
        .bind(room_id)
        .fetch_all(&mut connection)
        .await
        .unwrap()
}
