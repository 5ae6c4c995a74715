//! A to-device message from coucou to itself: do keys come by push, by the key lane, or by both?

use std::{collections::BTreeSet, time::Duration};

use rand::{Rng, distr::Alphanumeric};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{Report, Scene, door::Door, said};
use crate::{
    homeserver::{HomeserverError, Identity},
    http::stand_in::Heard,
    inbox::batch::{PROBE, probe_nonce},
    model::Account,
    store::{Store, StoreError, probes},
};

/// How long the message may take by one way at least.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long it may take by the other way, once it has come by one.
const OTHER: Duration = Duration::from_secs(3);

/// How often is looked for it.
const LOOK: Duration = Duration::from_millis(100);

/// To-device messages of a page of `/sync` that others follow.
const FULL_PAGE: usize = 100;

const FLAGS: &str = "the homeserver's administrator should set experimental_features: \
                     msc2409_to_device_messages_enabled and msc3202_transaction_extensions (in Ansible: \
                     matrix_synapse_experimental_features_msc2409_to_device_messages_enabled and \
                     matrix_synapse_experimental_features_msc3202_transaction_extensions_enabled), restart the \
                     homeserver, and check that the registration has receive_ephemeral, \
                     de.sorunome.msc2409.push_ephemeral and org.matrix.msc3202";

/// The ways by which the message came.
#[derive(Debug, Default)]
struct Came {
    pushed: bool,
    with_counts: bool,
    by_lane: bool,
}

impl Came {
    fn take(&mut self, ways: &[String]) {
        for way in ways {
            match way.as_str() {
                "push" => (self.pushed, self.with_counts) = (true, true),
                "push_without_counts" => self.pushed = true,
                _ => self.by_lane = true,
            }
        }
    }

    fn report(&self, scene: &Scene<'_>, account: &Account, report: &mut Report) {
        let device_id = &account.device_id;
        match (self.pushed, self.by_lane) {
            (true, true) if self.with_counts => {
                report.ok("to_device", format!("messages to {device_id} come by push and by the key lane"));
            }
            (true, true) => {
                let says = format!(
                    "messages to {device_id} come by push and by the key lane, but without key counts: the homeserver's \
                     msc3202_transaction_extensions are off, or its copy of the registration lacks org.matrix.msc3202; \
                     coucou asks for the counts by the key lane"
                );
                report.warn("to_device", says, FLAGS);
            }
            (false, true) => {
                let says = format!(
                    "messages to {device_id} come by the key lane alone: the homeserver does not push them: its \
                     experimental features for encrypted application services are off, or its copy of the registration \
                     does not ask for them. Keys arrive all the same"
                );
                report.warn("to_device", says, FLAGS);
            }
            (true, false) => {
                let says = format!("messages to {device_id} come by push, but not by the key lane");
                let remedy = "look into the log of `coucou serve` for the key lane: keys whose push fails would be lost";
                report.fail("to_device", says, remedy);
            }
            (false, false) => {
                let says = format!("a message to {device_id} did not come within {} s", PATIENCE.as_secs());
                let remedy = if scene.is_led {
                    "look into the log of `coucou serve`, then into the homeserver's"
                } else {
                    "look into the homeserver's log"
                };
                report.fail("to_device", says, remedy);
            }
        }
    }
}

/// Sends a message to an account's device and waits for it.
pub(super) async fn make(
    scene: &Scene<'_>,
    account: &Account,
    is_reached: bool,
    door: &mut Door,
    report: &mut Report,
) {
    let device_id = &account.device_id;
    let mut came = trip(scene, account, is_reached, door, report).await;
    // Homeservers lose a push now and then, which says nothing of their features.
    if is_reached && matches!(&came, Some(Ok(came)) if came.by_lane && !came.pushed) {
        came = trip(scene, account, is_reached, door, report).await;
    }
    match came {
        Some(Ok(came)) if came.by_lane && !came.pushed && !is_reached => {
            let says =
                format!("messages to {device_id} come by the key lane; the homeserver cannot push them");
            report.warn("to_device", says, "see the line about the ping");
        }
        Some(Ok(came)) => came.report(scene, account, report),
        Some(Err(error)) => report.fail("to_device", said(&error), "see the line about the store"),
        None => {}
    }
}

/// Sends one message, and answers by which ways it came; `None` when it could not be sent, which is reported.
async fn trip(
    scene: &Scene<'_>,
    account: &Account,
    is_reached: bool,
    door: &mut Door,
    report: &mut Report,
) -> Option<Result<Came, StoreError>> {
    let store = scene.store.as_ref()?;
    let nonce: String = rand::rng().sample_iter(Alphanumeric).take(32).map(char::from).collect();
    let (user_id, device_id) = (&account.user_id, &account.device_id);
    let content = json!({ "nonce": nonce });
    if let Err(error) = scene.homeserver.send_to_own_device(user_id, device_id, PROBE, content).await {
        let says = format!("no message can be sent to {device_id} of {user_id}: {}", said(&error));
        report.fail("to_device", says, "look into the homeserver's log");
        return None;
    }
    Some(match door {
        Door::StandIn(stand_in) if !scene.is_led => {
            let mut came = Came { by_lane: lane(scene, account, &nonce, report).await, ..Came::default() };
            // What cannot come need not be waited for.
            let until = Instant::now() + if is_reached { OTHER } else { Duration::ZERO };
            while !came.pushed && Instant::now() < until {
                if let Some(Heard::Pushed { nonces, has_counts }) =
                    stand_in.hear(until - Instant::now()).await
                    && nonces.contains(&nonce)
                {
                    (came.pushed, came.with_counts) = (true, has_counts);
                }
            }
            Ok(came)
        }
        _ => watch(store, &nonce).await,
    })
}

/// Waits until whoever works the crypto has noted the message.
async fn watch(store: &Store, nonce: &str) -> Result<Came, StoreError> {
    let mut came = Came::default();
    let (began, mut first) = (Instant::now(), None);
    loop {
        let ways = probes::find(store.db(), nonce).await?;
        came.take(&ways);
        if !ways.is_empty() && first.is_none() {
            first = Some(Instant::now());
        }
        let done = came.pushed && came.by_lane;
        let late = first.map_or(began.elapsed() > PATIENCE, |first: Instant| first.elapsed() > OTHER);
        if done || late {
            return Ok(came);
        }
        sleep(LOOK).await;
    }
}

/// Whether the device's inbox has the message. The position that is stored is asked from and stays where it is, so
/// nothing is acknowledged that is not durable.
async fn lane(scene: &Scene<'_>, account: &Account, nonce: &str, report: &mut Report) -> bool {
    let identity = Identity { user_id: account.user_id.clone(), device_id: Some(account.device_id.clone()) };
    let since = account.sync_token.as_deref();
    let page = match scene.homeserver.sync(&identity, since, Duration::ZERO).await {
        // The homeserver does not know the position any more: coucou begins anew then.
        Err(HomeserverError::Status { status: 400, .. }) if since.is_some() => {
            scene.homeserver.sync(&identity, None, Duration::ZERO).await
        }
        page => page,
    };
    match page {
        Ok(page) => {
            let nonces: BTreeSet<_> =
                page.to_device.iter().filter_map(|message| Some(probe_nonce(message)?.1)).collect();
            // Behind a hundred others it is not in sight, and comes when they have been fetched.
            nonces.contains(nonce) || page.to_device.len() >= FULL_PAGE
        }
        Err(error) => {
            let says = format!("the key lane of {} fails: {}", account.device_id, said(&error));
            report.fail("to_device", says, "look into the homeserver's log");
            false
        }
    }
}
