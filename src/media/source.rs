//! What a stored payload says of a file: where it is, its key, its name and type.

use matrix_sdk_crypto::MediaEncryptionInfo;
use ruma::{OwnedMxcUri, OwnedServerName};
use serde::Deserialize;
use serde_json::{Map, Value};
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
struct Payload {
    #[serde(rename = "type")]
    message_type: String,
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    content: Option<Content>,
    matrix: Matrix,
}

#[derive(Deserialize)]
struct Content {
    media: Option<Media>,
}

#[derive(Deserialize)]
struct Media {
    #[serde(flatten)]
    file: File,
    filename: Option<String>,
    thumbnail: Option<File>,
}

#[derive(Deserialize)]
struct File {
    mxc: OwnedMxcUri,
    encrypted: bool,
    mimetype: Option<String>,
}

#[derive(Deserialize)]
struct Matrix {
    content: Map<String, Value>,
}

impl Source {
    /// The file that a payload tells of; `None` when it tells of none that can be fetched.
    pub(super) fn read(payload: &[u8], part: MediaPart) -> Option<Self> {
        let Payload { message_type, data } = serde_json::from_slice(payload).ok()?;
        let media = data.content?.media?;
        let raw = match data.matrix.content.get("m.new_content") {
            Some(Value::Object(new)) if message_type == "message.edited" => new,
            _ => &data.matrix.content,
        };
        let (file, filename, key) = match part {
            MediaPart::File => (media.file, media.filename, raw.get("file")),
            MediaPart::Thumbnail => {
                (media.thumbnail?, None, raw.get("info").and_then(|info| info.get("thumbnail_file")))
            }
        };
        let key = if file.encrypted { Some(Zeroizing::new(serde_json::to_vec(key?).ok()?)) } else { None };
        let (server_name, media_id) = file.mxc.parts().ok()?;
        Some(Self {
            server_name: server_name.to_owned(),
            media_id: media_id.to_owned(),
            mimetype: file.mimetype,
            filename,
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
        let file = Source::read(&payload, MediaPart::File).unwrap();
        assert_eq!((file.server_name.as_str(), &*file.media_id), ("a.example.org", "file"));
        assert_eq!((file.mimetype.as_deref(), file.filename.as_deref()), (Some("image/png"), Some("f.png")));
        assert!(file.is_encrypted() && file.info().is_some());
        let small = Source::read(&payload, MediaPart::Thumbnail).unwrap();
        assert_eq!((small.server_name.as_str(), &*small.media_id), ("a.example.org:8448", "small"));
        assert!(!small.is_encrypted() && small.info().is_none());
        assert_eq!(format!("{file:?}"), "Source { encrypted: true, .. }");
    }

    #[test]
    fn the_key_of_an_edit_is_that_of_its_new_content() {
        let matrix = json!({"m.new_content": {"file": encrypted("mxc://a.example.org/file")}});
        let edit = payload("message.edited", &matrix);
        assert!(Source::read(&edit, MediaPart::File).unwrap().info().is_some());
        assert!(Source::read(&payload("message.created", &matrix), MediaPart::File).is_none());
    }

    #[test]
    fn what_has_no_file_or_a_bad_one_is_none() {
        let no_file = json!({"type": "message.created", "data": {"content": {"kind": "redacted"}, "matrix":
            {"content": {}}}});
        let mut bad_address: Value =
            serde_json::from_slice(&payload("message.created", &json!({"file": encrypted("x")}))).unwrap();
        bad_address["data"]["content"]["media"]["mxc"] = "mxc://a/../b".into();
        for odd in [String::new(), "{}".to_owned(), no_file.to_string(), bad_address.to_string()] {
            assert!(Source::read(odd.as_bytes(), MediaPart::File).is_none(), "{odd}");
        }
        let mut old = encrypted("mxc://a.example.org/file");
        old["v"] = "v9".into();
        let unknown = payload("message.created", &json!({"file": {"url": "mxc://a.example.org/file"}}));
        assert!(Source::read(&unknown, MediaPart::File).unwrap().info().is_none(), "no key");
    }
}
