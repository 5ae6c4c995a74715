//! Between the SDK's types and the bytes in the tables.
//!
//! `MessagePack` for the pickles that are many, JSON for the rest: some types hold raw JSON, which
//! `MessagePack` does not carry. Errors leave out their causes, which may quote a secret.

use matrix_sdk_crypto::{
    Account, GossipRequest,
    olm::{
        InboundGroupSession, OutboundGroupSession, PickledInboundGroupSession, PrivateCrossSigningIdentity,
        Session, StaticAccountData,
    },
    types::DeviceKeys,
};
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{AccountStoreError, Result};
use crate::store::{
    StoreError,
    crypto::{Plain, inbound, requests},
};

fn corrupt(table: &'static str) -> AccountStoreError {
    StoreError::Corrupt(table).into()
}

/// Encodes as JSON, for `table`.
pub(super) fn json(table: &'static str, value: &impl Serialize) -> Result<Plain> {
    serde_json::to_vec(value).map(Zeroizing::new).map_err(|_| AccountStoreError::Unencodable(table))
}

/// Decodes JSON of `table`.
pub(super) fn from_json<T: DeserializeOwned>(table: &'static str, plain: &[u8]) -> Result<T> {
    serde_json::from_slice(plain).map_err(|_| corrupt(table))
}

/// Encodes as `MessagePack`, for `table`. With field names, so that fields can come and go.
pub(super) fn msgpack(table: &'static str, value: &impl Serialize) -> Result<Plain> {
    rmp_serde::to_vec_named(value).map(Zeroizing::new).map_err(|_| AccountStoreError::Unencodable(table))
}

fn from_msgpack<T: DeserializeOwned>(table: &'static str, plain: &[u8]) -> Result<T> {
    rmp_serde::from_slice(plain).map_err(|_| corrupt(table))
}

pub(super) fn account(pickle: &[u8]) -> Result<Account> {
    Account::from_pickle(from_json("crypto_values", pickle)?).map_err(|_| corrupt("crypto_values"))
}

pub(super) fn private_identity(pickle: &[u8]) -> Result<PrivateCrossSigningIdentity> {
    PrivateCrossSigningIdentity::from_pickle(from_json("crypto_values", pickle)?)
        .map_err(|_| corrupt("crypto_values"))
}

pub(super) fn olm_session(own: &DeviceKeys, pickle: &[u8]) -> Result<Session> {
    Session::from_pickle(own.clone(), from_msgpack("olm_sessions", pickle)?)
        .map_err(|_| corrupt("olm_sessions"))
}

pub(super) fn inbound_session(found: &inbound::Found) -> Result<InboundGroupSession> {
    let mut pickle: PickledInboundGroupSession = from_msgpack("megolm_inbound_sessions", &found.pickle)?;
    pickle.backed_up = found.backed_up;
    unpickled(pickle)
}

pub(super) fn unpickled(pickle: PickledInboundGroupSession) -> Result<InboundGroupSession> {
    InboundGroupSession::from_pickle(pickle).map_err(|_| corrupt("megolm_inbound_sessions"))
}

pub(super) fn outbound_session(own: StaticAccountData, pickle: &[u8]) -> Result<OutboundGroupSession> {
    let pickle = from_json("megolm_outbound_sessions", pickle)?;
    OutboundGroupSession::from_pickle(own.device_id, own.identity_keys, pickle)
        .map_err(|_| corrupt("megolm_outbound_sessions"))
}

pub(super) fn key_request(found: &requests::Found) -> Result<GossipRequest> {
    let mut request: GossipRequest = from_json("crypto_key_requests", &found.data)?;
    request.sent_out = found.sent_out;
    Ok(request)
}
