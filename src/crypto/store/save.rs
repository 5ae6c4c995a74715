//! One save of the SDK's: first all of it encoded, then one statement for each table.

use std::collections::{BTreeMap, BTreeSet};

use matrix_sdk_crypto::{
    DeviceData, GossipRequest,
    olm::{InboundGroupSession, OlmMessageHash, OutboundGroupSession, Session},
    store::types::{Changes, DeviceChanges, IdentityChanges},
};
use ruma::OwnedUserId;

use super::{Result, cache::Cache, codec, twice};
use crate::{
    clock::Timestamp,
    store::{
        Tx,
        crypto::{
            Key, Plain, Rows, Scope, bundles, inbound, olm, requests, rooms, users,
            values::{self, Name},
        },
        key_news,
    },
};

/// What the cache must hear of once the save is committed.
#[derive(Default)]
pub(super) struct Touched {
    sessions: Vec<InboundGroupSession>,
    devices: BTreeSet<OwnedUserId>,
    identities: BTreeSet<OwnedUserId>,
}

impl Touched {
    /// Sessions go in, since the next event asks for them. Devices and identities are only dropped: the
    /// objects that were saved share state with the SDK's own, which the next read shall not.
    pub(super) fn apply(self, cache: &Cache) {
        self.sessions.into_iter().for_each(|session| cache.insert_session(session));
        self.devices.iter().for_each(|user_id| cache.remove_devices(user_id));
        self.identities.iter().for_each(|user_id| cache.remove_identity(user_id));
    }
}

/// Whether there is nothing to save. The SDK's own answer leaves two fields out.
pub(super) fn is_empty(changes: &Changes) -> bool {
    changes.is_empty()
        && changes.room_key_backups_fully_downloaded.is_empty()
        && changes.rooms_pending_key_bundle.is_empty()
}

/// The rows of one save.
#[derive(Default)]
pub(super) struct Batch {
    values: Rows<1>,
    olm_sessions: Rows<2>,
    olm_hashes: BTreeSet<Key<2>>,
    inbound: BTreeMap<Key<2>, inbound::Row>,
    outbound: Rows<1>,
    requests: BTreeMap<Key<1>, requests::Row>,
    secrets: Vec<(String, Plain)>,
    devices: Rows<2>,
    deleted_devices: BTreeSet<Key<2>>,
    identities: Rows<1>,
    withheld: Rows<2>,
    settings: Rows<1>,
    bundles: Rows<2>,
    pending: Rows<1>,
    no_longer_pending: BTreeSet<Key<1>>,
    downloaded: BTreeSet<Key<1>>,
    touched: Touched,
}

impl Batch {
    /// Encodes changes.
    pub(super) async fn gather(changes: Changes) -> Result<Self> {
        let mut batch = Self::default();
        batch.gather_values(&changes).await?;
        batch.gather_rooms(&changes)?;
        batch.add_olm_sessions(changes.sessions).await?;
        batch.add_olm_hashes(&changes.message_hashes);
        batch.add_inbound(changes.inbound_group_sessions).await?;
        batch.add_outbound(changes.outbound_group_sessions).await?;
        batch.add_requests(&changes.key_requests)?;
        batch.add_devices(&changes.devices)?;
        batch.add_identities(&changes.identities)?;
        for item in changes.secrets {
            let secret = codec::json("crypto_secrets", &item.secret.as_str())?;
            batch.secrets.push((item.secret_name.as_str().to_owned(), secret));
        }
        Ok(batch)
    }

    async fn gather_values(&mut self, changes: &Changes) -> Result<()> {
        const TABLE: &str = "crypto_values";
        let mut set = |name: Name, value| self.values.insert(name.key(), value);
        if let Some(identity) = &changes.private_identity {
            set(Name::PrivateIdentity, codec::json(TABLE, &identity.pickle().await)?);
        }
        if let Some(token) = &changes.next_batch_token {
            set(Name::NextBatchToken, codec::json(TABLE, token)?);
        }
        if let Some(key) = &changes.backup_decryption_key {
            set(Name::BackupDecryptionKey, codec::json(TABLE, key)?);
        }
        if let Some(version) = &changes.backup_version {
            set(Name::BackupVersion, codec::json(TABLE, version)?);
        }
        if let Some(key) = &changes.dehydrated_device_pickle_key {
            set(Name::DehydratedDeviceKey, codec::json(TABLE, key)?);
        }
        Ok(())
    }

    fn gather_rooms(&mut self, changes: &Changes) -> Result<()> {
        for (room_id, sessions) in &changes.withheld_session_info {
            for (session_id, entry) in sessions {
                let key = Key::of([room_id.as_str(), session_id]);
                self.withheld.insert(key, codec::json("megolm_withheld", entry)?);
            }
        }
        for (room_id, settings) in &changes.room_settings {
            let settings = codec::json("crypto_room_settings", settings)?;
            self.settings.insert(Key::of([room_id.as_str()]), settings);
        }
        for bundle in &changes.received_room_key_bundles {
            let key = Key::of([bundle.bundle_data.room_id.as_str(), bundle.sender_user.as_str()]);
            self.bundles.insert(key, codec::json("crypto_key_bundles", bundle)?);
        }
        for (room_id, details) in &changes.rooms_pending_key_bundle {
            let key = Key::of([room_id.as_str()]);
            if let Some(details) = details {
                self.pending.insert(key, codec::json("crypto_pending_key_bundles", details)?);
            } else {
                self.no_longer_pending.insert(key);
            }
        }
        let downloaded = &changes.room_key_backups_fully_downloaded;
        self.downloaded.extend(downloaded.iter().map(|room_id| Key::of([room_id.as_str()])));
        Ok(())
    }

    async fn add_olm_sessions(&mut self, sessions: Vec<Session>) -> Result<()> {
        for session in sessions {
            let key = Key::of([&session.sender_key().to_base64(), session.session_id()]);
            let pickle = codec::msgpack("olm_sessions", &session.pickle().await)?;
            self.olm_sessions.insert(key, pickle);
        }
        Ok(())
    }

    fn add_olm_hashes(&mut self, hashes: &[OlmMessageHash]) {
        self.olm_hashes.extend(hashes.iter().map(|hash| Key::of([&hash.sender_key, &hash.hash])));
    }

    async fn add_inbound(&mut self, sessions: Vec<InboundGroupSession>) -> Result<()> {
        for session in twice::merge(sessions).await? {
            let pickle = session.pickle().await;
            let row = inbound::Row {
                sender_key: session.sender_key().to_base64(),
                sender_data_type: session.sender_data_type() as i64,
                backed_up: pickle.backed_up,
                pickle: codec::msgpack("megolm_inbound_sessions", &pickle)?,
            };
            self.inbound.insert(Key::of([session.room_id().as_str(), session.session_id()]), row);
            self.touched.sessions.push(session);
        }
        Ok(())
    }

    async fn add_outbound(&mut self, sessions: Vec<OutboundGroupSession>) -> Result<()> {
        for session in sessions {
            let pickle = codec::json("megolm_outbound_sessions", &session.pickle().await)?;
            self.outbound.insert(Key::of([session.room_id().as_str()]), pickle);
        }
        Ok(())
    }

    fn add_requests(&mut self, requests: &[GossipRequest]) -> Result<()> {
        for request in requests {
            let row = requests::Row {
                info: request.info.as_key(),
                sent_out: request.sent_out,
                data: codec::json("crypto_key_requests", request)?,
            };
            self.requests.insert(Key::of([request.request_id.as_str()]), row);
        }
        Ok(())
    }

    fn add_devices(&mut self, changes: &DeviceChanges) -> Result<()> {
        let key = |device: &DeviceData| Key::of([device.user_id().as_str(), device.device_id().as_str()]);
        for device in changes.new.iter().chain(&changes.changed) {
            self.devices.insert(key(device), codec::json("crypto_devices", device)?);
        }
        self.deleted_devices.extend(changes.deleted.iter().map(key));
        let all = changes.new.iter().chain(&changes.changed).chain(&changes.deleted);
        self.touched.devices.extend(all.map(|device| device.user_id().to_owned()));
        Ok(())
    }

    fn add_identities(&mut self, changes: &IdentityChanges) -> Result<()> {
        for identity in changes.new.iter().chain(&changes.changed) {
            let data = codec::json("crypto_identities", identity)?;
            self.identities.insert(Key::of([identity.user_id().as_str()]), data);
            self.touched.identities.insert(identity.user_id().to_owned());
        }
        Ok(())
    }

    /// Writes the rows; answers what to tell the cache after the commit.
    pub(super) async fn write(self, tx: &mut Tx, scope: &Scope<'_>, now: Timestamp) -> Result<Touched> {
        key_news::tell(tx, self.inbound.keys().chain(self.withheld.keys()).cloned().collect()).await?;
        values::set_values(tx, scope, self.values).await?;
        users::save_devices(tx, scope, self.devices).await?;
        users::delete_devices(tx, scope, self.deleted_devices).await?;
        users::save_identities(tx, scope, self.identities).await?;
        olm::save_sessions(tx, scope, self.olm_sessions).await?;
        olm::save_hashes(tx, scope, self.olm_hashes, now).await?;
        inbound::save(tx, scope, self.inbound, now).await?;
        rooms::save_outbound(tx, scope, self.outbound).await?;
        rooms::save_withheld(tx, scope, self.withheld).await?;
        rooms::save_settings(tx, scope, self.settings).await?;
        bundles::want(tx, scope, self.bundles.keys().cloned().collect(), now).await?;
        rooms::save_bundles(tx, scope, self.bundles).await?;
        rooms::save_pending(tx, scope, self.pending).await?;
        rooms::delete_pending(tx, scope, self.no_longer_pending).await?;
        rooms::save_downloaded(tx, scope, self.downloaded).await?;
        requests::save(tx, scope, self.requests, now).await?;
        requests::add_secrets(tx, scope, self.secrets).await?;
        Ok(self.touched)
    }
}
