//! Making sure that an account has its user and its device.
//!
//! The device id is chosen and stored before the homeserver hears of it, and every request here can be made
//! twice, so a process that dies half-way goes on with the same device.

use rand::Rng;
use ruma::{DeviceId, OwnedDeviceId, UserId};

use super::engine::CryptoError;
use crate::{
    clock::Timestamp,
    homeserver::{Homeserver, HomeserverError},
    model::{Account, Role},
    store::{Lease, Store, StoreError, accounts, leases},
};

/// What the device is called in its user's list of devices.
const DEVICE_NAME: &str = "coucou";

/// Finds or makes the account of a user: the user itself (the bot only), the row, the device.
///
/// # Errors
/// [`CryptoError::Refused`] when the homeserver knows keys of the device but the store does not: the store
/// was lost, and taking the device's place would make every sender refuse it.
pub async fn ensure_account(
    store: &Store,
    homeserver: &Homeserver,
    lease: &Lease,
    user_id: &UserId,
    role: Role,
    configured_device: Option<&DeviceId>,
    now: Timestamp,
) -> Result<Account, CryptoError> {
    if role == Role::Bot && homeserver.register(user_id.localpart()).await? {
        tracing::info!(account.user_id = %user_id, "registered the bot");
    }
    if let Some(account) = accounts::find(store.db(), user_id).await? {
        if configured_device.is_some_and(|device| device != account.device_id) {
            tracing::warn!(
                account.device_id = %account.device_id,
                "appservice.device_id differs from the device in the store, which is kept"
            );
        }
        ensure_device(homeserver, &account).await?;
        return Ok(account);
    }
    let device_id = match configured_device {
        Some(device_id) => device_id.to_owned(),
        None => random_device_id(),
    };
    refuse_taken_device(homeserver, user_id, &device_id).await?;
    let mut tx = store.begin().await?;
    leases::check(&mut tx, lease).await?;
    accounts::insert(&mut tx, user_id, &device_id, role, now).await?;
    tx.commit().await?;
    tracing::info!(account.user_id = %user_id, account.device_id = %device_id, "new device");
    let account = accounts::find(store.db(), user_id).await?.ok_or(StoreError::Corrupt("accounts"))?;
    ensure_device(homeserver, &account).await?;
    Ok(account)
}

async fn refuse_taken_device(
    homeserver: &Homeserver,
    user_id: &UserId,
    device_id: &DeviceId,
) -> Result<(), CryptoError> {
    let known = homeserver.published_keys(user_id).await?;
    if known.devices.contains_key(device_id) {
        return Err(CryptoError::Refused(format!(
            "the homeserver has keys for device {device_id} of {user_id}, but this store is empty: senders \
             refuse an old device with new keys. Point store.url (COUCOU_STORE_URL) at the store that made \
             it, or unset appservice.device_id (COUCOU_APPSERVICE_DEVICE_ID) to start with a new device"
        )));
    }
    Ok(())
}

/// Makes the device, or makes sure that it is there.
///
/// # Errors
/// When the homeserver cannot be reached or refuses.
pub async fn ensure_device(homeserver: &Homeserver, account: &Account) -> Result<(), CryptoError> {
    let (user_id, device_id) = (&account.user_id, &account.device_id);
    match homeserver.put_device(user_id, device_id, DEVICE_NAME).await {
        Ok(()) => Ok(()),
        Err(HomeserverError::Status { status: 403..=405, .. }) => {
            Ok(homeserver.login_appservice(user_id, device_id, DEVICE_NAME).await?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Ten random capital letters, as homeservers make them, after a prefix that a person recognises.
fn random_device_id() -> OwnedDeviceId {
    let mut rng = rand::rng();
    let random: String = (0..10).map(|_| char::from(rng.random_range(b'A'..=b'Z'))).collect();
    OwnedDeviceId::from(format!("COUCOU_{random}"))
}
