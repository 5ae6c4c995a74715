//! Files of messages, told from outside: what a homeserver can do wrong, and what a caller can.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use coucou::clock::{Clock, ManualClock, SystemClock};
use futures_util::future::join_all;
use reqwest::{Response, header::HeaderMap};
use serde_json::{Value, json};

use crate::support::{
    coucou::{API_TOKEN, Coucou},
    fake_homeserver::{FakeBridge, FakeHomeserver, Giving, event},
    http,
    receiver::{Attempt, Receiver},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);
const MIB: usize = 1 << 20;

/// coucou has joined an encrypted portal, whose key it has, and a plain one.
struct Scene {
    coucou: Coucou,
    homeserver: FakeHomeserver,
    bridge: FakeBridge,
    receiver: Receiver,
    encrypted: String,
    plain: String,
    told: usize,
}

/// A file that was told of.
struct Told {
    mxc: String,
    message: Attempt,
}

impl Told {
    fn media(&self) -> &Value {
        &self.message.data()["content"]["media"]
    }

    fn url(&self) -> String {
        self.media()["url"].as_str().unwrap().to_owned()
    }
}

impl Scene {
    async fn set(settings: &[(&str, &str)], clock: Option<&Arc<ManualClock>>) -> Self {
        let mut coucou = Coucou::new().await;
        let folder = coucou.path("media").to_string_lossy().into_owned();
        coucou = coucou.set("COUCOU_MEDIA_FOLDER", &folder);
        for (name, value) in settings {
            coucou = coucou.set(name, value);
        }
        let homeserver = FakeHomeserver::start(&coucou).await;
        let receiver = Receiver::start().await;
        let mut coucou = coucou.homeserver(&homeserver.url()).webhook(&receiver);
        match clock {
            Some(clock) => coucou.start_inside(clock).await,
            None => coucou.start().await,
        }
        let device_id = homeserver.wait_for_device(BOT, SOON).await;
        let mut bridge = FakeBridge::new(&homeserver, "instagram");
        let encrypted = bridge.create_portal(&homeserver, "1", "Alice");
        let plain = bridge.create_room(&homeserver, "1", "Alice", false);
        for room in [&encrypted, &plain] {
            homeserver.invite(room, &bridge.bot(), BOT).await;
            homeserver.wait_for_join(room, BOT, SOON).await;
        }
        let key = bridge.share_key(&homeserver, &encrypted, BOT, &device_id);
        homeserver.push_until_taken(&[], &key).await;
        Self { coucou, homeserver, bridge, receiver, encrypted, plain, told: 0 }
    }

    /// Tells of a content, in the encrypted room or the plain one.
    async fn tell(&mut self, encrypted: bool, content: &Value) -> Attempt {
        let event = if encrypted {
            self.bridge.encrypt(&self.encrypted, "1", "m.room.message", content)
        } else {
            event(&self.plain, &self.bridge.ghost("1"), "m.room.message", content)
        };
        self.homeserver.push_until_taken(&[event], &[]).await;
        self.told += 1;
        let mut messages = self.receiver.wait_for(self.told, SOON).await;
        messages.pop().unwrap()
    }

    /// Tells of an encrypted file.
    async fn file(&mut self, bytes: &[u8]) -> Told {
        let file = self.homeserver.upload_encrypted(bytes);
        let mxc = file["url"].as_str().unwrap().to_owned();
        let info = json!({"mimetype": "video/mp4", "size": bytes.len()});
        let content = json!({"msgtype": "m.video", "body": "clip.mp4", "file": file, "info": info});
        Told { message: self.tell(true, &content).await, mxc }
    }

    /// What the cache has on its disk, the locks aside.
    fn cached(&self) -> Vec<PathBuf> {
        let folders = fs::read_dir(self.coucou.path("media")).unwrap();
        let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().path()).filter(|path| !path.ends_with("lock")).collect()
    }

    fn cached_bytes(&self) -> u64 {
        self.cached().iter().filter_map(|path| path.metadata().ok()).map(|file| file.len()).sum()
    }
}

async fn get(url: &str) -> Response {
    http().get(url).send().await.unwrap()
}

async fn bytes(url: &str) -> Vec<u8> {
    let answer = get(url).await;
    assert_eq!(answer.status().as_u16(), 200);
    answer.bytes().await.unwrap().to_vec()
}

/// Asks for something that must be refused: status, code and headers.
async fn refused(url: &str) -> (u16, String, HeaderMap) {
    let answer = get(url).await;
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let body = answer.bytes().await.unwrap();
    // Not what came: that may be a file.
    assert_eq!(headers["content-type"], "application/problem+json", "{status}, {} bytes", body.len());
    assert_eq!(headers["cache-control"], "no-store");
    let body: Value = serde_json::from_slice(&body).unwrap();
    (status, body["code"].as_str().unwrap().to_owned(), headers)
}

async fn assert_refused(url: &str, status: u16, code: &str) {
    let (got, said, headers) = refused(url).await;
    assert_eq!((got, &*said), (status, code), "{url}");
    assert_eq!(headers.contains_key("retry-after"), status == 503, "{code}");
}

/// Bytes that repeat nowhere, so that none can be lost, moved or doubled unseen.
fn numbered(length: usize) -> Vec<u8> {
    (0..length / 16).flat_map(|line| format!("{line:015}\n").into_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_fetched_once_and_handed_out_as_it_was_sent() {
    let mut scene = Scene::set(&[], None).await;
    let clip = numbered(3 * MIB);
    let told = scene.file(&clip).await;
    let media = told.media();
    assert_eq!((&media["mxc"], &media["encrypted"]), (&json!(told.mxc), &json!(true)));
    assert!(media["url_expires_at"].as_str().unwrap() > &*SystemClock.now().rfc3339());
    assert!(told.url().starts_with(&scene.coucou.url()), "{media}");

    // Twenty at once, while it takes its time: one download, and everybody has the file.
    scene.homeserver.give(&told.mxc, Giving::Held);
    let url = told.url();
    let everybody = join_all((0..20).map(|_| bytes(&url)));
    let given = async {
        until("the download", SOON, async || (scene.homeserver.downloads_of(&told.mxc) == 1).then_some(()))
            .await;
        scene.homeserver.give(&told.mxc, Giving::Whole);
    };
    let (files, ()) = tokio::join!(everybody, given);
    assert!(files.iter().all(|file| *file == clip));
    assert_eq!(scene.homeserver.downloads_of(&told.mxc), 1);
    let request = &scene.homeserver.requests("media/download")[0];
    assert_eq!(request.user_id, BOT, "as the account that reads the room");
    parts_and_headers(&told, &clip).await;
    plain_files_and_thumbnails(&mut scene).await;

    // What is on the disk tells nothing, and goes when the process has died.
    let on_disk = scene.cached();
    assert_eq!(on_disk.len(), 3);
    for path in &on_disk {
        let text = fs::read(path).unwrap();
        assert!(!text.windows(16).any(|line| line == &clip[160..176]), "{}", path.display());
    }
    scene.coucou.restart().await;
    assert_eq!(scene.cached(), Vec::<PathBuf>::new());
    assert_eq!(bytes(&url).await, clip, "the address is as good as before");
    assert_eq!(scene.homeserver.downloads_of(&told.mxc), 2);
    taken_back(&mut scene, &told).await;
}

async fn parts_and_headers(told: &Told, clip: &[u8]) {
    let url = told.url();
    let headers = get(&url).await.headers().clone();
    for (name, value) in [
        ("content-type", "video/mp4"),
        ("content-disposition", "inline; filename=\"clip.mp4\"; filename*=UTF-8''clip.mp4"),
        ("content-length", &*clip.len().to_string()),
        ("accept-ranges", "bytes"),
        ("x-content-type-options", "nosniff"),
        ("cross-origin-resource-policy", "cross-origin"),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    assert!(headers["content-security-policy"].to_str().unwrap().starts_with("sandbox;"));
    let cached = headers["cache-control"].to_str().unwrap();
    assert!(cached.starts_with("private, max-age=") && cached.ends_with(", immutable"), "{cached}");
    let ask = async |name: &str, value: &str| http().get(&url).header(name, value).send().await.unwrap();
    let etag = headers["etag"].to_str().unwrap();
    assert_eq!(ask("if-none-match", etag).await.status().as_u16(), 304);
    assert_eq!(ask("if-none-match", "\"other\"").await.status().as_u16(), 200);
    let size = clip.len();
    for (range, from, to) in
        [("bytes=0-15", 0, 16), ("bytes=100000-300000", 100_000, 300_001), ("bytes=-20", size - 20, size)]
    {
        let part = ask("range", range).await;
        assert_eq!(part.status().as_u16(), 206, "{range}");
        assert_eq!(part.headers()["content-range"], *format!("bytes {from}-{}/{size}", to - 1));
        assert_eq!(part.bytes().await.unwrap(), clip[from..to], "{range}");
    }
    let beyond = ask("range", &format!("bytes={size}-")).await;
    assert_eq!(beyond.status().as_u16(), 416);
    assert_eq!(beyond.headers()["content-range"], *format!("bytes */{size}"));
    let changed =
        http().get(&url).header("range", "bytes=0-1").header("if-range", "\"other\"").send().await.unwrap();
    assert_eq!(changed.status().as_u16(), 200);
    let head = http().head(&url).send().await.unwrap();
    assert_eq!(head.status().as_u16(), 200);
    assert_eq!(head.headers()["content-length"], *size.to_string());
}

async fn plain_files_and_thumbnails(scene: &mut Scene) {
    let (page, small) = (numbered(200_000), numbered(3_200));
    let thumbnail = scene.homeserver.upload_encrypted(&small);
    let content = json!({
        "msgtype": "m.file", "body": "seite.html", "filename": "ä/../\"seite.html", "url": scene.homeserver.upload(&page),
        "info": {"mimetype": "text/html", "thumbnail_file": thumbnail, "thumbnail_info": {"mimetype": "image/png"}},
    });
    let message = scene.tell(false, &content).await;
    let media = &message.data()["content"]["media"];
    let answer = get(media["url"].as_str().unwrap()).await;
    assert_eq!(answer.headers()["content-type"], "text/html");
    let disposition = answer.headers()["content-disposition"].to_str().unwrap();
    assert_eq!(
        disposition,
        "attachment; filename=\"_.._seite.html\"; filename*=UTF-8''%C3%A4..%22seite.html"
    );
    assert_eq!(answer.bytes().await.unwrap(), page);
    let url = media["thumbnail"]["url"].as_str().unwrap();
    let answer = get(url).await;
    assert_eq!(answer.headers()["content-type"], "image/png");
    assert_eq!(answer.headers()["content-disposition"], "inline");
    assert_eq!(answer.bytes().await.unwrap(), small);
    // The one's address does not open the other.
    assert_refused(&url.replace("/thumbnail", ""), 403, "url_invalid").await;
    assert_refused(&media["url"].as_str().unwrap().replace('?', "/thumbnail?"), 403, "url_invalid").await;
}

async fn taken_back(scene: &mut Scene, told: &Told) {
    let mut redaction = event(&scene.encrypted, &scene.bridge.ghost("1"), "m.room.redaction", &json!({}));
    redaction["redacts"] = told.message.event_id().into();
    assert_eq!(scene.cached().len(), 1);
    scene.homeserver.push_until_taken(&[redaction], &[]).await;
    scene
        .receiver
        .wait_until("the redaction", SOON, |taken| {
            taken.iter().any(|message| message.event() == "message.redacted")
        })
        .await;
    assert_refused(&told.url(), 404, "not_found").await;
    assert_eq!(scene.cached(), Vec::<PathBuf>::new(), "nor is it on the disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_handed_out_is_an_error_and_not_one_byte() {
    let limits = [
        ("COUCOU_MEDIA_MAX_SIZE", "1MiB"),
        ("COUCOU_MEDIA_CACHE_SIZE", "3MiB"),
        ("COUCOU_MEDIA_CONCURRENCY", "2"),
        ("COUCOU_MEDIA_TIMEOUT", "3s"),
    ];
    let mut scene = Scene::set(&limits, None).await;
    let told = scene.file(&numbered(500_000)).await;
    let url = told.url();
    for altered in [
        url.replacen("msg_", "msg_0", 1),
        url.replace("expires=1", "expires=2"),
        url.replace("signature=", "signature=A"),
        url[..url.len() - 1].to_owned(),
        url.split('?').next().unwrap().to_owned(),
        url.split("&signature").next().unwrap().to_owned(),
    ] {
        assert_refused(&altered, 403, "url_invalid").await;
    }
    assert_refused(&format!("{url}&x=y"), 400, "unknown_parameter").await;
    assert_eq!(scene.homeserver.downloads_of(&told.mxc), 0, "nothing was fetched for these");

    for (giving, status, code) in [
        (Giving::Refused(404, "M_NOT_FOUND"), 404, "media_missing"),
        (Giving::Refused(404, "M_UNRECOGNIZED"), 502, "homeserver_refused"),
        (Giving::Refused(403, "M_FORBIDDEN"), 502, "homeserver_refused"),
        (Giving::Refused(302, ""), 502, "homeserver_refused"),
        (Giving::Refused(429, "M_LIMIT_EXCEEDED"), 503, "homeserver_unavailable"),
        (Giving::Refused(502, "M_UNKNOWN"), 503, "homeserver_unavailable"),
        (Giving::Closed, 503, "homeserver_unavailable"),
        (Giving::Broken, 503, "homeserver_unavailable"),
        (Giving::Stalled, 503, "homeserver_unavailable"),
        (Giving::Held, 503, "homeserver_unavailable"),
    ] {
        scene.homeserver.give(&told.mxc, giving);
        assert_refused(&url, status, code).await;
        assert_eq!(scene.cached(), Vec::<PathBuf>::new(), "{giving:?}");
    }
    scene.homeserver.give(&told.mxc, Giving::Whole);
    scene.homeserver.tamper(&told.mxc);
    assert_refused(&url, 502, "media_corrupt").await;
    scene.homeserver.tamper(&told.mxc);
    assert_eq!(bytes(&url).await, numbered(500_000), "as soon as it is right again");

    let large = scene.file(&numbered(MIB + 16)).await;
    assert_refused(&large.url(), 502, "media_too_large").await;
    scene.homeserver.give(&large.mxc, Giving::Unannounced);
    assert_refused(&large.url(), 502, "media_too_large").await;
    let keyless = json!({"msgtype": "m.file", "body": "x", "file": {"url": told.mxc, "v": "v9"}});
    let keyless = scene.tell(true, &keyless).await;
    let url = keyless.data()["content"]["media"]["url"].as_str().unwrap();
    assert_refused(url, 502, "media_unreadable").await;
    assert_eq!(scene.cached().len(), 1);
    at_most_two_at_once_and_three_mebibytes(&mut scene).await;
}

async fn at_most_two_at_once_and_three_mebibytes(scene: &mut Scene) {
    let asked = |scene: &Scene, files: &[Told]| -> usize {
        files.iter().map(|told| scene.homeserver.downloads_of(&told.mxc)).sum()
    };
    let mut small = Vec::new();
    for _ in 0..5 {
        small.push(scene.file(&numbered(48_000)).await);
    }
    for told in &small {
        scene.homeserver.give(&told.mxc, Giving::Held);
    }
    let urls: Vec<String> = small.iter().map(Told::url).collect();
    let all = join_all(urls.iter().map(|url| bytes(url)));
    let given = async {
        until("two downloads", SOON, async || (asked(scene, &small) >= 2).then_some(())).await;
        for told in &small {
            scene.homeserver.give(&told.mxc, Giving::Whole);
        }
    };
    let (all, ()) = tokio::join!(all, given);
    assert!(all.into_iter().all(|file| file == numbered(48_000)));
    assert_eq!((asked(scene, &small), scene.homeserver.most_downloads()), (5, 2));

    let mut large = Vec::new();
    for _ in 0..4 {
        let told = scene.file(&numbered(900_000)).await;
        assert_eq!(bytes(&told.url()).await, numbered(900_000));
        assert!(scene.cached_bytes() <= 3 << 20, "{} bytes", scene.cached_bytes());
        large.push(told);
    }
    // The last one is there, the first one had to go, and comes again.
    for told in large.iter().rev() {
        assert_eq!(bytes(&told.url()).await, numbered(900_000));
    }
    let often: Vec<_> = large.iter().map(|told| scene.homeserver.downloads_of(&told.mxc)).collect();
    assert_eq!(often, [2, 1, 1, 1]);
    assert!(scene.cached_bytes() <= 3 << 20, "{} bytes", scene.cached_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_expires_and_there_is_always_a_fresh_one() {
    let clock = ManualClock::at(SystemClock.now());
    let mut scene = Scene::set(&[("COUCOU_MEDIA_URL_LIFETIME", "2h")], Some(&clock)).await;
    scene.receiver.at_any_time();
    let clip = numbered(48_000);
    let told = scene.file(&clip).await;
    clock.advance(Duration::from_hours(2) - Duration::from_secs(1));
    assert_eq!(bytes(&told.url()).await, clip);
    clock.advance(Duration::from_mins(6));
    assert_refused(&told.url(), 410, "url_expired").await;

    let id = told.message.data()["id"].as_str().unwrap();
    let (_, whole) = scene.coucou.api(&format!("messages/{id}")).await;
    let (_, list) = scene.coucou.api("messages?limit=1").await;
    let (_, events) = scene.coucou.api("events").await;
    let event = events["events"].as_array().unwrap().last().unwrap().clone();
    let media = &whole["payload"]["data"]["content"]["media"];
    assert_eq!(media, &list["messages"][0]["media"]);
    assert_eq!(media, &event["payload"]["data"]["content"]["media"]);
    assert_ne!(media["url"], told.media()["url"]);
    assert_eq!(bytes(media["url"].as_str().unwrap()).await, clip);

    // A delivery that is sent again does not carry the old one.
    let (_, deliveries) = scene.coucou.api("deliveries?limit=1").await;
    let delivery = &deliveries["deliveries"][0];
    assert_eq!(delivery["message_id"], id);
    let url = format!("{}/api/v1/deliveries/{}/resend", scene.coucou.url(), delivery["id"]);
    assert!(http().post(url).bearer_auth(API_TOKEN).send().await.unwrap().status().is_success());
    let again = until("the delivery again", SOON, async || {
        scene.receiver.attempts().into_iter().filter(|attempt| attempt.id == id).nth(1)
    })
    .await;
    assert_eq!(again.data()["content"]["media"], *media);
    scene.coucou.stop_inside().await;
}
