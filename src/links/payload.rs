//! Putting addresses into a payload without touching the rest of it: objects are taken apart only on the way to the
//! file, and keep the order of their keys.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::{RawValue, to_raw_value};

use crate::model::MediaPart;

/// What every payload with a file holds, as it is rendered: one of these. No text can: within one, quotes are escaped.
const MARKS: [&str; 2] = ["\"media\":{", PART_MARK];

/// What every file holds that has a name among its message's files.
const PART_MARK: &str = "\"part\":\"";

/// An object whose keys keep their order and whose values stay as they were written.
struct Object(Vec<(String, Box<RawValue>)>);

impl Object {
    fn read(value: &RawValue) -> Option<Self> {
        serde_json::from_str(value.get()).ok()
    }

    fn get(&self, key: &str) -> Option<&RawValue> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| &**value)
    }

    /// Changes the object that stands under a key; `None` when there is none, or `change` says so.
    fn within(&mut self, key: &str, change: impl FnOnce(&mut Self) -> Option<()>) -> Option<()> {
        let (_, value) = self.0.iter_mut().find(|(known, _)| known == key)?;
        let mut inner = Self::read(value)?;
        change(&mut inner)?;
        *value = to_raw_value(&inner).ok()?;
        Some(())
    }

    /// Puts a text in front of all else, in place of what stood under the key.
    fn put_first(&mut self, key: &str, text: &str) -> Option<()> {
        self.0.retain(|(known, _)| known != key);
        self.0.insert(0, (key.to_owned(), to_raw_value(text).ok()?));
        Some(())
    }

    /// Gives a file its address.
    fn locate(&mut self, url: &str, expires_at: &str) -> Option<()> {
        self.put_first("url_expires_at", expires_at)?;
        self.put_first("url", url)
    }
}

/// Whether a payload may have files, told fast: hardly any has.
pub(super) fn may_have_files(payload: &[u8]) -> bool {
    std::str::from_utf8(payload).is_ok_and(|payload| MARKS.iter().any(|mark| payload.contains(mark)))
}

/// The payload with addresses that `url` makes for its message's files; `None` when it has no file.
pub(super) fn with_urls(
    payload: &[u8],
    expires_at: &str,
    url: impl Fn(&str, &MediaPart) -> Option<String>,
) -> Option<Vec<u8>> {
    let mut whole: Object = serde_json::from_slice(payload).ok()?;
    whole.within("data", |data| {
        let id: String = serde_json::from_str(data.get("id")?.get()).ok()?;
        let url = |part: &MediaPart| url(&id, part);
        let own = data.within("content", |content| {
            content.within("media", |media| {
                // Of a payload that has no thumbnail this does nothing.
                let _ = media.within("thumbnail", |thumbnail| {
                    thumbnail.locate(&url(&MediaPart::Thumbnail)?, expires_at)
                });
                media.locate(&url(&MediaPart::File)?, expires_at)
            })
        });
        let named = ["content", "sender"].map(|key| {
            let (_, value) = data.0.iter_mut().find(|(known, _)| known == key)?;
            *value = with_named(value, expires_at, &url)?;
            Some(())
        });
        own.or(named.into_iter().flatten().next())
    })?;
    serde_json::to_vec(&whole).ok()
}

/// A value in which every file that has a name has an address, at whichever depth; `None` when there is none.
fn with_named(
    value: &RawValue,
    expires_at: &str,
    url: &impl Fn(&MediaPart) -> Option<String>,
) -> Option<Box<RawValue>> {
    let text = value.get();
    // Hardly any value has one, so hardly any is taken apart for it.
    if !text.contains(PART_MARK) {
        return None;
    }
    let inner = |value: &mut Box<RawValue>| {
        let changed = with_named(value, expires_at, url);
        changed.map(|changed| *value = changed).is_some()
    };
    if text.starts_with('[') {
        let mut list: Vec<Box<RawValue>> = serde_json::from_str(text).ok()?;
        let changed = list.iter_mut().filter_map(|value| inner(value).then_some(())).count();
        return if changed > 0 { to_raw_value(&list).ok() } else { None };
    }
    let mut object = Object::read(value)?;
    let changed = object.0.iter_mut().filter_map(|(_, value)| inner(value).then_some(())).count();
    let is_file = object.get("mxc").is_some();
    let name: Option<String> =
        object.get("part").filter(|_| is_file).and_then(|part| serde_json::from_str(part.get()).ok());
    let located = name.and_then(|name| object.locate(&url(&MediaPart::named(&name)?)?, expires_at));
    if changed > 0 || located.is_some() { to_raw_value(&object).ok() } else { None }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Object, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Object(entries))
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}
