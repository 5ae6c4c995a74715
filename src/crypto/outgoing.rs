//! What the machine wants to tell the homeserver: keys to upload, devices to ask for, messages to send.

use std::collections::BTreeMap;

use matrix_sdk_crypto::types::requests::{
    AnyIncomingResponse, AnyOutgoingRequest, KeysQueryRequest, OutgoingRequest, ToDeviceRequest,
    UploadSigningKeysRequest,
};
use ruma::{
    TransactionId, UserId,
    api::client::{
        keys::{get_keys, upload_keys, upload_signing_keys},
        message::send_message_event,
        to_device::send_event_to_device,
    },
    events::MessageLikeEventContent,
    serde::Raw,
    to_device::DeviceIdOrAllDevices,
};

use super::engine::{CryptoError, Engine, watched};
use crate::{homeserver::HomeserverError, metrics::metrics};

/// Rounds of requests that one drain makes at most; each may give rise to the next.
const MOST_ROUNDS: usize = 16;

/// The name under which the store remembers that the bot's identity was published.
const IDENTITY_PUBLISHED: &str = "coucou.identity_published";

impl Engine {
    /// Sends what the machine has to send, until there is nothing left. A request is marked as sent only
    /// when the homeserver has taken it; what fails is made again by the next drain.
    ///
    /// # Errors
    /// When the homeserver or the store fails.
    pub async fn drain_outgoing(&self) -> Result<usize, CryptoError> {
        let mut sent = 0;
        self.count_one_time_keys().await?;
        self.unwedge().await?;
        for _ in 0..MOST_ROUNDS {
            let requests = self.machine.outgoing_requests().await?;
            if requests.is_empty() {
                break;
            }
            for request in requests {
                self.send_request(&request).await?;
                sent += 1;
            }
        }
        Ok(sent)
    }

    pub(super) async fn send_request(&self, request: &OutgoingRequest) -> Result<(), CryptoError> {
        let id = request.request_id();
        match request.request() {
            AnyOutgoingRequest::KeysUpload(request) => self.upload_keys(id, request).await?,
            AnyOutgoingRequest::KeysQuery(request) => self.query_keys(id, request).await?,
            AnyOutgoingRequest::KeysClaim(request) => {
                let response = self.homeserver.send(&self.identity, request.clone()).await?;
                self.mark_as_sent(id, &response).await?;
            }
            AnyOutgoingRequest::ToDeviceRequest(request) => self.send_to_device(id, request).await?,
            AnyOutgoingRequest::SignatureUpload(request) => {
                let response = self.homeserver.send(&self.identity, request.clone()).await?;
                self.mark_as_sent(id, &response).await?;
            }
            AnyOutgoingRequest::RoomMessage(request) => {
                let content = request.content.clone();
                let event_type = content.event_type();
                let body = Raw::new(&*content).map_err(matrix_sdk_crypto::OlmError::from)?.cast_unchecked();
                let (room_id, txn_id) = (request.room_id.clone(), request.txn_id.clone());
                let request = send_message_event::v3::Request::new_raw(room_id, txn_id, event_type, body);
                let response = self.homeserver.send(&self.identity, request).await?;
                self.mark_as_sent(id, &response).await?;
            }
        }
        Ok(())
    }

    /// Gives the machine the answer to a request.
    pub(super) async fn mark_as_sent<'a>(
        &self,
        id: &TransactionId,
        response: impl Into<AnyIncomingResponse<'a>>,
    ) -> Result<(), CryptoError> {
        watched(self.machine.mark_request_as_sent(id, response)).await
    }

    /// Uploads keys. A store that was brought back from an older copy makes one-time keys under ids that its
    /// later self has used: the homeserver refuses those for ever, so they are passed over, and the next ones
    /// have new ids. Whoever takes an old one meets a session that does not open, which is then begun anew.
    async fn upload_keys(
        &self,
        id: &TransactionId,
        request: &upload_keys::v3::Request,
    ) -> Result<(), CryptoError> {
        let response = match self.homeserver.send(&self.identity, request.clone()).await {
            Err(HomeserverError::Status { status: 400, message, .. })
                if !request.one_time_keys.is_empty() && message.contains("already exists") =>
            {
                tracing::warn!(
                    account.user_id = %self.identity.user_id,
                    keys = request.one_time_keys.len(),
                    "the homeserver has other one-time keys under these ids, as when the store is an older copy \
                     of itself; making new ones"
                );
                let mut others = request.clone();
                others.one_time_keys.clear();
                self.homeserver.send(&self.identity, others).await?
            }
            answered => answered?,
        };
        self.mark_as_sent(id, &response).await?;
        self.take_counts_of_upload(&response.one_time_key_counts).await
    }

    async fn query_keys(&self, id: &TransactionId, request: &KeysQueryRequest) -> Result<(), CryptoError> {
        let mut query = get_keys::v3::Request::new();
        query.timeout = request.timeout;
        query.device_keys = request.device_keys.clone();
        let response = self.homeserver.send(&self.identity, query).await?;
        self.mark_as_sent(id, &response).await?;
        Ok(())
    }

    pub(super) async fn send_to_device(
        &self,
        id: &TransactionId,
        request: &ToDeviceRequest,
    ) -> Result<(), CryptoError> {
        let request = send_event_to_device::v3::Request::new_raw(
            request.event_type.clone(),
            request.txn_id.clone(),
            request.messages.clone(),
        );
        let response = self.homeserver.send(&self.identity, request).await?;
        self.mark_as_sent(id, &response).await?;
        Ok(())
    }

    /// Sends a to-device message in clear; `*` stands for all devices of the user.
    ///
    /// # Errors
    /// When the homeserver fails.
    pub(super) async fn send_plain(
        &self,
        user_id: &UserId,
        device_id: &str,
        event_type: &str,
        content: &serde_json::Value,
    ) -> Result<(), CryptoError> {
        let device = match device_id {
            "*" => DeviceIdOrAllDevices::AllDevices,
            device_id => DeviceIdOrAllDevices::DeviceId(device_id.into()),
        };
        let content = Raw::new(content).map_err(matrix_sdk_crypto::OlmError::from)?.cast_unchecked();
        let messages = BTreeMap::from([(user_id.to_owned(), BTreeMap::from([(device, content)]))]);
        let request =
            send_event_to_device::v3::Request::new_raw(event_type.into(), TransactionId::new(), messages);
        self.homeserver.send(&self.identity, request).await?;
        Ok(())
    }

    /// Uploads the device's keys.
    ///
    /// # Errors
    /// When the homeserver or the store fails.
    pub async fn publish_device(&self) -> Result<(), CryptoError> {
        self.drain_outgoing().await?;
        Ok(())
    }

    /// Uploads the keys of the device again when the homeserver has lost them, as it has of a device that somebody
    /// deleted, with new one-time keys; answers whether it had.
    ///
    /// # Errors
    /// When the homeserver or the store fails.
    pub async fn publish_again(&self) -> Result<bool, CryptoError> {
        let (user_id, device_id) = (&self.account().user_id, &self.account().device_id);
        if self.homeserver.published_keys(user_id).await?.devices.contains_key(device_id) {
            return Ok(false);
        }
        let Some(device) = self.machine.get_device(user_id, device_id, None).await? else { return Ok(false) };
        let keys = Raw::new(device.as_device_keys()).map_err(matrix_sdk_crypto::OlmError::from)?;
        let mut upload = upload_keys::v3::Request::new();
        upload.device_keys = Some(keys.cast_unchecked());
        self.homeserver.send(&self.identity, upload).await?;
        metrics().devices_restored.inc(&[self.account().role.as_str()]);
        tracing::error!(account.user_id = %user_id, account.device_id = %device_id,
            "somebody has deleted coucou's device, or the homeserver has lost its keys; it is there again, with the same \
             keys. What was encrypted meanwhile was not encrypted for it. Delete it no more: it is coucou's");
        self.recount_one_time_keys().await?;
        self.drain_outgoing().await?;
        Ok(true)
    }

    /// Gives the account a cross-signing identity and signs the device with it, once. Only for a user that
    /// is ours alone: the homeserver lets an application service replace anybody's identity.
    ///
    /// # Errors
    /// When the homeserver or the store fails; the next call goes on where this one stopped.
    pub async fn publish_identity(&self) -> Result<(), CryptoError> {
        if self.has_published_identity().await? {
            return Ok(());
        }
        let requests = self.machine.bootstrap_cross_signing(false).await?;
        if let Some(keys) = &requests.upload_keys_req {
            self.send_request(keys).await?;
        }
        let request = signing_keys(requests.upload_signing_keys_req)?;
        self.homeserver.send(&self.identity, request).await?;
        self.homeserver.send(&self.identity, requests.upload_signatures_req).await?;
        self.identity_is_published().await?;
        tracing::info!(account.user_id = %self.identity.user_id, "published a cross-signing identity");
        Ok(())
    }

    /// Signs the device with the identity that the machine has, without uploading the identity.
    pub(super) async fn sign_with_identity(&self) -> Result<(), CryptoError> {
        let requests = self.machine.bootstrap_cross_signing(false).await?;
        self.homeserver.send(&self.identity, requests.upload_signatures_req).await?;
        Ok(())
    }

    /// Whether the account's identity is on the homeserver, as this store knows it.
    pub(super) async fn has_published_identity(&self) -> Result<bool, CryptoError> {
        Ok(self.machine.store().get_custom_value(IDENTITY_PUBLISHED).await?.is_some())
    }

    pub(super) async fn identity_is_published(&self) -> Result<(), CryptoError> {
        Ok(self.machine.store().set_custom_value(IDENTITY_PUBLISHED, vec![1]).await?)
    }

    /// Asks the homeserver for the account's own devices and identity.
    pub(super) async fn query_own_keys(&self) -> Result<(), CryptoError> {
        let (id, request) = self.machine.query_keys_for_users([&*self.identity.user_id]);
        self.query_keys(&id, &request).await
    }
}

fn signing_keys(request: UploadSigningKeysRequest) -> Result<upload_signing_keys::v3::Request, CryptoError> {
    fn raw<T: serde::Serialize, U>(key: Option<T>) -> Result<Option<Raw<U>>, CryptoError> {
        let raw = key.map(|key| Raw::new(&key)).transpose().map_err(matrix_sdk_crypto::OlmError::from)?;
        Ok(raw.map(Raw::cast_unchecked))
    }
    let mut upload = upload_signing_keys::v3::Request::new();
    upload.master_key = raw(request.master_key)?;
    upload.self_signing_key = raw(request.self_signing_key)?;
    upload.user_signing_key = raw(request.user_signing_key)?;
    Ok(upload)
}
