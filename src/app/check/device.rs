//! coucou's devices and their keys, as the store has them and as the homeserver shows them to everybody.

use std::sync::Arc;

use ruma::OwnedDeviceId;

use super::{Report, Scene, said};
use crate::{
    crypto::store::own_keys,
    homeserver::{Identity, PublishedDevice, PublishedKeys},
    model::{Account, Role},
    store::{
        Store,
        crypto::recovery_key::{self, RecoveryKeyHolder},
    },
};

/// What coucou calls its devices begins so.
const PREFIX: &str = "COUCOU_";

const RESTORE: &str = "point store.url (COUCOU_STORE_URL) at the store that made the device; when that is lost, \
                       `coucou restore` brings the bot back into an empty store";

/// Looks at the device of each account; answers the accounts whose device can be written to.
pub(super) async fn look(scene: &Scene<'_>, report: &mut Report) -> Vec<Account> {
    let Some(store) = &scene.store else { return Vec::new() };
    if scene.accounts.is_empty() {
        strangers_of_an_empty_store(scene, report).await;
        return Vec::new();
    }
    recovery_key(scene, store, report).await;
    let mut usable = Vec::new();
    for account in &scene.accounts {
        let shown = match scene.homeserver.published_keys(&account.user_id).await {
            Ok(shown) => shown,
            Err(error) => {
                let says = format!("the keys of {} cannot be asked for: {}", account.user_id, said(&error));
                report.fail("device", says, "look into the homeserver's log");
                continue;
            }
        };
        if keys(scene, store, account, &shown, report).await {
            one_time_keys(scene, account, report).await;
            usable.push(account.clone());
        }
        others(account, &shown, report);
    }
    usable
}

/// A store without a device is fine, unless the homeserver knows one.
async fn strangers_of_an_empty_store(scene: &Scene<'_>, report: &mut Report) {
    let Some(bot) = &scene.bot else { return };
    match scene.homeserver.published_keys(bot).await {
        Ok(shown) if !shown.devices.is_empty() => {
            let says = format!(
                "the store has no device, but {bot} has {} with keys on the homeserver",
                names(shown.devices.keys())
            );
            report.fail("device", says, RESTORE);
        }
        _ => report.warn(
            "device",
            format!("{bot} has no device yet"),
            "`coucou init` or `coucou serve` makes it",
        ),
    }
}

/// Whether somebody has the recovery key besides the database that it is to bring back.
async fn recovery_key(scene: &Scene<'_>, store: &Store, report: &mut Report) {
    let Some(bot) = scene.accounts.iter().find(|account| account.role == Role::Bot) else { return };
    match recovery_key::holder(store, bot.id).await {
        Ok(Some(RecoveryKeyHolder::Given)) => {
            report.ok("recovery_key", "the recovery key was given to coucou, so it is kept elsewhere too");
        }
        Ok(Some(RecoveryKeyHolder::Printed(at))) => {
            report.ok(
                "recovery_key",
                format!("coucou made the recovery key, and printed it at {}", at.rfc3339()),
            );
        }
        Ok(Some(RecoveryKeyHolder::NobodyElse)) => report.warn(
            "recovery_key",
            "coucou made the recovery key, and it was never printed: it would be lost with the database",
            "write down what `coucou recovery-key` prints, and keep it where the database is not",
        ),
        // `serve` and `init` make it when they have made the device.
        Ok(None) => {}
        Err(error) => {
            let says = format!("the recovery key cannot be read: {}", said(&error));
            report.fail("recovery_key", says, "look at the store, and bring it back from a backup");
        }
    }
}

/// Whether the homeserver shows the keys that the store has.
async fn keys(
    scene: &Scene<'_>,
    store: &Store,
    account: &Account,
    shown: &PublishedKeys,
    report: &mut Report,
) -> bool {
    let (user_id, device_id) = (&account.user_id, &account.device_id);
    let own = match own_keys(store, account.id, Arc::clone(&scene.clock)).await {
        Ok(own) => own,
        Err(error) => {
            let says = format!("the keys of {device_id} of {user_id} cannot be read: {}", said(&error));
            report.fail("device", says, "look at the store, and bring it back from a backup");
            return false;
        }
    };
    let again =
        "restart `coucou serve`, or run `coucou init` while it does not run: both upload the keys again";
    let Some(own) = own else {
        report.warn("device", format!("{device_id} of {user_id} has no keys yet"), again);
        return false;
    };
    let Some(device) = shown.devices.get(device_id) else {
        let says = format!(
            "the homeserver has no keys of {device_id} of {user_id}: nobody encrypts for it. Somebody has deleted \
             the device, or its keys were never uploaded"
        );
        report.fail("device", says, again);
        return false;
    };
    let same = device.curve25519.as_deref() == Some(&*own.curve25519)
        && device.ed25519.as_deref() == Some(&*own.ed25519);
    if !same {
        let says = format!("the homeserver shows other keys of {device_id} of {user_id} than this store has");
        report.fail("device", says, RESTORE);
        return false;
    }
    report.ok("device", format!("{device_id} of {user_id} has its keys on the homeserver"));
    identity(account, device, shown, report);
    true
}

/// Whether the device is signed by its user's identity: senders may soon encrypt for no other.
fn identity(account: &Account, device: &PublishedDevice, shown: &PublishedKeys, report: &mut Report) {
    let (user_id, device_id) = (&account.user_id, &account.device_id);
    if device.is_signed {
        report.ok("identity", format!("{device_id} is signed by the identity of {user_id}"));
        return;
    }
    let (says, remedy) = match (account.role, shown.has_identity) {
        (Role::Bot, _) => (
            format!(
                "{device_id} is not signed by an identity of {user_id}: some senders encrypt for signed devices only"
            ),
            "restart `coucou serve`, or run `coucou init` while it does not run",
        ),
        (Role::Owner, true) => (
            format!("{device_id} is not signed by the owner: some senders encrypt for signed devices only"),
            "set owner_recovery_key (COUCOU_OWNER_RECOVERY_KEY), or verify the session `coucou` with another client \
             of the owner's",
        ),
        (Role::Owner, false) => {
            report.ok("identity", format!("{user_id} has no identity that could sign {device_id}"));
            return;
        }
    };
    report.warn("identity", says, remedy);
}

async fn one_time_keys(scene: &Scene<'_>, account: &Account, report: &mut Report) {
    let (user_id, device_id) = (&account.user_id, &account.device_id);
    let identity = Identity { user_id: user_id.clone(), device_id: Some(device_id.clone()) };
    match scene.homeserver.one_time_key_counts(&identity).await {
        Ok(counts) => {
            let count = counts.get("signed_curve25519").copied().unwrap_or(0);
            let says = format!("{count} one-time keys of {device_id} are left on the homeserver");
            if count > 0 {
                report.ok("one_time_keys", says);
            } else {
                let remedy = "start `coucou serve`: it uploads some; when it runs, look into its log";
                report.warn("one_time_keys", says, remedy);
            }
        }
        Err(error) => {
            let says = format!(
                "how many one-time keys of {device_id} are left cannot be asked for: {}",
                said(&error)
            );
            report.warn("one_time_keys", says, "look into the homeserver's log");
        }
    }
}

/// Devices of a lost store, for which everybody goes on encrypting.
fn others(account: &Account, shown: &PublishedKeys, report: &mut Report) {
    let ours = |device_id: &OwnedDeviceId, device: &PublishedDevice| {
        // Of the owner's devices only those that coucou made are any business of ours.
        *device_id != account.device_id
            && (account.role == Role::Bot
                || device_id.as_str().starts_with(PREFIX)
                || device.name.as_deref() == Some("coucou"))
    };
    let others: Vec<_> =
        shown.devices.iter().filter(|(id, device)| ours(id, device)).map(|(id, _)| id).collect();
    if others.is_empty() {
        return;
    }
    let says = format!(
        "{} has a second device with keys, {}: of a lost store, or of another coucou that runs with the same \
         registration",
        account.user_id,
        names(others)
    );
    let remedy = "end the other coucou, or give it this store (store.url); delete the device that nobody uses \
                  (DELETE /_matrix/client/v3/devices/…, with the as_token)";
    report.warn("second_device", says, remedy);
}

fn names<'a>(ids: impl IntoIterator<Item = &'a OwnedDeviceId>) -> String {
    let mut ids: Vec<_> = ids.into_iter().map(|id| id.as_str()).collect();
    let more = ids.len().saturating_sub(5);
    ids.truncate(5);
    let names = ids.join(", ");
    if more > 0 { format!("{names} and {more} more") } else { names }
}
