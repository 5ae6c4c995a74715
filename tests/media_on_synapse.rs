//! Files of messages on a real Synapse and a real PostgreSQL: byte for byte, in little memory.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    coucou::Coucou,
    http,
    postgres::Database,
    receiver::{Attempt, Receiver},
    synapse::{Bridge, Options, Sent, Synapse},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);
const MIB: usize = 1 << 20;
const LARGE: usize = 20 * MIB;
const KINDS: &str = "image,video,audio,voice,file,sticker";

struct Scene {
    coucou: Coucou,
    bridge: Bridge,
    receiver: Receiver,
    synapse: Synapse,
    _database: Database,
}

impl Scene {
    async fn set() -> Self {
        let database = Database::create().await;
        let coucou = Coucou::new().await.store(&database.url());
        let bridge = Bridge::new("instagram", &[]).await;
        let registrations = vec![coucou.registration(), bridge.registration()];
        let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
        let receiver = Receiver::start().await;
        let mut coucou = coucou.homeserver(&synapse.url()).webhook(&receiver);
        coucou.start().await;
        Self { coucou, bridge, receiver, synapse, _database: database }
    }

    /// The messages that `sent` was told as.
    async fn told(&self, sent: &Sent) -> Vec<Attempt> {
        let is_of = |attempt: &Attempt| sent.messages().any(|line| line.event_id == attempt.event_id());
        let count = sent.messages().count();
        let told = self.receiver.wait_until("the files", SOON, |taken| {
            taken.iter().filter(|attempt| is_of(attempt)).count() == count
        });
        told.await.into_iter().filter(is_of).collect()
    }

    /// A number of `/proc/<pid>/status`, in bytes.
    fn memory(&mut self, name: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.coucou.process().id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }
}

fn media(message: &Attempt) -> &Value {
    &message.data()["content"]["media"]
}

fn url(message: &Attempt) -> String {
    media(message)["url"].as_str().unwrap_or_else(|| panic!("no url in {}", message.payload)).to_owned()
}

async fn status(url: &str) -> (u16, Value) {
    let answer = http().get(url).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default())
}

/// Compares a file with numbered lines as it comes.
async fn assert_numbered(url: &str, lines: &[u8]) {
    let mut answer = http().get(url).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    assert_eq!(answer.content_length(), Some(lines.len() as u64));
    let mut read = 0;
    while let Some(piece) = answer.chunk().await.unwrap() {
        assert!(lines[read..].starts_with(&piece), "another byte after {read}");
        read += piece.len();
    }
    assert_eq!(read, lines.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_handed_out_byte_for_byte_in_little_memory() {
    let mut scene = Scene::set().await;
    let homeserver = scene.synapse.url();
    let send = || scene.bridge.send(&homeserver).invite(BOT);
    let large = send().messages("file").arg("--file-size", &LARGE.to_string()).run().await;
    let kinds = send().room(large.portal()).messages(KINDS).run().await;
    let plain = send().plain().messages(KINDS).run().await;
    for sent in [&kinds, &plain] {
        every_kind_is_handed_out(&scene.told(sent).await).await;
    }
    let large = scene.told(&large).await.pop().unwrap();
    little_memory(&mut scene, &url(&large)).await;
    let kinds = scene.told(&kinds).await;
    other_addresses_are_refused(&scene, &kinds).await;
    every_instance_and_every_start_knows_an_address(&mut scene, &kinds[0]).await;
    a_tampered_file_is_no_file(&scene, &large).await;

    // What is taken back is gone, though Synapse has the file still.
    let image = &kinds[0];
    let path = format!("rooms/{}/redact/{}/1", image.room_id(), image.event_id());
    let sender = image.data()["sender"]["mxid"].as_str().unwrap();
    scene.bridge.request_as(&homeserver, sender, ("PUT", &path), &json!({})).await;
    scene
        .receiver
        .wait_until("the redaction", SOON, |taken| {
            taken.iter().any(|message| message.event() == "message.redacted")
        })
        .await;
    let (got, answer) = status(&url(image)).await;
    assert_eq!((got, &answer["code"]), (404, &json!("not_found")));
}

async fn every_kind_is_handed_out(told: &[Attempt]) {
    assert_eq!(told.len(), KINDS.split(',').count());
    for message in told {
        let answer = http().get(url(message)).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], media(message)["mimetype"].as_str().unwrap());
        let file = answer.bytes().await.unwrap();
        assert_eq!(json!(file.len()), media(message)["size"], "{}", message.payload);
        let kind = message.data()["content"]["kind"].as_str().unwrap();
        let begin =
            if matches!(kind, "image" | "sticker") { "\u{89}PNG".to_owned() } else { format!("{kind} ") };
        let begin: Vec<u8> = begin.chars().map(|char| u8::try_from(u32::from(char)).unwrap()).collect();
        assert!(file.starts_with(&begin), "{kind}");
    }
}

/// What coucou needs at most while it hands out the file, beyond what it needed before, is a part of the file.
///
/// The peak is of this time alone: the kernel counts anew from here, so that what an earlier peak has left free does
/// not hide anything.
async fn little_memory(scene: &mut Scene, url: &str) {
    let lines: Vec<u8> = (0..LARGE / 16).flat_map(|line| format!("{line:015}\n").into_bytes()).collect();
    fs::write(format!("/proc/{}/clear_refs", scene.coucou.process().id()), "5").unwrap();
    let before = scene.memory("VmRSS");
    for _ in 0..2 {
        // From the homeserver, then from the cache.
        assert_numbered(url, &lines).await;
    }
    let growth = scene.memory("VmHWM").saturating_sub(before);
    println!("{} MiB before, {} KiB more at most", before / MIB, growth / 1024);
    assert!(growth < LARGE / 2, "{} KiB more than before, for a file of {} KiB", growth / 1024, LARGE / 1024);
}

async fn other_addresses_are_refused(scene: &Scene, told: &[Attempt]) {
    let (one, other) = (url(&told[0]), url(&told[1]));
    let (path, query) = one.split_once('?').unwrap();
    let altered = [
        format!("{}?{query}", other.split('?').next().unwrap()),
        one.replace("expires=1", "expires=9"),
        format!("{path}?{}", query.split('&').next().unwrap()),
        format!("{one}x"),
        format!("{}/api/v1/media/msg_{}?{query}", scene.coucou.url(), "0".repeat(40)),
    ];
    for altered in altered {
        let (got, answer) = status(&altered).await;
        assert_eq!((got, &answer["code"]), (403, &json!("url_invalid")), "{altered}: {answer}");
    }
}

async fn every_instance_and_every_start_knows_an_address(scene: &mut Scene, image: &Attempt) {
    let url = url(image);
    let mut sibling = scene.coucou.sibling();
    sibling.start().await;
    assert_eq!(status(&url.replace(&scene.coucou.url(), &sibling.url())).await.0, 200);
    sibling.terminate().await;

    scene.coucou.terminate().await;
    scene.coucou.reset("COUCOU_MEDIA_URL_LIFETIME", "1s");
    scene.coucou.start().await;
    assert_eq!(status(&url).await.0, 200);
    let id = image.data()["id"].as_str().unwrap();
    let (_, message) = scene.coucou.api(&format!("messages/{id}")).await;
    let short = message["media"]["url"].as_str().unwrap();
    let (got, answer) = until("the address to expire", SOON, async || {
        let answer = status(short).await;
        (answer.0 != 200).then_some(answer)
    })
    .await;
    assert_eq!((got, &answer["code"]), (410, &json!("url_expired")));
}

async fn a_tampered_file_is_no_file(scene: &Scene, large: &Attempt) {
    let upload =
        scene.synapse.uploads().into_iter().find(|path| path.metadata().unwrap().len() == LARGE as u64);
    let upload = upload.expect("Synapse keeps the file");
    let mut ciphertext = fs::read(&upload).unwrap();
    ciphertext[LARGE - 5] ^= 1;
    fs::write(&upload, ciphertext).unwrap();
    // The cache of the process before this one is gone.
    let (got, answer) = status(&url(large)).await;
    assert_eq!((got, &answer["code"]), (502, &json!("media_corrupt")), "and no byte of it: {answer}");
}
