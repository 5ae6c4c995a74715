//! Where files are in a content, and how they are read.
//!
//! A file is at an `mxc://` address: in the clear, or encrypted, then with its key and hash in an `EncryptedFile`
//! ([spec](https://spec.matrix.org/latest/client-server-api/#extensions-to-mroommessage-msgtypes)). Who states a key
//! says that the file is encrypted, wherever the address stands: it is never told as a file in the clear.

use serde::Serialize;
use serde_json::{Map, Value};

use super::text;
use crate::messages::html::{Piece, Pieces};

/// Maximum number of files told of in `content.files`.
const MAX_FILES: usize = 50;

/// Maximum depth at which files are looked for.
const MAX_DEPTH: usize = 16;

/// A file of a message beside `content.media`: a picture of a preview, an avatar, one that stands elsewhere.
///
/// Sizes and types are what the sender claims.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct File {
    /// Where coucou hands it out, decrypted, to whoever has this address. Made anew whenever the message is told;
    /// absent when coucou does not know its own public address (`http.public_url`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Until when `url` works, RFC 3339 in UTC. `GET /api/v1/messages/{id}` has a fresh one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_expires_at: Option<String>,
    /// Which of the message's files it is, as in `url`.
    pub part: String,
    /// Where it is on the homeserver, an `mxc://` address.
    pub mxc: String,
    /// Whether it is stored encrypted; then `key_at` says where its key is.
    pub encrypted: bool,
    /// Where in `data.matrix.content` its key is, a JSON pointer (RFC 6901).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_at: Option<String>,
    /// Only of `content.files`: where in `data.matrix.content` it stands, a JSON pointer (RFC 6901).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Its name, as the sender wrote it: not safe as a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// Its type, e.g. `image/jpeg`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mimetype: Option<String>,
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// In pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u64>,
    /// In pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u64>,
}

impl File {
    /// Returns the file whose address stands in an object under `plain`, or under one of `encrypted`. `base` is where
    /// the object is in the event's content, `part` the name of the file.
    pub(in crate::messages) fn at(
        object: &Map<String, Value>,
        plain: &str,
        encrypted: &[&'static str],
        base: &str,
        part: &str,
    ) -> Option<Self> {
        let Address { mxc, key } = address(object, plain, encrypted)?;
        let key_at = key.map(|key| pointer(base, key));
        Some(Self { part: part.to_owned(), mxc, encrypted: key_at.is_some(), key_at, ..Self::default() })
    }
}

/// The members under which contents have addresses of files, with those for encrypted ones.
const PAIRS: [(&str, &[&str]); 4] = [
    ("url", &["file"]),
    ("avatar_url", &["avatar_file"]),
    ("thumbnail_url", &["thumbnail_file"]),
    ("og:image", PREVIEW_KEYS),
];

/// The members under which previews of links have encrypted pictures.
pub(super) const PREVIEW_KEYS: &[&str] =
    &["matrix:image:encrypted", "matrix:image:encryption", "beeper:image:encryption"];

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// An `mxc://` address.
    pub(super) mxc: String,
    /// The member that holds the `EncryptedFile`, when the file is encrypted.
    pub(super) key: Option<&'static str>,
}

/// Returns where a file is whose address is under `plain`, or in the `EncryptedFile` under one of `encrypted`.
///
/// An encrypted one wins: who has it need not have the other. Where a key is stated without an address, the address
/// beside it is that of the encrypted file.
pub(super) fn address(
    content: &Map<String, Value>,
    plain: &str,
    encrypted: &[&'static str],
) -> Option<Address> {
    let beside = || text(content, plain).filter(|url| is_mxc(url));
    for key in encrypted {
        let Some(file) = content.get(*key).and_then(Value::as_object) else { continue };
        let url = text(file, "url").filter(|url| is_mxc(url)).or_else(|| beside().filter(|_| has_key(file)));
        if let Some(url) = url {
            return Some(Address { mxc: url.to_owned(), key: Some(key) });
        }
    }
    beside().map(|url| Address { mxc: url.to_owned(), key: None })
}

/// Returns whether an object says how to decrypt a file, however badly.
pub(super) fn has_key(file: &Map<String, Value>) -> bool {
    ["key", "iv", "hashes"].iter().any(|key| file.get(*key).is_some_and(|value| !value.is_null()))
}

pub(super) fn is_mxc(url: &str) -> bool {
    url.starts_with("mxc://")
}

/// Returns the type that is claimed for a file.
pub(super) fn mimetype(info: &Map<String, Value>) -> Option<String> {
    text(info, "mimetype").filter(|mimetype| !mimetype.is_empty()).map(str::to_owned)
}

/// Returns a count of something. Some clients write whole numbers as `23.0`.
pub(super) fn number(value: Option<&Value>) -> Option<u64> {
    /// The largest number that Matrix allows, and that a float holds exactly: 2⁵³ − 1.
    const MAX_INTEGER: f64 = 9_007_199_254_740_991.0;
    let value = value?;
    value.as_u64().or_else(|| {
        let float = value.as_f64().filter(|float| (0.0..=MAX_INTEGER).contains(float))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
        Some(float.round() as u64)
    })
}

/// Returns a JSON pointer one step further down.
pub(super) fn pointer(base: &str, key: &str) -> String {
    format!("{base}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// Looks for files that a content holds and that are told nowhere else.
pub(super) struct Search {
    /// The addresses of those that are.
    told: Vec<String>,
    found: Vec<File>,
}

impl Search {
    /// A search that passes over the files at these addresses.
    pub(super) fn beside(told: Vec<String>) -> Self {
        Self { told, found: Vec::new() }
    }

    /// Looks through a content that stands at `base` in the event's.
    pub(super) fn through(mut self, content: &Map<String, Value>, base: &str) -> Vec<File> {
        self.object(content, base, 0);
        self.found
    }

    fn object(&mut self, object: &Map<String, Value>, at: &str, depth: usize) {
        for (plain, encrypted) in PAIRS {
            let Some(Address { mxc, key }) = address(object, plain, encrypted) else { continue };
            let flat = key.is_none() && has_key(object);
            let key_at = key.map(|key| pointer(at, key)).or_else(|| flat.then(|| at.to_owned()));
            self.add(mxc, key_at, at.to_owned(), Some(object));
        }
        for (key, value) in object {
            let at = pointer(at, key);
            match value {
                // Told above, or the address of what stands there encrypted as well.
                Value::String(_) if PAIRS.iter().any(|(plain, _)| plain == key) => {}
                Value::String(html) if key == "formatted_body" => self.html(html, &at),
                value => self.value(value, &at, depth + 1),
            }
        }
    }

    /// Pictures amid a text: emoticons of one's own, and what bridges put there.
    fn html(&mut self, html: &str, at: &str) {
        for (_, piece) in Pieces::of(html) {
            if let Piece::Open(tag) = piece
                && tag.is("img")
                && let Some(url) = tag.attribute("src").filter(|url| is_mxc(url))
            {
                self.add(url.into_owned(), None, at.to_owned(), None);
            }
        }
    }

    fn value(&mut self, value: &Value, at: &str, depth: usize) {
        if depth > MAX_DEPTH || self.found.len() >= MAX_FILES {
            return;
        }
        match value {
            Value::Object(object) => self.object(object, at, depth),
            Value::Array(list) => {
                for (place, value) in list.iter().enumerate() {
                    self.value(value, &format!("{at}/{place}"), depth + 1);
                }
            }
            Value::String(text) if is_mxc(text) => self.add(text.clone(), None, at.to_owned(), None),
            _ => {}
        }
    }

    fn add(&mut self, mxc: String, key_at: Option<String>, at: String, object: Option<&Map<String, Value>>) {
        let is_told = self.told.contains(&mxc) || self.found.iter().any(|file| file.mxc == mxc);
        if is_told || self.found.len() >= MAX_FILES {
            return;
        }
        let none = Map::new();
        let object = object.unwrap_or(&none);
        let info = object.get("info").and_then(Value::as_object).unwrap_or(object);
        let name = ["filename", "name", "body"].iter().find_map(|key| text(object, key));
        self.found.push(File {
            part: format!("file.{}", self.found.len()),
            encrypted: key_at.is_some(),
            mxc,
            key_at,
            at: Some(at),
            filename: name.filter(|name| !name.is_empty()).map(str::to_owned),
            mimetype: mimetype(info),
            size: number(info.get("size")),
            width: number(info.get("w")),
            height: number(info.get("h")),
            ..File::default()
        });
    }
}
