//! The content repository: files that come as they should, late, broken, or not at all.

use std::{convert::Infallible, panic::resume_unwind, sync::Arc, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use http::StatusCode;
use matrix_sdk_crypto::AttachmentEncryptor;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{FakeHomeserver, SERVER_NAME, Shared, random_id};

/// How a file is given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Giving {
    /// As it is.
    Whole,
    /// Without saying how long it is.
    Unannounced,
    /// Only once it is [given](FakeHomeserver::give) otherwise.
    Held,
    /// Half of it, and then nothing more.
    Stalled,
    /// Half of it, and then the connection breaks.
    Broken,
    /// Not at all: the connection is closed.
    Closed,
    /// With this status and error code instead.
    Refused(u16, &'static str),
}

/// A file.
#[derive(Clone, Debug)]
pub(super) struct File {
    bytes: Vec<u8>,
    giving: Giving,
}

/// How many downloads are under way, and were at most.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Downloads {
    now: usize,
    most: usize,
}

impl FakeHomeserver {
    /// Keeps a file, and answers its `mxc://` address.
    pub(crate) fn upload(&self, bytes: &[u8]) -> String {
        let id = random_id();
        let file = File { bytes: bytes.to_vec(), giving: Giving::Whole };
        self.world().files.insert(id.clone(), file);
        format!("mxc://{SERVER_NAME}/{id}")
    }

    /// Encrypts a file, keeps it, and answers its `EncryptedFile`.
    pub(crate) fn upload_encrypted(&self, mut bytes: &[u8]) -> Value {
        let mut ciphertext = Vec::new();
        let mut cipher = AttachmentEncryptor::new(&mut bytes);
        std::io::Read::read_to_end(&mut cipher, &mut ciphertext).unwrap();
        let mut file = serde_json::to_value(cipher.finish()).unwrap();
        file["url"] = self.upload(&ciphertext).into();
        file
    }

    /// Gives a file out in another way from now on.
    pub(crate) fn give(&self, mxc: &str, giving: Giving) {
        self.world().files.get_mut(id(mxc)).expect("a file that is there").giving = giving;
    }

    /// Changes one byte of a file.
    pub(crate) fn tamper(&self, mxc: &str) {
        self.world().files.get_mut(id(mxc)).expect("a file that is there").bytes[100] ^= 1;
    }

    /// How often a file was asked for.
    pub(crate) fn downloads_of(&self, mxc: &str) -> usize {
        self.requests(&format!("v1/media/download/{SERVER_NAME}/{}", id(mxc))).len()
    }

    /// The most downloads that were under way at once.
    pub(crate) fn most_downloads(&self) -> usize {
        self.world().downloads.most
    }
}

fn id(mxc: &str) -> &str {
    mxc.rsplit('/').next().unwrap()
}

struct UnderWay(Arc<Shared>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.world.lock().unwrap().downloads.now -= 1;
    }
}

/// Answers a download.
pub(super) async fn download(shared: &Arc<Shared>, id: &str) -> Response {
    let file = |shared: &Shared| shared.world.lock().unwrap().files.get(id).cloned();
    {
        let mut world = shared.world.lock().unwrap();
        world.downloads.now += 1;
        world.downloads.most = world.downloads.most.max(world.downloads.now);
    }
    let under_way = UnderWay(Arc::clone(shared));
    while file(shared).is_some_and(|file| file.giving == Giving::Held) {
        sleep(Duration::from_millis(20)).await;
    }
    let Some(File { bytes, giving }) = file(shared) else { return refused(404, "M_NOT_FOUND") };
    let length = bytes.len();
    let half = bytes[..length / 2].to_vec();
    let ok = |piece: Vec<u8>| Ok::<_, std::io::Error>(piece);
    let body = match giving {
        Giving::Refused(status, errcode) => return refused(status, errcode),
        Giving::Closed => resume_unwind(Box::new("the connection is closed")),
        Giving::Whole | Giving::Held => Body::from(bytes),
        Giving::Unannounced => {
            let pieces: Vec<_> = bytes.chunks(1000).map(<[u8]>::to_vec).map(Ok::<_, Infallible>).collect();
            return Body::from_stream(stream::iter(pieces)).into_response();
        }
        Giving::Stalled => Body::from_stream(stream::iter([ok(half)]).chain(stream::pending())),
        Giving::Broken => {
            let broken = Err(std::io::ErrorKind::ConnectionReset.into());
            Body::from_stream(stream::iter([ok(half), broken]))
        }
    };
    drop(under_way);
    ([("content-length", length.to_string())], body).into_response()
}

fn refused(status: u16, errcode: &str) -> Response {
    let body = json!({"errcode": errcode, "error": "the fake homeserver says so"});
    let json = [("content-type", "application/json")];
    (StatusCode::from_u16(status).unwrap(), json, body.to_string()).into_response()
}
