//! What a stored payload says of a file: where it is, its key, its name and type.

use std::{borrow::Cow, collections::HashMap};

use matrix_sdk_crypto::MediaEncryptionInfo;
use ruma::{OwnedMxcUri, OwnedServerName};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use zeroize::Zeroizing;

use crate::model::MediaPart;

/// Where a file is, and what it takes to read it.
#[derive(Clone)]
pub(super) struct Source {
    /// The server that it was uploaded to.
    pub(super) server_name: OwnedServerName,
    /// Its id there.
    pub(super) media_id: String,
    /// Its type, as the sender claims.
    pub(super) mimetype: Option<String>,
    /// Its name, as the sender wrote it.
    pub(super) filename: Option<String>,
    /// The `EncryptedFile` of the event
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#extensions-to-mroommessage-msgtypes)), when it is
    /// encrypted.
    file: Option<Zeroizing<Vec<u8>>>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("encrypted", &self.is_encrypted()).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(rename = "type")]
    message_type: String,
    #[serde(borrow)]
    data: Data<'a>,
}

#[derive(Deserialize)]
struct Data<'a> {
    content: Option<Value>,
    sender: Option<Value>,
    #[serde(borrow)]
    matrix: Matrix<'a>,
}

/// What a payload says of a file: of `data.content.media`, or of one that has a name.
#[derive(Deserialize)]
struct File {
    mxc: OwnedMxcUri,
    encrypted: bool,
    mimetype: Option<String>,
    filename: Option<String>,
    key_at: Option<String>,
}

#[derive(Deserialize)]
struct Matrix<'a> {
    /// Others wrote it: it is taken apart on the way to a key, and no further.
    #[serde(borrow)]
    content: &'a RawValue,
}

impl Source {
    /// The file that a payload tells of; `None` when it tells of none that can be fetched.
    pub(super) fn read(payload: &[u8], part: &MediaPart) -> Option<Self> {
        let Payload { message_type, data } = serde_json::from_slice(payload).ok()?;
        let file = match part {
            MediaPart::File => data.content.as_ref()?.get("media")?,
            MediaPart::Thumbnail => data.content.as_ref()?.get("media")?.get("thumbnail")?,
            MediaPart::Named(name) => {
                [&data.content, &data.sender].into_iter().flatten().find_map(|value| named(value, name))?
            }
        };
        let file = File::deserialize(file).ok()?;
        let key = if file.encrypted {
            let key_at = file.key_at.or_else(|| {
                let is_new =
                    message_type == "message.edited" && child(data.matrix.content, "m.new_content").is_some();
                let base = if is_new { "/m.new_content" } else { "" };
                match part {
                    MediaPart::File => Some(format!("{base}/file")),
                    MediaPart::Thumbnail => Some(format!("{base}/info/thumbnail_file")),
                    MediaPart::Named(_) => None,
                }
            });
            let key = at(data.matrix.content, &key_at?)?;
            Some(Zeroizing::new(key.get().as_bytes().to_vec()))
        } else {
            None
        };
        let (server_name, media_id) = file.mxc.parts().ok()?;
        Some(Self {
            server_name: server_name.to_owned(),
            media_id: media_id.to_owned(),
            mimetype: file.mimetype,
            filename: file.filename,
            file: key,
        })
    }

    /// Whether it is stored encrypted by its sender.
    pub(super) fn is_encrypted(&self) -> bool {
        self.file.is_some()
    }

    /// Its key and its hash; `None` when it is not encrypted, or not in a way that is known.
    pub(super) fn info(&self) -> Option<MediaEncryptionInfo> {
        serde_json::from_slice(self.file.as_ref()?).ok()
    }
}

/// The file of that name, at whichever depth.
fn named<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(object) if object.get("part").and_then(Value::as_str) == Some(name) => Some(value),
        Value::Object(object) => object.values().find_map(|value| named(value, name)),
        Value::Array(list) => list.iter().find_map(|value| named(value, name)),
        _ => None,
    }
}

/// What stands at a JSON pointer (RFC 6901).
fn at<'a>(value: &'a RawValue, pointer: &str) -> Option<&'a RawValue> {
    if pointer.is_empty() {
        return Some(value);
    }
    let mut steps = pointer.strip_prefix('/')?.split('/');
    steps.try_fold(value, |value, step| child(value, &step.replace("~1", "/").replace("~0", "~")))
}

/// A member of an object, or an element of an array. Of members with the same name the last one counts.
fn child<'a>(value: &'a RawValue, key: &str) -> Option<&'a RawValue> {
    if value.get().trim_start().starts_with('[') {
        let list: Vec<&RawValue> = serde_json::from_str(value.get()).ok()?;
        return list.get(key.parse::<usize>().ok()?).copied();
    }
    let members: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_str(value.get()).ok()?;
    members.get(key).copied()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn encrypted(mxc: &str) -> Value {
        json!({
            "v": "v2", "url": mxc, "iv": "i0DovxYdJEcAAAAAAAAAAA",
            "key": {"kty": "oct", "alg": "A256CTR", "ext": true, "key_ops": ["encrypt", "decrypt"],
                "k": "Voq2nkPme_x8no5-Tjq_laDAdxE6iDbxnlQXxwFPgE4"},
            "hashes": {"sha256": "ANdt819a8bZl4jKy3Z+jcqtiNICa2y0AW4BBJ/iQRAU"},
        })
    }

    fn payload(message_type: &str, matrix: &Value) -> Vec<u8> {
        let media = json!({
            "mxc": "mxc://a.example.org/file", "encrypted": true, "filename": "f.png", "mimetype": "image/png",
            "thumbnail": {"mxc": "mxc://a.example.org:8448/small", "encrypted": false, "mimetype": "image/jpeg"},
        });
        let data = json!({"content": {"kind": "image", "media": media}, "matrix": {"content": matrix}});
        json!({"type": message_type, "data": data}).to_string().into_bytes()
    }

    #[test]
    fn a_payload_tells_where_its_files_are_and_how_they_are_read() {
        let matrix =
            json!({"file": encrypted("mxc://a.example.org/file"), "m.new_content": {"body": "of no edit"}});
        let payload = payload("message.created", &matrix);
        let file = Source::read(&payload, &MediaPart::File).unwrap();
        assert_eq!((file.server_name.as_str(), &*file.media_id), ("a.example.org", "file"));
        assert_eq!((file.mimetype.as_deref(), file.filename.as_deref()), (Some("image/png"), Some("f.png")));
        assert!(file.is_encrypted() && file.info().is_some());
        let small = Source::read(&payload, &MediaPart::Thumbnail).unwrap();
        assert_eq!((small.server_name.as_str(), &*small.media_id), ("a.example.org:8448", "small"));
        assert!(!small.is_encrypted() && small.info().is_none());
        assert_eq!(format!("{file:?}"), "Source { encrypted: true, .. }");
    }

    #[test]
    fn the_key_of_an_edit_is_that_of_its_new_content() {
        let matrix = json!({"m.new_content": {"file": encrypted("mxc://a.example.org/file")}});
        let edit = payload("message.edited", &matrix);
        assert!(Source::read(&edit, &MediaPart::File).unwrap().info().is_some());
        assert!(Source::read(&payload("message.created", &matrix), &MediaPart::File).is_none());
    }

    #[test]
    fn what_has_no_file_or_a_bad_one_is_none() {
        let no_file = json!({"type": "message.created", "data": {"content": {"kind": "redacted"}, "matrix":
            {"content": {}}}});
        let mut bad_address: Value =
            serde_json::from_slice(&payload("message.created", &json!({"file": encrypted("x")}))).unwrap();
        bad_address["data"]["content"]["media"]["mxc"] = "mxc://a/../b".into();
        for odd in [String::new(), "{}".to_owned(), no_file.to_string(), bad_address.to_string()] {
            assert!(Source::read(odd.as_bytes(), &MediaPart::File).is_none(), "{odd}");
        }
        let mut old = encrypted("mxc://a.example.org/file");
        old["v"] = "v9".into();
        let unknown = payload("message.created", &json!({"file": {"url": "mxc://a.example.org/file"}}));
        assert!(Source::read(&unknown, &MediaPart::File).unwrap().info().is_none(), "no key");
    }

    #[test]
    fn a_file_that_has_a_name_is_read_with_the_key_that_its_payload_points_at() {
        let picture = |part: &str, mxc: &str, key_at: &str| json!({"part": part, "mxc": mxc, "encrypted": true, "key_at": key_at, "mimetype": "image/png"});
        let item = json!({"kind": "image", "media": {
            "part": "gallery.1", "mxc": "mxc://a.example.org/b", "encrypted": true, "filename": "b.png",
            "key_at": "/m.new_content/itemtypes/1/file",
            "thumbnail": picture("gallery.1.thumbnail", "mxc://a.example.org/c", "/m.new_content/x~1y~0z"),
        }});
        let plain = json!({"kind": "image", "media": {"part": "gallery.0", "mxc": "mxc://a.example.org/a", "encrypted": false}});
        let avatar =
            picture("avatar", "mxc://a.example.org/d", "/com.beeper.per_message_profile/avatar_file");
        let raw = format!(
            r#"{{"odd": 1e999, "m.new_content": {{"itemtypes": [{{}}, {{"file": {0}}}], "x/y~z": {0}}},
                "com.beeper.per_message_profile": {{"avatar_file": {0}}}}}"#,
            encrypted("mxc://elsewhere/x")
        );
        let content = json!({"kind": "gallery", "gallery": [plain, item]});
        let payload = format!(
            r#"{{"type": "message.edited", "data": {{"content": {content}, "sender": {{"profile": {{"avatar": {avatar}}}}},
                "matrix": {{"content": {raw}}}}}}}"#
        );
        let read = |name: &str| Source::read(payload.as_bytes(), &MediaPart::named(name).unwrap());
        for (name, media_id) in [("gallery.1", "b"), ("gallery.1.thumbnail", "c"), ("avatar", "d")] {
            let source = read(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(source.media_id, media_id);
            assert!(source.info().is_some(), "{name}");
        }
        assert_eq!(read("gallery.1").unwrap().filename.as_deref(), Some("b.png"));
        assert!(!read("gallery.0").unwrap().is_encrypted());
        assert!(read("gallery.2").is_none() && read("preview.0").is_none());
    }
}
