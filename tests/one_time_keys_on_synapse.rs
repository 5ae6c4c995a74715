//! One-time keys while others take them in a burst: nobody meets the fallback key for longer than a moment.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{
    coucou::Coucou,
    device::{Device, Peer},
    receiver::Receiver,
    synapse::{Options, Synapse},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);
/// How long the keys may be used up.
const MOMENT: Duration = Duration::from_secs(2);
/// The keys that are there when there are enough.
const ENOUGH: i64 = 200;

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_claims_does_not_use_the_one_time_keys_up() {
    let (coucou, receiver) = tokio::join!(Coucou::new(), Receiver::start());
    let options = Options { registrations: vec![coucou.registration()], encrypted: false };
    let synapse = Synapse::start(options).await;
    let stranger = synapse.user("stranger", "a password of a stranger").await;
    let mut coucou = coucou.homeserver(&synapse.url()).webhook(&receiver);
    coucou.start().await;
    let bot = Peer::of(BOT, &stranger).await;
    let mut stranger = Device::new(stranger);
    let filled = async || {
        until("enough keys", SOON, async || (synapse.one_time_keys_of(BOT).await == ENOUGH).then_some(()))
            .await;
    };
    filled().await;
    // Claims of which coucou hears nothing, and then more than are left, each for a session that it hears of.
    let (mut without, mut longest) = (None, Duration::ZERO);
    for number in 0..250 {
        let claimed = stranger.claim(&bot).await;
        if claimed["fallback"] == json!(true) {
            assert!(number >= 120, "claim {number} met the fallback key");
            longest = longest.max(without.get_or_insert_with(Instant::now).elapsed());
        } else {
            without = None;
        }
        if number >= 120 {
            stranger.begin(&bot, &claimed);
            stranger.send_olm(&bot, "m.dummy", &json!({})).await;
        }
    }
    assert!(longest < MOMENT, "used up for {longest:?}");
    filled().await;
    assert!(coucou.terminate().await.success());
}
