//! One-time keys while others take them in a burst: nobody meets the fallback key for longer than a moment.

use std::time::{Duration, Instant};

use matrix_sdk_crypto::vodozemac::{
    Curve25519PublicKey,
    olm::{Account, SessionConfig},
};
use serde_json::{Value, json};

use crate::support::{
    coucou::Coucou,
    receiver::Receiver,
    synapse::{Options, Synapse, User},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);
/// How long the keys may be used up.
const MOMENT: Duration = Duration::from_secs(2);
/// The keys that are there when there are enough.
const ENOUGH: i64 = 200;

/// A stranger who takes one-time keys of the bot's device.
struct Taker {
    user: User,
    account: Account,
    device_id: String,
    curve25519: String,
    ed25519: String,
    /// Since when there have been no keys.
    without: Option<Instant>,
    longest: Duration,
}

impl Taker {
    /// Knows the bot's device once that is there.
    async fn of(user: User) -> Self {
        let device = until("coucou's keys", SOON, async || {
            user.query_keys(BOT).await["device_keys"][BOT].as_object()?.values().next().cloned()
        })
        .await;
        let device_id = device["device_id"].as_str().unwrap().to_owned();
        let key = |kind: &str| device["keys"][format!("{kind}:{device_id}")].as_str().unwrap().to_owned();
        let (curve25519, ed25519) = (key("curve25519"), key("ed25519"));
        let (account, without, longest) = (Account::new(), None, Duration::ZERO);
        Self { user, account, device_id, curve25519, ed25519, without, longest }
    }

    /// Takes a key, and notes when it is the fallback key.
    async fn take(&mut self) -> String {
        let body = json!({"one_time_keys": {BOT: {&self.device_id: "signed_curve25519"}}});
        let answer = self.user.request("POST", "v3/keys/claim", Some(&body)).await;
        let keys = answer["one_time_keys"][BOT][&self.device_id].as_object().expect("there is a fallback key");
        let key = keys.values().next().expect("there is a fallback key");
        if key["fallback"] == json!(true) {
            let since = *self.without.get_or_insert_with(Instant::now);
            self.longest = self.longest.max(since.elapsed());
        } else {
            self.without = None;
        }
        key["key"].as_str().unwrap().to_owned()
    }

    /// Begins an Olm session with a key, by a message that says nothing.
    async fn begin(&mut self, number: usize) {
        let key = Curve25519PublicKey::from_base64(&self.take().await).unwrap();
        let ours = Curve25519PublicKey::from_base64(&self.curve25519).unwrap();
        let config = SessionConfig::version_1();
        let mut session = self.account.create_outbound_session(config, ours, key).unwrap();
        let plain = json!({
            "type": "m.dummy", "content": {}, "sender": self.user.mxid,
            "keys": {"ed25519": self.account.ed25519_key().to_base64()},
            "recipient": BOT, "recipient_keys": {"ed25519": self.ed25519},
        });
        let content = json!({
            "algorithm": "m.olm.v1.curve25519-aes-sha2",
            "sender_key": self.account.curve25519_key().to_base64(),
            "ciphertext": {&self.curve25519: session.encrypt(plain.to_string()).unwrap()},
        });
        let body: Value = json!({"messages": {BOT: {&self.device_id: content}}});
        let path = format!("v3/sendToDevice/m.room.encrypted/{number}");
        self.user.request("PUT", &path, Some(&body)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_claims_does_not_use_the_one_time_keys_up() {
    let (coucou, receiver) = tokio::join!(Coucou::new(), Receiver::start());
    let options = Options { registrations: vec![coucou.registration()], encrypted: false };
    let synapse = Synapse::start(options).await;
    let stranger = synapse.user("stranger", "a password of a stranger").await;
    let mut coucou = coucou.homeserver(&synapse.url()).webhook(&receiver);
    coucou.start().await;
    let mut taker = Taker::of(stranger).await;
    let filled = async || {
        until("enough keys", SOON, async || (synapse.one_time_keys_of(BOT).await == ENOUGH).then_some(())).await;
    };
    filled().await;
    for _ in 0..120 {
        taker.take().await;
    }
    assert_eq!(taker.longest, Duration::ZERO, "claims of which coucou hears nothing");
    filled().await;
    for number in 0..450 {
        taker.begin(number).await;
    }
    assert!(taker.longest < MOMENT, "used up for {:?}", taker.longest);
    filled().await;
    assert!(coucou.terminate().await.success());
}
