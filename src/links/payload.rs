//! Putting addresses into a payload without touching the rest of it: objects are taken apart only on the way to the
//! file, and keep the order of their keys.

use serde_json::value::{RawValue, to_raw_value};

use crate::model::{MediaPart, RawObject};

/// What every payload with a file holds, as it is rendered: one of these. No text can: within one, quotes are escaped.
const MARKS: [&str; 2] = ["\"media\":{", PART_MARK];

/// What every file holds that has a name among its message's files.
const PART_MARK: &str = "\"part\":\"";

/// Gives a file its address, in front of all else.
fn locate(file: &mut RawObject, url: &str, expires_at: &str) -> Option<()> {
    for (key, text) in [("url_expires_at", expires_at), ("url", url)] {
        file.remove(key);
        file.0.insert(0, (key.to_owned(), to_raw_value(text).ok()?));
    }
    Some(())
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
    let mut whole = RawObject::parse(payload)?;
    whole.within("data", |data| {
        let id: String = data.get_as("id")?;
        let url = |part: &MediaPart| url(&id, part);
        let own = data.within("content", |content| {
            content.within("media", |media| {
                // Of a payload that has no thumbnail this does nothing.
                let _ = media.within("thumbnail", |thumbnail| {
                    locate(thumbnail, &url(&MediaPart::Thumbnail)?, expires_at)
                });
                locate(media, &url(&MediaPart::File)?, expires_at)
            })
        });
        let named = ["content", "sender"].map(|key| {
            let (_, value) = data.0.iter_mut().find(|(known, _)| known == key)?;
            *value = with_named(value, expires_at, &url)?;
            Some(())
        });
        own.or(named.into_iter().flatten().next())
    })?;
    whole.to_vec()
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
    let mut object = RawObject::read(value)?;
    let changed = object.0.iter_mut().filter_map(|(_, value)| inner(value).then_some(())).count();
    let is_file = object.get("mxc").is_some();
    let name: Option<String> = object.get_as("part").filter(|_| is_file);
    let located = name.and_then(|name| locate(&mut object, &url(&MediaPart::named(&name)?)?, expires_at));
    if changed > 0 || located.is_some() { to_raw_value(&object).ok() } else { None }
}
