//! Account data of a user: where secret storage is kept.

use reqwest::Method;
use ruma::UserId;
use serde_json::Value as Json;

use super::{Call, Homeserver, HomeserverError, Identity};

impl Homeserver {
    /// One kind of a user's global account data; `None` when there is none, or it was emptied
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#get_matrixclientv3useruseridaccount_datatype)).
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn account_data(
        &self,
        user_id: &UserId,
        event_type: &str,
    ) -> Result<Option<Json>, HomeserverError> {
        let path = path(user_id, event_type);
        let identity = Identity::user(user_id);
        match self.call::<Json>(Call::get(&path).with_identity(&identity)).await {
            // Nothing can be deleted, so emptying it is how that is done.
            Ok(Json::Object(content)) if content.is_empty() => Ok(None),
            Ok(content) => Ok(Some(content)),
            Err(HomeserverError::Status { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets one kind of a user's global account data
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#put_matrixclientv3useruseridaccount_datatype)).
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn set_account_data(
        &self,
        user_id: &UserId,
        event_type: &str,
        content: Json,
    ) -> Result<(), HomeserverError> {
        let path = path(user_id, event_type);
        let identity = Identity::user(user_id);
        let mut call = Call::new(Method::PUT, &path).with_identity(&identity);
        call.body = Some(content);
        self.call::<Json>(call).await.map(drop)
    }
}

fn path<'a>(user_id: &'a UserId, event_type: &'a str) -> [&'a str; 7] {
    ["_matrix", "client", "v3", "user", user_id.as_str(), "account_data", event_type]
}
