//! The server-side key backup of a user
//! ([spec](https://spec.matrix.org/latest/client-server-api/#server-side-key-backups)).

use std::collections::BTreeMap;

use reqwest::Method;
use ruma::{RoomId, UserId};
use serde::Deserialize;
use serde_json::Value as Json;

use super::{Call, Homeserver, HomeserverError, Identity, LARGE_ANSWER};

/// A backup as the homeserver describes it.
#[derive(Clone, Debug, Deserialize)]
pub struct BackupVersion {
    /// Which of the user's backups it is; the newest is the one in use.
    pub version: String,
    /// How many keys it holds.
    #[serde(default)]
    pub count: u64,
    /// `algorithm` and `auth_data`, with whatever else the homeserver says.
    #[serde(flatten)]
    pub info: Json,
}

/// Keys of one room by their session ids, each still encrypted.
pub type RoomKeys = BTreeMap<String, Json>;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Sessions {
    sessions: RoomKeys,
}

impl Homeserver {
    /// The backup that a user has in use, if there is one.
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn backup_version(&self, user_id: &UserId) -> Result<Option<BackupVersion>, HomeserverError> {
        let path = ["_matrix", "client", "v3", "room_keys", "version"];
        let identity = Identity::user(user_id);
        none_when_absent(self.call(Call::get(&path).with_identity(&identity)).await)
    }

    /// Makes a backup, which takes the place of the one in use, and answers its version.
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn create_backup(&self, user_id: &UserId, info: Json) -> Result<String, HomeserverError> {
        #[derive(Deserialize)]
        struct Answer {
            version: String,
        }
        let path = ["_matrix", "client", "v3", "room_keys", "version"];
        let identity = Identity::user(user_id);
        Ok(self.call::<Answer>(Call::post(&path, info).with_identity(&identity)).await?.version)
    }

    /// Puts keys into a backup: `{"rooms": {…}}`. A better key that is there already stays.
    ///
    /// # Errors
    /// `M_WRONG_ROOM_KEYS_VERSION` or 404 when `version` is not the backup in use.
    pub async fn put_room_keys(
        &self,
        user_id: &UserId,
        version: &str,
        keys: Json,
    ) -> Result<(), HomeserverError> {
        let path = ["_matrix", "client", "v3", "room_keys", "keys"];
        let identity = Identity::user(user_id);
        let mut call = Call::new(Method::PUT, &path).with_identity(&identity);
        call.query.push(("version", version));
        call.body = Some(keys);
        self.call::<Json>(call).await.map(drop)
    }

    /// All keys of a backup by room. Only for backups of which it is known that they are small.
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses, or the answer is too large.
    pub async fn all_room_keys(
        &self,
        user_id: &UserId,
        version: &str,
    ) -> Result<BTreeMap<String, RoomKeys>, HomeserverError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Answer {
            rooms: BTreeMap<String, Sessions>,
        }
        let answer: Option<Answer> = self.room_keys(user_id, version, &[]).await?;
        let rooms = answer.unwrap_or_default().rooms.into_iter();
        Ok(rooms.map(|(room_id, keys)| (room_id, keys.sessions)).collect())
    }

    /// The keys of one room.
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn keys_of_room(
        &self,
        user_id: &UserId,
        version: &str,
        room_id: &RoomId,
    ) -> Result<RoomKeys, HomeserverError> {
        let answer: Option<Sessions> = self.room_keys(user_id, version, &[room_id.as_str()]).await?;
        Ok(answer.unwrap_or_default().sessions)
    }

    /// The key of one session.
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn key_of_session(
        &self,
        user_id: &UserId,
        version: &str,
        room_id: &RoomId,
        session_id: &str,
    ) -> Result<Option<Json>, HomeserverError> {
        self.room_keys(user_id, version, &[room_id.as_str(), session_id]).await
    }

    async fn room_keys<T: serde::de::DeserializeOwned>(
        &self,
        user_id: &UserId,
        version: &str,
        below: &[&str],
    ) -> Result<Option<T>, HomeserverError> {
        let mut path = vec!["_matrix", "client", "v3", "room_keys", "keys"];
        path.extend(below);
        let identity = Identity::user(user_id);
        let mut call = Call::get(&path).with_identity(&identity);
        call.query.push(("version", version));
        call.limit = LARGE_ANSWER;
        call.timeout *= 3;
        none_when_absent(self.call(call).await)
    }
}

fn none_when_absent<T>(answer: Result<T, HomeserverError>) -> Result<Option<T>, HomeserverError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(HomeserverError::Status { status: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
