use std::collections::BTreeMap;

use ruma::OwnedUserId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// What one `/sync` brought for one device. Its JSON is what the inbox keeps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SyncPage {
    /// The `since` of the next `/sync`.
    pub next_batch: String,
    /// To-device messages, oldest first, each as it came.
    pub to_device: Vec<Box<RawValue>>,
    /// Users whose devices have changed.
    pub device_lists_changed: Vec<OwnedUserId>,
    /// Users with whom no encrypted room is shared any more.
    pub device_lists_left: Vec<OwnedUserId>,
    /// One-time keys left on the homeserver, by algorithm; `None` when it did not say.
    pub one_time_key_counts: Option<BTreeMap<String, u64>>,
    /// Algorithms with an unused fallback key; `None` when the homeserver did not say.
    pub unused_fallback_key_types: Option<Vec<String>>,
}

impl SyncPage {
    /// Whether it brings nothing but key counts, which every page brings: whoever leaves it out of the inbox
    /// loses nothing, but heeds the counts first.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.to_device.is_empty() && self.device_lists_changed.is_empty() && self.device_lists_left.is_empty()
    }
}
