//! What the SDK asks of a crypto store, method by method: read or write the rows, decode or encode them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::Ordering,
    time::Duration,
};

use async_trait::async_trait;
use matrix_sdk_common::cross_process_lock::CrossProcessLockGeneration;
use matrix_sdk_crypto::{
    Account, DeviceData, GossipRequest, SecretInfo, TrackedUser, UserIdentityData,
    olm::{
        Curve25519PublicKey, InboundGroupSession, OlmMessageHash, OutboundGroupSession,
        PrivateCrossSigningIdentity, SenderDataType, Session,
    },
    store::{
        CryptoStore,
        types::{
            BackupKeys, Changes, DehydratedDeviceKey, PendingChanges, RoomKeyCounts, RoomKeyWithheldEntry,
            RoomPendingKeyBundleDetails, RoomSettings, StoredRoomKeyBundleData,
        },
    },
};
use ruma::{
    DeviceId, OwnedDeviceId, OwnedUserId, RoomId, TransactionId, UserId, events::secret::request::SecretName,
};
use zeroize::Zeroizing;

use super::{
    AccountStore, AccountStoreError, Result, before,
    cache::Cache,
    codec, early,
    save::{self, Batch},
};
use crate::store::{
    StoreError,
    crypto::{
        Key, Rows, inbound, olm, requests, rooms, users,
        values::{self, Name},
    },
};

fn inbound_sessions(found: &[inbound::Found]) -> Result<Vec<InboundGroupSession>> {
    found.iter().map(codec::inbound_session).collect()
}

#[async_trait]
impl CryptoStore for AccountStore {
    type Error = AccountStoreError;

    async fn load_account(&self) -> Result<Option<Account>> {
        let (db, scope) = self.read()?;
        let Some(pickle) = values::find_value(db, &scope, Name::Account).await? else { return Ok(None) };
        let account = codec::account(&pickle)?;
        self.set_static_account(account.static_data().clone());
        Ok(Some(account))
    }

    async fn load_identity(&self) -> Result<Option<PrivateCrossSigningIdentity>> {
        let (db, scope) = self.read()?;
        let pickle = values::find_value(db, &scope, Name::PrivateIdentity).await?;
        pickle.map(|pickle| codec::private_identity(&pickle)).transpose()
    }

    async fn save_changes(&self, changes: Changes) -> Result<()> {
        let Some(changes) = early::admit(changes).filter(|changes| !save::is_empty(changes)) else {
            return Ok(());
        };
        let turn = self.turn().await;
        self.save(Batch::gather(changes).await?, turn).await
    }

    async fn save_pending_changes(&self, changes: PendingChanges) -> Result<()> {
        let Some(account) = changes.account else { return Ok(()) };
        let turn = self.turn().await;
        let mut write = self.begin(turn).await?;
        let rows = Rows::from([(Name::Account.key(), codec::json("crypto_values", &account.pickle())?)]);
        values::set_values(&mut write.tx, &self.scope()?, rows).await?;
        write.commit(|_| ()).await?;
        self.set_static_account(account.static_data().clone());
        Ok(())
    }

    async fn save_inbound_group_sessions(
        &self,
        sessions: Vec<InboundGroupSession>,
        backed_up_to_version: Option<&str>,
    ) -> Result<()> {
        // The version is not kept: a new backup version resets the state of all sessions.
        if sessions.iter().any(|session| session.backed_up() != backed_up_to_version.is_some()) {
            tracing::warn!("room keys say otherwise than their backup version whether they are backed up");
        }
        self.save_changes(Changes { inbound_group_sessions: sessions, ..Changes::default() }).await
    }

    async fn get_sessions(&self, sender_key: &str) -> Result<Option<Vec<Session>>> {
        let (db, scope) = self.read()?;
        let pickles = olm::find_sessions(db, &scope, sender_key).await?;
        let held = early::sessions_of(sender_key);
        if pickles.is_empty() && held.is_empty() {
            return Ok(None);
        }
        let own = self.get_own_device().await?;
        let sessions = pickles.iter().map(|pickle| codec::olm_session(own.as_device_keys(), pickle));
        let mut sessions = sessions.collect::<Result<Vec<_>>>()?;
        // What is held back is ahead of what is stored.
        sessions.retain(|session| held.iter().all(|newer| newer.session_id() != session.session_id()));
        sessions.extend(held);
        Ok(Some(sessions))
    }

    async fn get_inbound_group_session(
        &self,
        room_id: &RoomId,
        session_id: &str,
    ) -> Result<Option<InboundGroupSession>> {
        self.open()?;
        if let Some(session) = self.cache.session(room_id, session_id) {
            before::note(room_id, session_id, Some(&session));
            return Ok(Some(session));
        }
        let ticket = self.cache.ticket();
        let (db, scope) = self.read()?;
        // That a key is not there is not remembered: it may come at any time.
        let found = inbound::find(db, &scope, &Key::of([room_id.as_str(), session_id])).await?;
        let session = found.as_ref().map(codec::inbound_session).transpose()?;
        if let Some(session) = &session {
            self.cache.fill_session(ticket, session);
        }
        before::note(room_id, session_id, session.as_ref());
        Ok(session)
    }

    async fn get_withheld_info(
        &self,
        room_id: &RoomId,
        session_id: &str,
    ) -> Result<Option<RoomKeyWithheldEntry>> {
        let (db, scope) = self.read()?;
        let found = rooms::find_withheld(db, &scope, Key::of([room_id.as_str(), session_id])).await?;
        found.map(|data| codec::from_json("megolm_withheld", &data)).transpose()
    }

    async fn get_withheld_sessions_by_room_id(&self, room_id: &RoomId) -> Result<Vec<RoomKeyWithheldEntry>> {
        let (db, scope) = self.read()?;
        let found = rooms::withheld_of_room(db, &scope, room_id.as_str()).await?;
        found.iter().map(|data| codec::from_json("megolm_withheld", data)).collect()
    }

    async fn get_inbound_group_sessions(&self) -> Result<Vec<InboundGroupSession>> {
        let (db, scope) = self.read()?;
        inbound_sessions(&inbound::all(db, &scope).await?)
    }

    async fn inbound_group_session_counts(&self, _backup_version: Option<&str>) -> Result<RoomKeyCounts> {
        let (db, scope) = self.read()?;
        let (total, backed_up) = inbound::count(db, &scope).await?;
        Ok(RoomKeyCounts { total, backed_up })
    }

    async fn get_inbound_group_sessions_by_room_id(
        &self,
        room_id: &RoomId,
    ) -> Result<Vec<InboundGroupSession>> {
        let (db, scope) = self.read()?;
        inbound_sessions(&inbound::of_room(db, &scope, room_id.as_str()).await?)
    }

    async fn get_inbound_group_sessions_for_device_batch(
        &self,
        curve_key: Curve25519PublicKey,
        sender_data_type: SenderDataType,
        after_session_id: Option<String>,
        limit: usize,
    ) -> Result<Vec<InboundGroupSession>> {
        let (db, scope) = self.read()?;
        let (sender_key, kind, after) =
            (curve_key.to_base64(), sender_data_type as i64, after_session_id.as_deref());
        inbound_sessions(&inbound::of_device(db, &scope, &sender_key, kind, after, limit).await?)
    }

    async fn inbound_group_sessions_for_backup(
        &self,
        _backup_version: &str,
        limit: usize,
    ) -> Result<Vec<InboundGroupSession>> {
        let (db, scope) = self.read()?;
        inbound_sessions(&inbound::to_back_up(db, &scope, limit).await?)
    }

    async fn mark_inbound_group_sessions_as_backed_up(
        &self,
        _backup_version: &str,
        sessions: &[(&RoomId, &str)],
    ) -> Result<()> {
        let mut write = self.begin(self.turn().await).await?;
        let keys = sessions.iter().map(|(room_id, id)| Key::of([room_id.as_str(), id])).collect();
        inbound::mark_backed_up(&mut write.tx, &self.scope()?, keys).await?;
        write.commit(|cache| sessions.iter().for_each(|(room, id)| cache.remove_session(room, id))).await
    }

    async fn reset_backup_state(&self) -> Result<()> {
        let mut write = self.begin(self.turn().await).await?;
        inbound::reset_backup(&mut write.tx, &self.scope()?).await?;
        write.commit(Cache::clear_sessions).await
    }

    async fn load_backup_keys(&self) -> Result<BackupKeys> {
        let (db, scope) = self.read()?;
        let key = values::find_value(db, &scope, Name::BackupDecryptionKey).await?;
        let version = values::find_value(db, &scope, Name::BackupVersion).await?;
        Ok(BackupKeys {
            decryption_key: key.map(|key| codec::from_json("crypto_values", &key)).transpose()?,
            backup_version: version.map(|text| codec::from_json("crypto_values", &text)).transpose()?,
        })
    }

    async fn load_dehydrated_device_pickle_key(&self) -> Result<Option<DehydratedDeviceKey>> {
        let (db, scope) = self.read()?;
        let key = values::find_value(db, &scope, Name::DehydratedDeviceKey).await?;
        key.map(|key| codec::from_json("crypto_values", &key)).transpose()
    }

    async fn delete_dehydrated_device_pickle_key(&self) -> Result<()> {
        let mut write = self.begin(self.turn().await).await?;
        values::delete_value(&mut write.tx, &self.scope()?, Name::DehydratedDeviceKey).await?;
        write.commit(|_| ()).await
    }

    async fn get_outbound_group_session(&self, room_id: &RoomId) -> Result<Option<OutboundGroupSession>> {
        let (db, scope) = self.read()?;
        let Some(pickle) = rooms::find_outbound(db, &scope, room_id.as_str()).await? else {
            return Ok(None);
        };
        codec::outbound_session(self.static_account().await?, &pickle).map(Some)
    }

    async fn load_tracked_users(&self) -> Result<Vec<TrackedUser>> {
        let (db, scope) = self.read()?;
        let tracked = users::tracked(db, &scope).await?.into_iter().map(|(user_id, dirty)| {
            let user_id = OwnedUserId::try_from(user_id);
            let user_id = user_id.map_err(|_| StoreError::Corrupt("crypto_tracked_users"))?;
            Ok(TrackedUser { user_id, dirty })
        });
        tracked.collect()
    }

    async fn save_tracked_users(&self, users: &[(&UserId, bool)]) -> Result<()> {
        // The SDK also calls this when it already tracked everybody.
        if users.is_empty() {
            return Ok(());
        }
        let mut write = self.begin(self.turn().await).await?;
        let users: BTreeMap<_, _> = users.iter().map(|(user, dirty)| (user.as_str(), *dirty)).collect();
        users::track(&mut write.tx, &self.scope()?, users).await?;
        write.commit(|_| ()).await
    }

    async fn get_device(&self, user_id: &UserId, device_id: &DeviceId) -> Result<Option<DeviceData>> {
        Ok(self.devices(user_id).await?.get(device_id).cloned())
    }

    async fn get_user_devices(&self, user_id: &UserId) -> Result<HashMap<OwnedDeviceId, DeviceData>> {
        Ok((*self.devices(user_id).await?).clone())
    }

    async fn get_own_device(&self) -> Result<DeviceData> {
        let own = self.static_account().await?;
        let device = self.get_device(&own.user_id, &own.device_id).await?;
        device.ok_or(AccountStoreError::AccountUnset)
    }

    async fn get_user_identity(&self, user_id: &UserId) -> Result<Option<UserIdentityData>> {
        self.open()?;
        if let Some(identity) = self.cache.identity(user_id) {
            return Ok(identity.identity);
        }
        let ticket = self.cache.ticket();
        let (db, scope) = self.read()?;
        let found = users::find_identity(db, &scope, user_id.as_str()).await?;
        let identity: Option<UserIdentityData> =
            found.map(|data| codec::from_json("crypto_identities", &data)).transpose()?;
        self.cache.fill_identity(ticket, user_id, identity.clone());
        Ok(identity)
    }

    async fn is_message_known(&self, message: &OlmMessageHash) -> Result<bool> {
        let (db, scope) = self.read()?;
        Ok(olm::is_known(db, &scope, &Key::of([&message.sender_key, &message.hash])).await?)
    }

    async fn get_outgoing_secret_requests(
        &self,
        request_id: &TransactionId,
    ) -> Result<Option<GossipRequest>> {
        let (db, scope) = self.read()?;
        let found = requests::find(db, &scope, request_id.as_str()).await?;
        found.as_ref().map(codec::key_request).transpose()
    }

    async fn get_secret_request_by_info(&self, info: &SecretInfo) -> Result<Option<GossipRequest>> {
        let (db, scope) = self.read()?;
        let found = requests::find_by_info(db, &scope, &info.as_key()).await?;
        found.as_ref().map(codec::key_request).transpose()
    }

    async fn get_unsent_secret_requests(&self) -> Result<Vec<GossipRequest>> {
        let (db, scope) = self.read()?;
        requests::unsent(db, &scope).await?.iter().map(codec::key_request).collect()
    }

    async fn delete_outgoing_secret_requests(&self, request_id: &TransactionId) -> Result<()> {
        let mut write = self.begin(self.turn().await).await?;
        requests::delete(&mut write.tx, &self.scope()?, request_id.as_str()).await?;
        write.commit(|_| ()).await
    }

    async fn get_secrets_from_inbox(&self, name: &SecretName) -> Result<Vec<Zeroizing<String>>> {
        let (db, scope) = self.read()?;
        let secrets = requests::secrets(db, &scope, name.as_str()).await?;
        secrets
            .iter()
            .map(|secret| Ok(codec::from_json::<String>("crypto_secrets", secret)?.into()))
            .collect()
    }

    async fn delete_secrets_from_inbox(&self, name: &SecretName) -> Result<()> {
        let mut write = self.begin(self.turn().await).await?;
        requests::delete_secrets(&mut write.tx, &self.scope()?, name.as_str()).await?;
        write.commit(|_| ()).await
    }

    async fn get_room_settings(&self, room_id: &RoomId) -> Result<Option<RoomSettings>> {
        let (db, scope) = self.read()?;
        let found = rooms::find_settings(db, &scope, room_id.as_str()).await?;
        found.map(|data| codec::from_json("crypto_room_settings", &data)).transpose()
    }

    async fn get_received_room_key_bundle_data(
        &self,
        room_id: &RoomId,
        user_id: &UserId,
    ) -> Result<Option<StoredRoomKeyBundleData>> {
        let (db, scope) = self.read()?;
        let found = rooms::find_bundle(db, &scope, Key::of([room_id.as_str(), user_id.as_str()])).await?;
        found.map(|data| codec::from_json("crypto_key_bundles", &data)).transpose()
    }

    async fn get_pending_key_bundle_details_for_room(
        &self,
        room_id: &RoomId,
    ) -> Result<Option<RoomPendingKeyBundleDetails>> {
        let (db, scope) = self.read()?;
        let found = rooms::find_pending(db, &scope, room_id.as_str()).await?;
        found.map(|data| codec::from_json("crypto_pending_key_bundles", &data)).transpose()
    }

    async fn get_all_rooms_pending_key_bundles(&self) -> Result<Vec<RoomPendingKeyBundleDetails>> {
        let (db, scope) = self.read()?;
        let found = rooms::all_pending(db, &scope).await?;
        found.iter().map(|data| codec::from_json("crypto_pending_key_bundles", data)).collect()
    }

    async fn has_downloaded_all_room_keys(&self, room_id: &RoomId) -> Result<bool> {
        let (db, scope) = self.read()?;
        Ok(rooms::is_downloaded(db, &scope, room_id.as_str()).await?)
    }

    async fn get_custom_value(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let (db, scope) = self.read()?;
        Ok(values::find_custom(db, &scope, key).await?.map(|value| value.to_vec()))
    }

    async fn set_custom_value(&self, key: &str, value: Vec<u8>) -> Result<()> {
        let mut write = self.begin(self.turn().await).await?;
        values::set_custom(&mut write.tx, &self.scope()?, key, value.into()).await?;
        write.commit(|_| ()).await
    }

    async fn remove_custom_value(&self, key: &str) -> Result<()> {
        let mut write = self.begin(self.turn().await).await?;
        values::delete_custom(&mut write.tx, &self.scope()?, key).await?;
        write.commit(|_| ()).await
    }

    async fn try_take_leased_lock(
        &self,
        lease_duration_ms: u32,
        key: &str,
        holder: &str,
    ) -> Result<Option<CrossProcessLockGeneration>> {
        let mut write = self.begin(self.turn().await).await?;
        let (now, lasts) = (self.clock.now(), Duration::from_millis(lease_duration_ms.into()));
        let taken = values::take_lock(&mut write.tx, &self.scope()?, key, holder, now, lasts).await?;
        write.commit(|_| ()).await?;
        Ok(taken)
    }

    async fn next_batch_token(&self) -> Result<Option<String>> {
        let (db, scope) = self.read()?;
        let token = values::find_value(db, &scope, Name::NextBatchToken).await?;
        token.map(|token| codec::from_json("crypto_values", &token)).transpose()
    }

    /// The database stays open for the others that use it; this store only stops using it.
    async fn close(&self) -> Result<()> {
        let _turn = self.turn().await;
        self.closed.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn reopen(&self) -> Result<()> {
        self.closed.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Not known: the accounts share their tables with everything else.
    async fn get_size(&self) -> Result<Option<usize>> {
        Ok(None)
    }
}
