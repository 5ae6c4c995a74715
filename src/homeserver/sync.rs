//! The key lane's side of the homeserver: `/sync` for a device, to-device messages only.

use std::{collections::BTreeMap, time::Duration};

use ruma::OwnedUserId;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{json, value::RawValue};

use super::{Call, Homeserver, HomeserverError, Identity, LARGE_ANSWER, POLL_MARGIN};
use crate::model::SyncPage;

/// A member that is left out when it is not what it should be, so that the rest still counts.
fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(deserializer: D) -> Result<T, D::Error> {
    let raw = Box::<RawValue>::deserialize(deserializer)?;
    Ok(serde_json::from_str(raw.get()).unwrap_or_default())
}

#[derive(Deserialize)]
struct Answer {
    next_batch: String,
    #[serde(default)]
    to_device: ToDevice,
    #[serde(default, deserialize_with = "lenient")]
    device_lists: DeviceLists,
    #[serde(default, deserialize_with = "lenient")]
    device_one_time_keys_count: Option<BTreeMap<String, u64>>,
    #[serde(default, deserialize_with = "lenient")]
    device_unused_fallback_key_types: Option<Vec<String>>,
    #[serde(
        default,
        deserialize_with = "lenient",
        rename = "org.matrix.msc2732.device_unused_fallback_key_types"
    )]
    unstable_unused_fallback_key_types: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
struct ToDevice {
    #[serde(default)]
    events: Vec<Box<RawValue>>,
}

#[derive(Default, Deserialize)]
struct DeviceLists {
    #[serde(default)]
    changed: Vec<String>,
    #[serde(default)]
    left: Vec<String>,
}

impl Homeserver {
    /// What the homeserver holds for a device since `since`: to-device messages, device-list changes and
    /// key counts, nothing else
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#get_matrixclientv3sync)).
    ///
    /// Waits up to `timeout` for something to come. Asking with a `since` deletes at the homeserver what came
    /// before it, so it must be durable here by then.
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn sync(
        &self,
        identity: &Identity,
        since: Option<&str>,
        timeout: Duration,
    ) -> Result<SyncPage, HomeserverError> {
        let path = ["_matrix", "client", "v3", "sync"];
        // A poll may be answered as before; who asks for what is there now may not.
        let now = since.is_none() || timeout.is_zero();
        let no_room = now.then(no_room);
        let filter = json!({
            "room": { "rooms": [], "not_rooms": no_room.as_slice() },
            "presence": { "types": [] },
            "account_data": { "types": [] },
        });
        let (filter, timeout_ms) = (filter.to_string(), timeout.as_millis().to_string());
        let mut call = Call::get(&path).with_identity(identity);
        call.query.extend([("filter", &*filter), ("set_presence", "offline"), ("timeout", &timeout_ms)]);
        call.query.extend(since.map(|since| ("since", since)));
        call.timeout = timeout + POLL_MARGIN;
        call.limit = LARGE_ANSWER;
        let answer: Answer = self.call(call).await?;
        let users = |ids: Vec<String>| {
            ids.into_iter().filter_map(|id| OwnedUserId::try_from(id).ok()).collect::<Vec<_>>()
        };
        Ok(SyncPage {
            next_batch: answer.next_batch,
            to_device: answer.to_device.events,
            device_lists_changed: users(answer.device_lists.changed),
            device_lists_left: users(answer.device_lists.left),
            one_time_key_counts: answer.device_one_time_keys_count,
            unused_fallback_key_types: answer
                .device_unused_fallback_key_types
                .or(answer.unstable_unused_fallback_key_types),
        })
    }
}

/// A room that there is not, another one each time, for the filter of a `/sync` that must not be answered from a
/// cache: Synapse answers the very same question for two minutes as it did at first, without what came since
/// (`sync_response_cache_duration`), and the filter is part of the question.
pub(super) fn no_room() -> String {
    format!("!{:032x}:coucou.invalid", rand::random::<u128>())
}
