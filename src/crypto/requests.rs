//! Asking for room keys that events on the ledger wait for
//! ([`m.room_key_request`](https://spec.matrix.org/latest/client-server-api/#mroom_key_request)).
//!
//! Two are asked: the device that made the session, when it is one of the room's believed bridge bot's, whose
//! answer `forward` takes; and the account's own other devices, when one of them is verified, whose
//! answer the SDK takes. Bridges of mautrix's make answer to an admin of the bridge with a cross-signed device.
//!
//! Requests are rows before they are sent, so a restart neither forgets them nor asks again at once. Each is
//! repeated ever more rarely, and taken back once nothing waits for the key any more.

use std::{collections::HashMap, error::Error, sync::Arc, time::Duration};

use matrix_sdk_crypto::{store::CryptoStore as _, types::events::room::encrypted::EncryptedEvent};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, TransactionId, UserId, serde::Raw};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    engine::{CryptoError, Engine},
    keylane::backoff,
};
use crate::{
    clock::{SharedClock, Timestamp},
    model::{AccountId, text::is_id},
    store::{
        Lease, Store,
        key_requests::{self, KeyRequest, Wanted},
        leases, memberships, pending,
    },
};

/// How long an event is on the ledger before its key is asked for: keys come late more often than never.
const FIRST: Duration = Duration::from_secs(10);

/// How long after each request the next one follows; the last one again and again.
const AGAIN: [Duration; 5] = [
    Duration::from_mins(1),
    Duration::from_mins(10),
    Duration::from_hours(1),
    Duration::from_hours(6),
    Duration::from_hours(24),
];

/// How often due requests are looked for, and how often the ledger when nobody tells that it changed.
const TICK: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_mins(1);

/// How long is waited after a change: a burst of them is one.
const BURST: Duration = Duration::from_secs(1);

/// Requests sent in one tick.
const MOST_SENT: i64 = 20;

/// Sessions looked at in one tick.
const MOST_PLANNED: i64 = 200;

/// Sessions asked of one device that it has not given.
const MOST_OUTSTANDING: i64 = 500;

/// Devices of a bridge bot that are asked when the event does not say which one made the session.
const MOST_DEVICES: usize = 3;

/// Stands for all devices of a user ([spec](https://spec.matrix.org/latest/client-server-api/#put_matrixclientv3sendtodeviceeventtypetxnid)).
const ALL: &str = "*";

/// When a request is due again that was sent so often.
fn next_at(now: Timestamp, tries: i64) -> Timestamp {
    let last = AGAIN[AGAIN.len() - 1];
    now.plus(usize::try_from(tries).ok().and_then(|tries| AGAIN.get(tries).copied()).unwrap_or(last))
}

/// Asks for keys, for all accounts.
#[derive(Debug)]
pub struct Asker {
    store: Store,
    lease: Lease,
    engines: Vec<Engine>,
    clock: SharedClock,
    /// The ledger changed.
    wake: Arc<Notify>,
}

/// What an encrypted event says of its session's maker. Senders may leave it out
/// ([spec](https://spec.matrix.org/latest/client-server-api/#mroomencrypted)).
#[derive(Debug, Default, Deserialize)]
struct Maker {
    sender_key: Option<String>,
    device_id: Option<String>,
}

#[derive(Deserialize)]
struct Encrypted {
    #[serde(default)]
    content: Maker,
}

impl Asker {
    /// An asker over the engines of a term.
    #[must_use]
    pub fn new(
        store: Store,
        lease: Lease,
        engines: Vec<Engine>,
        clock: SharedClock,
        wake: Arc<Notify>,
    ) -> Self {
        Self { store, lease, engines, clock, wake }
    }

    /// Asks until told to stop, or until the store fails.
    ///
    /// # Errors
    /// When the store fails or the lease is lost; the homeserver's failures are waited out here.
    pub async fn run(self, stop: CancellationToken) -> Result<(), CryptoError> {
        let mut failures = 0;
        let mut looked_at: Option<Timestamp> = None;
        while !stop.is_cancelled() {
            let now = self.clock.now();
            let look = looked_at.is_none_or(|at| now.since(at) >= LOOK);
            let wait = match self.step(look).await {
                Ok(()) => {
                    failures = 0;
                    looked_at = if look { Some(now) } else { looked_at };
                    TICK
                }
                Err(error) if error.is_of_the_store() => return Err(error),
                Err(error) => {
                    failures += 1;
                    tracing::warn!(error = &error as &dyn Error, failures, "could not ask for room keys");
                    backoff(failures)
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(wait) => {}
                () = self.wake.notified() => {
                    looked_at = None;
                    tokio::select! { () = stop.cancelled() => {}, () = sleep(BURST) => {} }
                }
            }
        }
        Ok(())
    }

    /// With `look`, compares requests with the ledger; then sends those that are due.
    ///
    /// # Errors
    /// When the store or the homeserver fails.
    pub async fn step(&self, look: bool) -> Result<(), CryptoError> {
        if look {
            self.plan().await?;
            self.take_back().await?;
        }
        for request in key_requests::due(self.store.db(), self.clock.now(), MOST_SENT).await? {
            self.ask(request).await?;
        }
        Ok(())
    }

    fn engine(&self, id: AccountId) -> Option<&Engine> {
        self.engines.iter().find(|engine| engine.account().id == id)
    }

    /// Makes requests for sessions that nobody was asked for.
    async fn plan(&self) -> Result<(), CryptoError> {
        let db = self.store.db();
        let wanted = key_requests::wanted(db, self.store.seal()?, MOST_PLANNED).await?;
        if wanted.is_empty() {
            return Ok(());
        }
        let mut outstanding = HashMap::<(AccountId, String, String), i64>::new();
        for (account_id, user_id, device_id, count) in key_requests::outstanding(db).await? {
            outstanding.insert((account_id, user_id, device_id), count);
        }
        let mut requests = Vec::new();
        for wanted in wanted {
            let Ok(room_id) = OwnedRoomId::try_from(&*wanted.room_id) else { continue };
            for account_id in memberships::members(db, &room_id).await? {
                let Some(engine) = self.engine(account_id) else { continue };
                for request in engine.whom_to_ask(&wanted).await? {
                    let device = (account_id, request.user_id.clone(), request.device_id.clone());
                    let count = outstanding.entry(device).or_default();
                    *count += 1;
                    if *count <= MOST_OUTSTANDING {
                        requests.push(request);
                    }
                }
            }
        }
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        key_requests::plan(&mut tx, &requests, now, now.plus(FIRST)).await?;
        Ok(tx.commit().await?)
    }

    /// Takes back requests for which nothing waits any more.
    async fn take_back(&self) -> Result<(), CryptoError> {
        for request in key_requests::settled(self.store.db(), MOST_PLANNED).await? {
            if let Some(engine) = self.engine(request.account_id)
                && request.tries > 0
            {
                engine.cancel(&request).await?;
            }
            let mut tx = self.store.begin().await?;
            leases::check(&mut tx, &self.lease).await?;
            key_requests::delete(&mut tx, &request).await?;
            tx.commit().await?;
        }
        Ok(())
    }

    async fn ask(&self, request: KeyRequest) -> Result<(), CryptoError> {
        // Counted first: whoever dies in between asks a minute later, and not again and again.
        let mut tx = self.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        key_requests::reschedule(&mut tx, &request, next_at(self.clock.now(), request.tries)).await?;
        tx.commit().await?;
        let Some(engine) = self.engine(request.account_id) else { return Ok(()) };
        if request.device_id == ALL {
            let session = (request.room_id.clone(), request.session_id.clone());
            let events = pending::ledger(self.store.db(), self.store.seal()?, &[session]).await?;
            let Some(event) = events.into_iter().next() else { return Ok(()) };
            return engine.ask_own_devices(&request, event.event).await;
        }
        tracing::info!(
            account.user_id = %engine.account().user_id, room.id = request.room_id, asked = request.user_id,
            session = request.session_id, tries = request.tries + 1, "asking for a room key"
        );
        engine.ask_device(&request).await
    }
}

impl Engine {
    /// The devices that may have made a session: the account's view of them.
    pub(super) async fn whom_to_ask(&self, wanted: &Wanted) -> Result<Vec<KeyRequest>, CryptoError> {
        let maker = serde_json::from_slice::<Encrypted>(&wanted.event).map(|event| event.content);
        let maker = maker.unwrap_or_default();
        let request = |user_id: &UserId, device_id: &str, sender_key: String| KeyRequest {
            account_id: self.account().id,
            room_id: wanted.room_id.clone(),
            session_id: wanted.session_id.clone(),
            user_id: user_id.to_string(),
            device_id: device_id.to_owned(),
            sender_key,
            request_id: TransactionId::new().to_string(),
            tries: 0,
        };
        let mut requests = Vec::new();
        let bot = wanted.bridge_bot.as_deref().and_then(|bot| OwnedUserId::try_from(bot).ok());
        if let Some(bot) = bot {
            for device in self.machine.get_user_devices(&bot, None).await?.devices() {
                let Some(key) = device.curve25519_key().map(|key| key.to_base64()) else { continue };
                let fits = match (&maker.sender_key, &maker.device_id) {
                    (Some(sender_key), _) => *sender_key == key,
                    (None, Some(device_id)) => device_id == device.device_id().as_str(),
                    (None, None) => requests.len() < MOST_DEVICES,
                };
                // A device with such an id was published to be in the way.
                if fits && !device.is_blacklisted() && is_id(device.device_id().as_str()) {
                    requests.push(request(&bot, device.device_id().as_str(), key));
                }
            }
        }
        // Others answer only whom they trust, and only who is trusted is believed.
        let own = &self.account().user_id;
        if self.machine.get_user_devices(own, None).await?.is_any_verified() {
            requests.push(request(own, ALL, String::new()));
        }
        Ok(requests)
    }

    /// Asks the device of a request for its key.
    async fn ask_device(&self, request: &KeyRequest) -> Result<(), CryptoError> {
        let content = json!({
            "action": "request",
            "body": {
                "algorithm": "m.megolm.v1.aes-sha2", "room_id": request.room_id,
                "session_id": request.session_id, "sender_key": request.sender_key,
            },
            "request_id": request.request_id,
            "requesting_device_id": self.account().device_id,
        });
        self.send_request_message(request, &content).await
    }

    /// Takes a request back.
    async fn cancel(&self, request: &KeyRequest) -> Result<(), CryptoError> {
        let content = json!({
            "action": "request_cancellation",
            "request_id": request.request_id,
            "requesting_device_id": self.account().device_id,
        });
        if request.device_id == ALL {
            let id: &TransactionId = request.request_id.as_str().into();
            let failed = matrix_sdk_crypto::CryptoStoreError::from;
            if self.store.get_outgoing_secret_requests(id).await.map_err(failed)?.is_none() {
                // The SDK has seen the answer, and has taken the request back itself.
                return Ok(());
            }
            self.store.delete_outgoing_secret_requests(id).await.map_err(failed)?;
        }
        self.send_request_message(request, &content).await
    }

    async fn send_request_message(&self, request: &KeyRequest, content: &Value) -> Result<(), CryptoError> {
        let Ok(user_id) = OwnedUserId::try_from(&*request.user_id) else { return Ok(()) };
        self.send_plain(&user_id, &request.device_id, "m.room_key_request", content).await
    }

    /// Asks the account's own other devices, through the SDK, which takes the answer.
    pub(super) async fn ask_own_devices(
        &self,
        request: &KeyRequest,
        event: Vec<u8>,
    ) -> Result<(), CryptoError> {
        let event = String::from_utf8(event).ok().and_then(|text| RawValue::from_string(text).ok());
        let Some(event) = event.map(Raw::<EncryptedEvent>::from_json) else { return Ok(()) };
        let Ok(room_id) = <&RoomId>::try_from(&*request.room_id) else { return Ok(()) };
        let (cancellation, asking) = match self.machine.request_room_key(&event, room_id).await {
            Ok(requests) => requests,
            Err(matrix_sdk_crypto::MegolmError::Store(error)) => return Err(error.into()),
            // The event names no session that can be asked for.
            Err(_) => return Ok(()),
        };
        let mut tx = self.whole.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        key_requests::set_request_id(&mut tx, request, asking.request_id().as_str()).await?;
        tx.commit().await?;
        if let Some(cancellation) = cancellation {
            self.send_request(&cancellation).await?;
        }
        self.send_request(&asking).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_asked_for_ever_more_rarely() {
        let waits: Vec<_> =
            (0..7).map(|tries| next_at(Timestamp(0), tries).since(Timestamp(0)).as_secs()).collect();
        assert_eq!(waits, [60, 600, 3_600, 21_600, 86_400, 86_400, 86_400]);
    }
}
