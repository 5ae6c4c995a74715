//! Users and devices of the application service, and the service itself.

use reqwest::Method;
use ruma::{DeviceId, OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::{Call, Homeserver, HomeserverError, Identity};

/// The login type of application services.
const APPLICATION_SERVICE: &str = "m.login.application_service";

impl Homeserver {
    /// The user that the `as_token` itself belongs to: the registration's `sender_localpart`
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#get_matrixclientv3accountwhoami)).
    ///
    /// # Errors
    /// `M_UNKNOWN_TOKEN` when the homeserver does not know the registration.
    pub async fn whoami(&self) -> Result<OwnedUserId, HomeserverError> {
        #[derive(Deserialize)]
        struct Answer {
            user_id: OwnedUserId,
        }
        let path = ["_matrix", "client", "v3", "account", "whoami"];
        Ok(self.call::<Answer>(Call::get(&path)).await?.user_id)
    }

    /// Registers a user of the service's namespace; answers whether it is new
    /// ([spec](https://spec.matrix.org/latest/application-service-api/#server-admin-style-permissions)).
    ///
    /// # Errors
    /// `M_EXCLUSIVE` when the name lies outside the namespace.
    pub async fn register(&self, localpart: &str) -> Result<bool, HomeserverError> {
        let path = ["_matrix", "client", "v3", "register"];
        // Without `inhibit_login` the homeserver would make a device, and one with delegated
        // authentication refuses.
        let body = json!({ "type": APPLICATION_SERVICE, "username": localpart, "inhibit_login": true });
        match self.call::<Json>(Call::post(&path, body)).await {
            Ok(_) => Ok(true),
            Err(error) if error.errcode() == Some("M_USER_IN_USE") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes a device, or renames it ([MSC4190][msc]).
    ///
    /// # Errors
    /// `M_NOT_FOUND` or `M_UNRECOGNIZED` where the homeserver or the registration does not know MSC4190;
    /// [`Homeserver::login_appservice`] is then the way.
    ///
    /// [msc]: https://github.com/matrix-org/matrix-spec-proposals/pull/4190
    pub async fn put_device(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        display_name: &str,
    ) -> Result<(), HomeserverError> {
        let path = ["_matrix", "client", "v3", "devices", device_id.as_str()];
        let identity = Identity::user(user_id);
        let mut call = Call::new(Method::PUT, &path).with_identity(&identity);
        call.body = Some(json!({ "display_name": display_name }));
        self.call::<Json>(call).await.map(drop)
    }

    /// Makes a device by logging in as one of the service's users; the access token that comes with it is
    /// thrown away, as the `as_token` serves every request
    /// ([spec](https://spec.matrix.org/latest/application-service-api/#server-admin-style-permissions)).
    ///
    /// # Errors
    /// When the homeserver refuses, as it does where devices are made by [`Homeserver::put_device`].
    pub async fn login_appservice(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        display_name: &str,
    ) -> Result<(), HomeserverError> {
        let path = ["_matrix", "client", "v3", "login"];
        let body = json!({
            "type": APPLICATION_SERVICE,
            "identifier": { "type": "m.id.user", "user": user_id },
            "device_id": device_id,
            "initial_device_display_name": display_name,
        });
        self.call::<Json>(Call::post(&path, body)).await.map(drop)
    }

    /// Removes a device and its keys ([MSC4190][msc]); where the homeserver wants more proof for that, logs it out.
    ///
    /// # Errors
    /// When the homeserver refuses both. A device that is not there is no error.
    ///
    /// [msc]: https://github.com/matrix-org/matrix-spec-proposals/pull/4190
    pub async fn delete_device(&self, user_id: &UserId, device_id: &DeviceId) -> Result<(), HomeserverError> {
        let path = ["_matrix", "client", "v3", "devices", device_id.as_str()];
        let identity = Identity::user(user_id);
        let mut call = Call::new(Method::DELETE, &path).with_identity(&identity);
        call.body = Some(json!({}));
        match self.call::<Json>(call).await {
            Err(HomeserverError::Status { status: 401 | 403..=405, .. }) => {}
            answered => return answered.map(drop),
        }
        // Without the device the homeserver would log out the service's own token.
        let identity = Identity { user_id: user_id.to_owned(), device_id: Some(device_id.to_owned()) };
        let path = ["_matrix", "client", "v3", "logout"];
        self.call::<Json>(Call::post(&path, json!({})).with_identity(&identity)).await.map(drop)
    }

    /// Asks the homeserver to call our ping endpoint, which also ends its waiting before a retry
    /// ([spec](https://spec.matrix.org/latest/application-service-api/#pinging)).
    ///
    /// # Errors
    /// `M_CONNECTION_FAILED`, `M_CONNECTION_TIMEOUT` and `M_BAD_STATUS` when the homeserver cannot reach us.
    pub async fn ping(&self, appservice_id: &str, txn_id: &str) -> Result<(), HomeserverError> {
        let path = ["_matrix", "client", "v1", "appservice", appservice_id, "ping"];
        let call = Call::post(&path, json!({ "transaction_id": txn_id }));
        self.call::<Json>(call).await.map(drop)
    }
}
