//! A transaction's body, read leniently.
//!
//! Homeservers are ahead of, behind and beside the specification: each part is looked for under its stable
//! and its unstable names, and what is not as it should be is left out and counted, never a reason to give up
//! the rest. Events stay as they came.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use ruma::{OwnedDeviceId, OwnedUserId, UserId};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::model::{Account, SyncPage};

/// Names of each part, the preferred one first. Where a homeserver sends a part under several of them, as
/// Synapse does, the contents are the same.
const TO_DEVICE: &[&str] = &["to_device", "de.sorunome.msc2409.to_device"];
const EPHEMERAL: &[&str] = &["ephemeral", "de.sorunome.msc2409.ephemeral"];
const DEVICE_LISTS: &[&str] = &["device_lists", "org.matrix.msc3202.device_lists"];
const KEY_COUNTS: &[&str] = &[
    "device_one_time_keys_count",
    "device_one_time_key_counts",
    "org.matrix.msc3202.device_one_time_keys_count",
    "org.matrix.msc3202.device_one_time_key_counts",
];
const FALLBACK_KEYS: &[&str] =
    &["device_unused_fallback_key_types", "org.matrix.msc3202.device_unused_fallback_key_types"];

/// Why a body is not a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It is not JSON, or no object.
    #[error("the body is not a JSON object")]
    NotJson,
    /// `events` is there and is no array.
    #[error("events is not an array")]
    Events,
}

/// Something for each device of each user.
pub type PerDevice<T> = BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, T>>;

/// The parts of a transaction, or of a page of the key lane.
#[derive(Clone, Debug, Default)]
pub struct Envelope {
    /// Room events, in order.
    pub events: Vec<Box<RawValue>>,
    /// To-device messages, in order. Those of a push bear `to_user_id` and `to_device_id`
    /// ([MSC4203](https://github.com/matrix-org/matrix-spec-proposals/pull/4203)) and may be for devices that
    /// are not ours; those of the key lane are all for the device that asked.
    pub to_device: Vec<Box<RawValue>>,
    /// Typing, receipts, presence.
    pub ephemeral: Vec<Box<RawValue>>,
    /// Users whose devices have changed.
    pub device_lists_changed: Vec<OwnedUserId>,
    /// Users with whom no encrypted room is shared any more.
    pub device_lists_left: Vec<OwnedUserId>,
    /// One-time keys left on the homeserver, by algorithm. A device that is absent was not counted.
    pub one_time_key_counts: PerDevice<BTreeMap<String, u64>>,
    /// Algorithms with an unused fallback key. A device that is absent was not looked at.
    pub unused_fallback_key_types: PerDevice<Vec<String>>,
    /// How many members were left out because they are not what they should be.
    pub skipped_count: usize,
}

impl Envelope {
    /// Reads a transaction's body.
    ///
    /// # Errors
    /// When [`check`] refuses it.
    pub fn parse(body: &[u8]) -> Result<Self, EnvelopeError> {
        let members = members(body)?;
        let part = |names: &[&str]| {
            let present =
                names.iter().filter_map(|name| members.get(*name).copied().filter(|raw| !is_null(raw)));
            // An empty part under one name does not hide what is there under another.
            present.clone().find(|raw| !is_hollow(raw)).or_else(|| present.clone().next())
        };
        let mut skipped = 0;
        let lists = part(DEVICE_LISTS).map(|raw| object(raw, &mut skipped)).unwrap_or_default();
        let mut users = |name| users(lists.get(name).copied(), &mut skipped);
        let (device_lists_changed, device_lists_left) = (users("changed"), users("left"));
        Ok(Self {
            events: objects(part(&["events"]), &mut skipped),
            to_device: objects(part(TO_DEVICE), &mut skipped),
            ephemeral: objects(part(EPHEMERAL), &mut skipped),
            device_lists_changed,
            device_lists_left,
            one_time_key_counts: per_device(part(KEY_COUNTS), &mut skipped, |raw, skipped| {
                let counts = object(raw, skipped).into_iter();
                counts.filter_map(|(name, raw)| Some((name.into_owned(), value(raw, skipped)?))).collect()
            }),
            unused_fallback_key_types: per_device(part(FALLBACK_KEYS), &mut skipped, |raw, skipped| {
                list(Some(raw), skipped).into_iter().filter_map(|raw| value(raw, skipped)).collect()
            }),
            skipped_count: skipped,
        })
    }

    /// Reads what the inbox keeps of a page of an account's key lane.
    ///
    /// # Errors
    /// [`EnvelopeError::NotJson`] when it is no [`SyncPage`], which only coucou writes.
    pub fn parse_lane(body: &[u8], account: &Account) -> Result<Self, EnvelopeError> {
        let mut page: SyncPage = serde_json::from_slice(body).map_err(|_| EnvelopeError::NotJson)?;
        let count = page.to_device.len();
        page.to_device.retain(|message| is_object(message));
        let ours = |user_id: &UserId| (user_id.to_owned(), account.device_id.clone());
        let (user_id, device_id) = ours(&account.user_id);
        let counts = page.one_time_key_counts.map(|counts| [(device_id.clone(), counts)].into());
        let fallback = page.unused_fallback_key_types.map(|types| [(device_id, types)].into());
        Ok(Self {
            skipped_count: count - page.to_device.len(),
            to_device: page.to_device,
            device_lists_changed: page.device_lists_changed,
            device_lists_left: page.device_lists_left,
            one_time_key_counts: counts.map(|counts| (user_id.clone(), counts)).into_iter().collect(),
            unused_fallback_key_types: fallback.map(|types| (user_id, types)).into_iter().collect(),
            ..Self::default()
        })
    }
}

/// Whether a body is a transaction: a JSON object whose `events`, if there are any, are an array. Everything
/// else is for [`Envelope::parse`] to make the best of.
///
/// # Errors
/// What it is not.
pub fn check(body: &[u8]) -> Result<(), EnvelopeError> {
    members(body).map(drop)
}

/// The members of an object; of two with one name the last counts, as in most JSON readers.
type Members<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

fn members(body: &[u8]) -> Result<Members<'_>, EnvelopeError> {
    let text = std::str::from_utf8(body).map_err(|_| EnvelopeError::NotJson)?;
    let members = serde_json::from_str::<Object<'_>>(text).map_err(|_| EnvelopeError::NotJson)?.0;
    match members.get("events") {
        Some(events) if !is_null(events) && !events.get().starts_with('[') => Err(EnvelopeError::Events),
        _ => Ok(members),
    }
}

/// An object whose values are left as they are.
struct Object<'a>(Members<'a>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;

        impl<'de> Visitor<'de> for Visit {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Members::new();
                while let Some((Name(name), value)) = map.next_entry()? {
                    members.insert(name, value);
                }
                Ok(Object(members))
            }
        }

        deserializer.deserialize_map(Visit)
    }
}

/// A member's name, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

fn is_object(raw: &RawValue) -> bool {
    raw.get().starts_with('{')
}

fn is_null(raw: &RawValue) -> bool {
    raw.get() == "null"
}

/// Whether it is `[]` or `{}`, in any spacing.
fn is_hollow(raw: &RawValue) -> bool {
    let inner = raw.get().get(1..).unwrap_or_default().trim_start();
    raw.get().starts_with(['[', '{']) && inner.len() == 1
}

/// The members of what should be an object.
fn object<'a>(raw: &'a RawValue, skipped: &mut usize) -> Members<'a> {
    if let Ok(object) = serde_json::from_str::<Object<'_>>(raw.get()) {
        return object.0;
    }
    *skipped += 1;
    Members::new()
}

/// The items of what should be an array.
fn list<'a>(raw: Option<&'a RawValue>, skipped: &mut usize) -> Vec<&'a RawValue> {
    let Some(raw) = raw.filter(|raw| !is_null(raw)) else { return Vec::new() };
    if let Ok(items) = serde_json::from_str(raw.get()) {
        return items;
    }
    *skipped += 1;
    Vec::new()
}

/// The objects in what should be an array of objects.
fn objects(raw: Option<&RawValue>, skipped: &mut usize) -> Vec<Box<RawValue>> {
    let items = list(raw, skipped);
    let count = items.len();
    let objects: Vec<_> = items.into_iter().filter(|item| is_object(item)).map(ToOwned::to_owned).collect();
    *skipped += count - objects.len();
    objects
}

fn value<T: DeserializeOwned>(raw: &RawValue, skipped: &mut usize) -> Option<T> {
    let value = serde_json::from_str(raw.get()).ok();
    *skipped += usize::from(value.is_none());
    value
}

fn users(raw: Option<&RawValue>, skipped: &mut usize) -> Vec<OwnedUserId> {
    list(raw, skipped).into_iter().filter_map(|item| value(item, skipped)).collect()
}

fn per_device<T>(
    raw: Option<&RawValue>,
    skipped: &mut usize,
    read: impl Fn(&RawValue, &mut usize) -> T,
) -> PerDevice<T> {
    let mut all = PerDevice::new();
    for (user_id, devices) in raw.map(|raw| object(raw, skipped)).unwrap_or_default() {
        let Ok(user_id) = OwnedUserId::try_from(&*user_id) else {
            *skipped += 1;
            continue;
        };
        let devices = object(devices, skipped).into_iter();
        let devices = devices.map(|(device_id, raw)| (OwnedDeviceId::from(&*device_id), read(raw, skipped)));
        all.insert(user_id, devices.collect());
    }
    all
}

#[cfg(test)]
mod tests;
